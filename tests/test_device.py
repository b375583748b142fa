"""On "cuda", everything computes what it computes on the CPU, and seldom makes the CPU wait.

Without a GPU these laws run on a stand-in (accelerator.py), where results must have the CPU's bits.
Where a real GPU is, they run on it, to rounding: the networks as users have them, with convolutions
in TF32, and the steps in float64, as a threshold turns a rounding error into another policy.
"""

import contextlib
import copy
import inspect
import operator
import textwrap

import pytest
import torch
from accelerator import accelerator
from helpers import assert_same, batch, pair, pictures, policies, rng
from runs import SHORT, small_data
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._pytree import tree_flatten_with_path

import blockdrop_min
import train
from blockdrop_min import (
    BlockDrop,
    FixedPolicy,
    fast,
    free_blocks,
    load,
    policy_net,
    resnet,
    resnet_cost,
)
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
def learner(num_blocks=3, fixed=False):
    """A float64 model with a classifier on its policy network, on the CPU."""
    net = resnet(2 + 2 * num_blocks)
    if fixed:
        policy = FixedPolicy(torch.arange(num_blocks) % 2)
    else:
        policy = policy_net(num_blocks, width=3, num_classes=10)
    torch.nn.init.normal_(net.fc.weight, generator=rng(0))
    return BlockDrop(net, policy).double().train()


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
    torch.manual_seed(0)
    model = learner(num_blocks, step == "fixed").to(device, memory_format=torch.channels_last)
    x, y = (t.to(device) for t in batch(8, classes=10, size=16))
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


def ended(out):
    """The numbers of a run's checkpoint, but for seconds: path in it -> number or tensor."""
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True, map_location="cpu")
    for row in checkpoint["metrics"]:
        del row["seconds"]
    leaves, _ = tree_flatten_with_path(checkpoint)
    numbers = (int, float, torch.Tensor)
    return {"".join(map(str, path)): x for path, x in leaves if isinstance(x, numbers)}


def differences(one, other):
    """The paths at which two runs, as they have `ended`, hold other values."""
    return [
        name for name in one if not torch.equal(*map(torch.as_tensor, (one[name], other[name])))
    ]


def assert_ended_alike(one, other):
    """The same bits; on a real GPU the same names, and finite numbers."""
    one, other = ended(one), ended(other)
    assert one.keys() == other.keys()
    if GPU:
        assert all(torch.as_tensor(value).isfinite().all() for value in one.values())
    else:
        assert differences(one, other) == []


@pytest.mark.parametrize(
    "flags", [(), ("--policy=first:2",), ("--amp=on",)], ids=["learned", "fixed", "amp"]
)
def test_a_run_ends_the_same(device, tmp_path, flags):
    assert run(tmp_path / "there", *flags) == 0
    assert run(tmp_path / "here", *flags, "--device=cpu") == 0
    assert_ended_alike(tmp_path / "there", tmp_path / "here")


@contextlib.contextmanager
def interrupted(steps):
    """Within it a run ends behind so many steps, as by Ctrl-C."""
    left = iter(range(steps, -1, -1))

    def interrupt(*_):
        if next(left) == 0:
            raise KeyboardInterrupt

    handle = register_optimizer_step_pre_hook(interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        yield
    handle.remove()


def test_a_run_goes_on_from_one_device_to_the_other_and_back(device, tmp_path):
    for name, steps in (("cuda", 4), ("cpu", 7), ("cuda", 4), ("cpu", 4)):  # of 18, 3 an epoch
        with interrupted(steps):
            assert run(tmp_path / "moved", f"--device={name}") == 130
    assert run(tmp_path / "moved", "--device=cuda") == 0
    assert run(tmp_path / "here", "--device=cpu") == 0
    assert_ended_alike(tmp_path / "moved", tmp_path / "here")


@needs_gpu
def test_a_deterministic_run_on_a_gpu_repeats_its_bits(tmp_path):
    for name in ("one", "other"):
        assert run(tmp_path / name, "--deterministic") == 0
    assert differences(ended(tmp_path / "one"), ended(tmp_path / "other")) == []


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


# --------------------------------------------------------------------------- faults that must raise
LAWS = {
    "masked": lambda device: test_a_network_has_the_same_logits_and_gradients(device, "masked"),
    "forced": lambda device: test_policies_are_forced_the_same(device),
    "fast": lambda device: test_a_model_has_the_same_answers_for_images_of_either_device(
        device, fast
    ),
    "augmented": lambda device: test_augmented_images_are_the_same(device),
    "evaluation": lambda device: test_evaluation_finds_the_same(device, None),
    "costs": lambda device: test_costs_are_those_of_policies_on_the_device(device),
}
FAULTS = {  # what stays on the CPU -> (function, its text, the wrong text, a law that must raise)
    line.split(" | ")[0]: line.split(" | ")[1:]
    for line in """
kept images | masked_resnet.kept_images | images.to(device, non_blocking=True) | images | pretrain
a mask | masked_resnet.MaskedResNet.forward | .to(x.device).unbind | .unbind | masked
an index of the CPU | masked_resnet.run_sparse | _copy(0, kept, | _copy(0, kept.cpu(), | settled
images | blockdrop.BlockDrop.forward | .to(self.mean.device) |  | fast
the mean | blockdrop.BlockDrop.prepare | self.mean) | self.mean.cpu()) | fast
a fixed policy | blockdrop.FixedPolicy.forward | self.u. | self.u.cpu(). | fixed
which blocks are free | policy_network.force_on | free.to(u.device) | free | forced
samples | policy_network.sample | device=s_bounded.device | device=None | finetune
random policies | pretraining.random_policies | device=generator.device | device="cpu" | pretrain
a generator | lab.data.seeded | torch.Generator(device) | torch.Generator() | finetune
labels compared | rewards.correct_under | y.repeat(n) | y.cpu().repeat(n) | curriculum
full policies | finetuning.finetune_step | ones_like(u[:full]) | ones(full, u.shape[1]) | finetune
an advantage | finetuning.settled_step | torch.zeros_like(R) | torch.zeros(len(R)) | settled
columns of an image | lab.data.augment | (crop, device=x.device) | (crop) | augmented
labels of a split | lab.data.Split.to | self.labels.to(device) | self.labels | evaluation
FLOPs of the blocks | lab.cost.Cost.of | device=u.device | device="cpu" | costs
""".strip().splitlines()
}


def plant(monkeypatch, function, before, after):
    """Replaces a piece of a function's text, wherever the function is used."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(before) == 1, f"{before!r} stands {source.count(before)} times"
    namespace = dict(vars(inspect.getmodule(function)))
    exec(source.replace(before, after), namespace)
    wrong = inspect.unwrap(namespace[function.__name__])
    monkeypatch.setattr(inspect.unwrap(function), "__code__", wrong.__code__)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_in_the_wrong_place_raises(device, monkeypatch, fault):
    name, before, after, law = FAULTS[fault]
    plant(monkeypatch, operator.attrgetter(name)(blockdrop_min), before, after)
    with pytest.raises((RuntimeError, AssertionError)):
        if law in STEPS:
            test_a_step_computes_the_same(device, law)
        else:
            LAWS[law](device)
