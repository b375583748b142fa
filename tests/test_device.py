"""On "cuda", everything computes what it computes on the CPU, and seldom makes the CPU wait.

Without a GPU these laws run on a stand-in (accelerator.py), where results must have the CPU's bits.
Where a real GPU is, they run on it, to rounding: the networks as users have them, with convolutions
in TF32, and the steps in float64, as a threshold turns a rounding error into another policy.
"""

import contextlib
import copy

import pytest
import torch
from accelerator import accelerator
from disks import at_step, interrupt
from helpers import assert_same, batch, pair, pictures, policies
from runs import SHORT, bits, differences, small_data

import train
from blockdrop_min import fast, free_blocks, load, resnet, resnet_cost
from blockdrop_min.curriculum import curriculum_step, warm_start_step
from blockdrop_min.finetuning import finetune_step, settled_step
from blockdrop_min.lab.data import augment, seeded
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.policy_network import force_on
from blockdrop_min.pretraining import pretrain_step

GPU = torch.cuda.is_available()
TF32 = 2e-2
needs_stand_in = pytest.mark.skipif(GPU, reason="needs the stand-in; a real GPU is there")
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a real GPU; none is there")
real_rand = torch.rand


def rand_of_the_cpu(*size, generator, device=None, **how):
    """`torch.rand` with a CPU's numbers: a GPU draws others from the same seed."""
    assert torch.device(device or "cpu").type == generator.device.type
    twin = torch.Generator().manual_seed(generator.initial_seed())
    return real_rand(*size, generator=twin, **how).to(generator.device)


@pytest.fixture
def device(monkeypatch):
    """A real GPU, or the stand-in for one."""
    if GPU:
        monkeypatch.setattr(torch, "rand", rand_of_the_cpu)
        yield torch.device("cuda")
    else:
        with accelerator():
            yield torch.device("cuda")


def assert_there(actual, expected, tolerance=1e-8):
    """What is on the device has the bits of the CPU's; on a real GPU, equal to `tolerance`."""
    assert actual.device.type == "cuda"
    assert_same(actual.detach().cpu(), expected.detach(), tolerance if GPU else 0)


# ------------------------------------------------------------------------------------ the networks
@pytest.mark.parametrize("execute", ["masked", "sparse"])
def test_a_network_has_the_same_logits_and_gradients(device, execute):
    net = pair().resnet.to(memory_format=torch.channels_last)
    x, u = batch(6)[0], policies(6, 3)
    there = copy.deepcopy(net).to(device)
    logits = net(x, u, execute)
    logits_there = there(x.to(device), u.to(device), execute)
    logits.square().sum().backward()
    logits_there.square().sum().backward()
    assert_there(logits_there, logits, TF32)
    for mine, its in zip(net.parameters(), there.parameters(), strict=True):
        scale = 1 + mine.grad.abs().max()
        assert_there(its.grad / scale, mine.grad / scale, TF32)


@pytest.mark.parametrize("fold", [copy.deepcopy, fast])
def test_a_model_has_the_same_answers_for_images_of_either_device(device, fold):
    model, x = pair(fixed=(1.0, 0.0, 1.0)), pictures(6).float()
    expected, expected_u = fold(model)(x)
    there = fold(copy.deepcopy(model).to(device))
    for images in (x, x.to(device)):
        logits, u = there(images)
        assert_there(logits, expected, TF32)
        assert_there(u, expected_u)


def test_a_loaded_model_lies_on_the_device(device, tmp_path):
    assert run(tmp_path, "--stages=pretrain", "--device=cpu") == 0
    x = pictures(6, 16).float()
    here, there = load(tmp_path), load(tmp_path, device)
    s = there.policy(there.prepare(x.to(device)))
    assert_there(s, here.policy(here.prepare(x)), TF32)


@pytest.mark.parametrize("given", [None, (1.0, 0.0, 1.0)])
def test_evaluation_finds_the_same(device, given):
    model, data = pair().double(), small_data(40)
    u = None if given is None else torch.tensor(given)
    there = run_policy(copy.deepcopy(model).to(device), data.to(device).test, data.crop, u)
    here = run_policy(model, data.test, data.crop, u)
    for part in ("correct", "u", "flops"):
        torch.testing.assert_close(getattr(there, part), getattr(here, part), rtol=0, atol=0)


def test_costs_are_those_of_policies_on_the_device(device):
    net, u = resnet(8), policies(6, 3)
    assert_there(resnet_cost(net, 32).of(u.to(device)), resnet_cost(net, 32).of(u))


def test_policies_are_forced_the_same(device):
    u, free = policies(6, 3), free_blocks(1, 3)
    assert_there(force_on(u.to(device), free), force_on(u, free))


# --------------------------------------------------------------------------------------- the steps
def free(model):
    return free_blocks(1, model.resnet.num_blocks)  # two blocks


STEPS = {  # name -> (model, x, y, generator) -> (loss, what the log shows)
    "pretrain": lambda m, x, y, g: pretrain_step(m, x, y, 0.7, g),
    "warm start": lambda m, x, y, g: warm_start_step(m, x, y),
    "curriculum": lambda m, x, y, g: curriculum_step(m, x, y, free(m), 0.8, 0.1, 2.0, g, 0.5),
    "finetune": lambda m, x, y, g: finetune_step(m, x, y, 0.8, 0.1, 2.0, g, 0.4),
    "settled": lambda m, x, y, g: settled_step(m, x, y, 2.0),
    "fixed": lambda m, x, y, g: settled_step(m, x, y, 2.0),
}


def take(step, device, num_blocks=3, again=None):
    """A step there: what it returns, and the gradients and buffers that it leaves, by name.

    again: called before the step is taken once more.
    """
    fixed = [k % 2.0 for k in range(num_blocks)] if step == "fixed" else None
    model = pair((num_blocks // 3,) * 3, fixed=fixed, num_classes=5).double().train()
    model = model.to(device, memory_format=torch.channels_last)
    x, y = (t.to(device) for t in batch(8, size=16))
    x = x.double()
    generator = seeded("step", device=device)
    loss, images = STEPS[step](model, x, y, generator)
    if again:
        again()
        loss, images = STEPS[step](model, x, y, generator)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss} | images | gradients | dict(model.named_buffers())


@pytest.mark.parametrize("step", STEPS)
def test_a_step_computes_the_same(device, step):
    there, here = take(step, device), take(step, "cpu")
    assert there.keys() == here.keys()
    for name, expected in here.items():
        assert_there(there[name], expected)


def test_augmented_images_are_the_same(device):
    x = small_data(8).train.images
    there = augment(x.to(device), 9, 1, seeded("images", device=device))
    assert_there(there, augment(x, 9, 1, seeded("images")))


# --------------------------------------------------------------------------------------- whole runs
def run(out, *flags):
    """train.py in this process, the table at its end included: the exit code."""
    return train.main([*SHORT, "--device=cuda", "--out", str(out), *flags])


def moved(one, other):
    """Where two runs end differently, the device apart; on a real GPU only names count."""
    if GPU:
        return bits(one).keys() ^ bits(other).keys()
    return [path for path in differences(one, other) if "device" not in path]


@pytest.mark.parametrize(
    "flags", [(), ("--policy=first:2",), ("--amp=on",)], ids=["learned", "fixed", "amp"]
)
def test_a_run_ends_the_same(device, tmp_path, flags):
    assert run(tmp_path / "there", *flags) == 0
    assert run(tmp_path / "here", *flags, "--device=cpu") == 0
    assert not moved(tmp_path / "there", tmp_path / "here")


def test_a_run_goes_on_from_one_device_to_the_other_and_back(device, tmp_path):
    for name, steps in (("cuda", 4), ("cpu", 7), ("cuda", 4), ("cpu", 4)):  # of 18, 3 an epoch
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, steps, interrupt)
            with contextlib.suppress(KeyboardInterrupt):
                assert run(tmp_path / "moved", f"--device={name}") == 130
    assert run(tmp_path / "moved", "--device=cuda") == 0
    assert run(tmp_path / "here", "--device=cpu") == 0
    assert not moved(tmp_path / "moved", tmp_path / "here")


@needs_gpu
def test_a_deterministic_run_on_a_gpu_repeats_its_bits(tmp_path):
    for name in ("one", "other"):
        assert run(tmp_path / name, "--deterministic") == 0
    assert differences(tmp_path / "one", tmp_path / "other") == []


# -------------------------------------------------------------------------------------------- waits
MOST_WAITS = {  # a step -> how often it makes the CPU wait, at most
    "pretrain": 2,
    "warm start": 0,
    "curriculum": 3,
    "finetune": 4,
    "settled": 2,
    "fixed": 2,
}


@needs_stand_in
@pytest.mark.parametrize("step", MOST_WAITS)
@pytest.mark.parametrize("num_blocks", [3, 9])
def test_a_step_waits_seldom_however_deep_the_network(step, num_blocks):
    with accelerator() as counts:
        take(step, torch.device("cuda"), num_blocks, again=counts.clear)
        assert counts["reads"] + counts["uploads"] <= MOST_WAITS[step], counts


@needs_stand_in
def test_a_step_of_a_run_waits_once_more(tmp_path):
    flags = ["--preset=smoke", "--device=cuda", "--depth=20", "--stages=pretrain", "--val-images=8"]
    flags += ["--pretrain-epochs=1", "--pretrain-batch=16"]
    waits = []
    for steps in (2, 3):
        with accelerator() as counts:
            out = ["--out", str(tmp_path / f"{steps}"), f"--train-images={8 + 16 * steps}"]
            assert train.main([*flags, *out]) == 0
            waits.append(counts["reads"] + counts["uploads"])
    assert waits[1] - waits[0] <= MOST_WAITS["pretrain"] + 1
