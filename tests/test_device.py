"""On "cuda", everything computes what it computes on the CPU, and seldom makes the CPU wait.

Without a GPU these laws run on a stand-in (accelerator.py), where results must have the CPU's bits.
Where a real GPU is, they run on it, to rounding: the networks as users have them, with convolutions
in TF32, and the steps in float64, as a threshold turns a rounding error into another policy.
"""

import copy
import inspect
import textwrap
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from accelerator import accelerator
from helpers import assert_same, batch, pair, policies, rng
from runs import SHORT, small_data
from torch.utils._pytree import tree_flatten_with_path

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
from blockdrop_min.lab.cost import Cost
from blockdrop_min.lab.data import Split, augment, seeded
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.process import Stop
from blockdrop_min.lab.settings import PRESETS, Settings
from blockdrop_min.masked_resnet import MaskedResNet, kept_images, put
from blockdrop_min.policy_network import force_on, sample
from blockdrop_min.pretraining import pretrain_step, random_policies
from blockdrop_min.rewards import correct_under

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


def pixels(count, size=9):
    return torch.rand(count, 3, size, size, generator=rng(0))


@pytest.mark.parametrize("fold", [copy.deepcopy, fast])
def test_a_model_has_the_same_logits(device, fold):
    model, x = pair(fixed=(1.0, 0.0, 1.0)), pixels(6)
    logits, u = fold(copy.deepcopy(model).to(device))(x.to(device))
    expected, expected_u = fold(model)(x)
    assert_there(logits, expected, TF32)
    assert_there(u, expected_u)


def test_a_loaded_model_lies_on_the_device(device, tmp_path):
    assert run(tmp_path, "--stages=pretrain", "--device=cpu") == 0
    x = pixels(6, size=16)
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


FREE = free_blocks(1, 3)  # two of three
STEPS = {  # name -> (model, x, y, generator) -> (loss, what the log shows)
    "pretrain": lambda m, x, y, g: pretrain_step(m, x, y, 0.7, g),
    "warm start": lambda m, x, y, g: warm_start_step(m, x, y),
    "curriculum": lambda m, x, y, g: curriculum_step(m, x, y, FREE, 0.8, 0.1, 2.0, g, 0.5),
    "finetune": lambda m, x, y, g: finetune_step(m, x, y, 0.8, 0.1, 2.0, g, 0.4),
    "settled": lambda m, x, y, g: settled_step(m, x, y, 2.0),
    "fixed": lambda m, x, y, g: settled_step(m, x, y, 2.0),
}


def take(step, device):
    """A step there: what it returns, and the gradients and buffers that it leaves, by name."""
    torch.manual_seed(0)
    model = learner(fixed=step == "fixed").to(device, memory_format=torch.channels_last)
    x, y = (t.to(device) for t in batch(8, classes=10, size=16))
    loss, images = STEPS[step](model, x.double(), y, seeded("step", device=device))
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
    """How a run has ended: path in its checkpoint -> value, but for the device and the clock."""
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True, map_location="cpu")
    del checkpoint["settings"]["device"]
    for row in checkpoint["metrics"]:
        del row["seconds"]
    leaves, _ = tree_flatten_with_path(checkpoint)
    return {"".join(map(str, path)): value for path, value in leaves}


def differences(one, other):
    """Where two runs, as they have `ended`, hold other values."""
    equal = {
        name: torch.equal(value, other[name])
        if isinstance(value, torch.Tensor)
        else value == other[name]
        for name, value in one.items()
    }
    return [name for name in one if not equal[name]]


def assert_ended_alike(one, other):
    """The same bits; on a real GPU the same names, and finite numbers."""
    one, other = ended(one), ended(other)
    assert one.keys() == other.keys()
    if GPU:
        tensors = [value for value in one.values() if isinstance(value, torch.Tensor)]
        assert all(tensor.isfinite().all() for tensor in tensors)
    else:
        assert differences(one, other) == []


@pytest.mark.parametrize(
    "flags", [(), ("--policy=first:2",), ("--amp",)], ids=["learned", "fixed", "amp"]
)
def test_a_run_ends_the_same(device, tmp_path, flags):
    assert run(tmp_path / "there", *flags) == 0
    assert run(tmp_path / "here", *flags, "--device=cpu") == 0
    assert_ended_alike(tmp_path / "there", tmp_path / "here")


def stop_after(monkeypatch, steps):
    """Makes the next run stop after so many steps, as by a signal."""
    left = iter(range(steps - 1, -1, -1))

    def stop_if_asked(*_):
        if next(left) == 0:
            raise Stop(15)

    monkeypatch.setattr(train.process, "stop_if_asked", stop_if_asked)


def test_a_run_goes_on_from_one_device_to_the_other_and_back(device, tmp_path, monkeypatch):
    for name, steps in (("cuda", 2), ("cpu", 6), ("cuda", 3), ("cpu", 5)):  # of 18
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            assert run(tmp_path / "moved", f"--device={name}") == 128 + 15
    assert run(tmp_path / "moved", "--device=cuda") == 0
    assert run(tmp_path / "here", "--device=cpu") == 0
    assert_ended_alike(tmp_path / "moved", tmp_path / "here")


@needs_gpu
def test_a_deterministic_run_on_a_gpu_repeats_its_bits(tmp_path):
    for name in ("one", "other"):
        assert run(tmp_path / name, "--deterministic") == 0
    assert differences(ended(tmp_path / "one"), ended(tmp_path / "other")) == []


# -------------------------------------------------------------------------------------------- waits
def loop(device, num_blocks, stage_name, steps, **changes):
    """So many steps of an epoch of train.py."""
    changes = {"depth": 2 + 2 * num_blocks, f"{stage_name}_batch": 16} | changes
    settings = Settings(**(PRESETS["smoke"] | {"preset": "smoke", "settle_by": 0.0} | changes))
    stage = next(stage for stage in settings.plan if stage.name == stage_name)
    data = small_data(16 * steps)
    torch.manual_seed(0)
    model = train.make_model(settings, data, None, None)
    if settings.policy == "learned":
        torch.nn.init.normal_(model.policy.logit.weight, std=100)  # policies of all kinds
    warm_start = stage_name == "curriculum" and settings.warm_epochs > 0
    epoch = 0 if warm_start else stage.epochs - 1
    position = {"stage": stage.name, "epoch": epoch, "step": 0, "sums": {}, "seconds": 0.0}
    log = SimpleNamespace(epoch=lambda *_: None, step=lambda *_: None)
    data = data.to(device)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = train.make_optimizer(model, stage)
    train.train_one_epoch(model, optimizer, data, position, settings, stage, log, [])


def step_counts(num_blocks, stage_name, **changes):
    """What a step of train.py counts on the stand-in: three steps, less two."""
    found = []
    for steps in (2, 3):
        with accelerator() as counts:
            loop("cuda", num_blocks, stage_name, steps, **changes)
            found.append(Counter(counts))
    two, three = found
    return {name: three[name] - two[name] for name in ("reads", "uploads", "launches")}


MOST_WAITS = {  # the stage and its settings -> waits a step, at most
    "pretrain": ("pretrain", {"drop": 1.0}, 3),
    "warm start": ("curriculum", {"curriculum_epochs": 3, "warm_epochs": 1}, 2),
    "curriculum": ("curriculum", {"warm_epochs": 0}, 4),
    "joint": ("finetune", {}, 5),
    "settled": ("finetune", {"settle_by": 1e-9, "finetune_epochs": 2}, 3),
    "fixed": ("finetune", {"policy": "first:2"}, 3),
}


@needs_stand_in
@pytest.mark.parametrize("case", MOST_WAITS)
def test_a_step_waits_seldom_however_deep_the_network(case):
    stage, changes, most = MOST_WAITS[case]
    for num_blocks in (3, 9):
        counts = step_counts(num_blocks, stage, **changes)
        assert counts["reads"] + counts["uploads"] <= most, f"{num_blocks} blocks: {counts}"


# --------------------------------------------------------------------------- faults that must raise
def law_step(step):
    return lambda device: test_a_step_computes_the_same(device, step)


def law_network(device):
    test_a_network_has_the_same_logits_and_gradients(device, "masked")


def law_loop(device):
    loop(device, 3, "finetune", 1)


FAULTS = {  # what is wrong -> (function, its text, the wrong text, a law that must raise)
    "the indices of kept images stay on the CPU": (
        kept_images,
        "images.to(device, non_blocking=True)",
        "images",
        law_step("pretrain"),
    ),
    "the mask of a masked pass stays on the CPU": (
        MaskedResNet.forward,
        "keep.to(x.device)",
        "keep",
        law_network,
    ),
    "which blocks are free stays on the CPU": (
        force_on,
        "free.to(u.device)",
        "free",
        test_policies_are_forced_the_same,
    ),
    "samples are drawn on the CPU": (
        sample,
        "device=s_bounded.device",
        "device=None",
        law_step("finetune"),
    ),
    "random policies are drawn on the CPU": (
        random_policies,
        "device=generator.device",
        'device="cpu"',
        law_step("pretrain"),
    ),
    "a generator lies on the CPU": (
        seeded,
        "torch.Generator(device)",
        "torch.Generator()",
        law_step("finetune"),
    ),
    "labels are compared on the CPU": (
        correct_under,
        "y.repeat(n)",
        "y.cpu().repeat(n)",
        law_step("curriculum"),
    ),
    "full policies are made on the CPU": (
        finetune_step,
        "torch.ones_like(u[:full])",
        "torch.ones(full, u.shape[1])",
        law_step("finetune"),
    ),
    "an advantage is made on the CPU": (
        settled_step,
        "torch.zeros_like(R)",
        "torch.zeros(len(R))",
        law_step("settled"),
    ),
    "a fixed policy stays on the CPU": (
        FixedPolicy.forward,
        "self.u.expand",
        "self.u.cpu().expand",
        law_step("fixed"),
    ),
    "mean and std stay on the CPU": (
        BlockDrop.prepare,
        "(x - self.mean) / self.std",
        "(x - self.mean.cpu()) / self.std.cpu()",
        lambda device: test_a_model_has_the_same_logits(device, fast),
    ),
    "images are put back by indices of the CPU": (
        put,
        "return copy(0, index,",
        "return copy(0, index.cpu(),",
        law_step("settled"),
    ),
    "the columns of an augmented image are counted on the CPU": (
        augment,
        "torch.arange(crop, device=x.device)",
        "torch.arange(crop)",
        test_augmented_images_are_the_same,
    ),
    "labels of a split stay on the CPU": (
        Split.to,
        "self.labels.to(device)",
        "self.labels",
        lambda device: test_evaluation_finds_the_same(device, None),
    ),
    "FLOPs of the blocks stay on the CPU": (
        Cost.of,
        "device=u.device",
        'device="cpu"',
        test_costs_are_those_of_policies_on_the_device,
    ),
    "images of an epoch are counted on the CPU": (
        train.image_sums,
        'torch.ones_like(logged["correct"]).sum()',
        "torch.tensor(count)",
        law_loop,
    ),
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
    function, before, after, law = FAULTS[fault]
    plant(monkeypatch, function, before, after)
    with pytest.raises((RuntimeError, AssertionError)):
        law(device)
