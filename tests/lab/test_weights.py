"""Weights made elsewhere: what fits is loaded, everything else is refused and changes nothing."""

import pytest
import torch
import torchvision
from helpers import (
    assert_equal,
    assert_same,
    authors_names,
    images,
    rng,
    small_policy_net,
    small_resnet,
)
from runs import randomise, refused, state

from blockdrop_min import BlockDrop, load_foreign, policy_net, resnet
from blockdrop_min.lab.weights import start_policy

FAMILIES = pytest.mark.parametrize("family", ["cifar", "imagenet"])


def pair(family="cifar", seed=0):
    """A small random BlockDrop of three blocks: float64, eval mode."""
    policy = small_policy_net(3, family, seed=seed + 1)
    return BlockDrop(small_resnet(family=family, seed=seed), policy)


def authors(model, agent="agent"):
    """The weights of this BlockDrop as a checkpoint of the authors, with what else those hold."""
    heads = {"vnet.weight": torch.zeros(1, 12), "vnet.bias": torch.zeros(1)}
    older = {"features.fc.weight": torch.zeros(10, 12), "features.fc.bias": torch.zeros(10)}
    networks = {
        "resnet": authors_names(model.resnet.state_dict()),
        agent: authors_names(model.policy.state_dict()) | heads | (older if agent == "net" else {}),
    }
    return {**networks, "epoch": 1600, "reward": 0.52, "acc": 0.936}


def policy18(width=2):
    return policy_net(4, "imagenet", width=width)


def under_module(network):
    return {f"module.{name}": tensor for name, tensor in network.state_dict().items()}


def saved(content, path):
    torch.save(content, path)
    return path


# ------------------------------------------------------------------------------------------ by hand
def test_the_authors_names_by_hand():
    names = {"layer2.0.downsample.1.weight": "ds.1.1.weight", "fc.bias": "fc.bias"}
    names |= {"layer1.3.bn2.bias": "blocks.0.3.bn2.bias"}
    names |= {"features.layer3.0.conv1.weight": "features.blocks.2.0.conv1.weight"}
    assert list(authors_names(names)) == [*names.values()]


# ------------------------------------------------------------------------ two roads: what is loaded
@pytest.mark.parametrize("wrap", [lambda net: net.state_dict(), under_module])
@pytest.mark.parametrize("make", [small_resnet, lambda **o: small_policy_net(3, **o)])
@FAMILIES
def test_a_network_takes_its_own_names(family, make, wrap):
    source, net = make(family=family, seed=5), make(family=family)
    load_foreign(net, wrap(source))
    assert_equal(state(net), state(source))


def test_a_resnet_takes_a_file_of_torchvision(tmp_path):
    theirs = randomise(torchvision.models.resnet18(num_classes=4), 0).eval()
    path = saved(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = load_foreign(resnet(18, 4, "imagenet"), path).eval()
    x = images(1, 32).float()
    assert_same(ours(x), theirs(x), 1e-5)


@pytest.mark.parametrize("agent", ["agent", "net"])  # the authors' newer and older name
@pytest.mark.parametrize("zipped", [True, False, None])  # a file of today, an older one, the dict
@FAMILIES
def test_a_blockdrop_takes_both_networks_of_an_authors_checkpoint(tmp_path, family, agent, zipped):
    source, model = pair(family, seed=7), pair(family)
    checkpoint, path = authors(source, agent), tmp_path / "ckpt.t7"
    names = [list(part) for part in checkpoint.values() if isinstance(part, dict)]
    torch.save(checkpoint, path, _use_new_zipfile_serialization=bool(zipped))
    assert load_foreign(model, checkpoint if zipped is None else str(path)) is model
    assert_equal(state(model), state(source))
    assert [list(part) for part in checkpoint.values() if isinstance(part, dict)] == names


@FAMILIES
def test_each_network_takes_its_part_of_an_authors_checkpoint(family):
    source, model = pair(family, seed=7), pair(family)
    checkpoint = authors(source)
    load_foreign(model.resnet, checkpoint)
    del checkpoint["resnet"]  # a curriculum checkpoint holds the agent only
    load_foreign(model.policy, checkpoint)
    assert_equal(state(model), state(source))


@pytest.mark.parametrize("name", ["vnet.weight", "features.fc.bias"])
def test_what_is_ignored_beside_an_agent_is_left_over_beside_a_resnet(name):
    net, agent = small_resnet(), small_policy_net(3)
    load_foreign(agent, {**agent.state_dict(), name: torch.zeros(1)})
    weights = {**net.state_dict(), name: torch.zeros(1)}
    for checkpoint in (weights, {"resnet": weights}):
        with refused(rf"resnet: .* Unexpected key.* \"{name}\""):
            load_foreign(net, checkpoint)


def test_a_deeper_network_of_bottlenecks_takes_the_authors_names():
    shape = (3, 2, 11), (2, 3, 4), 5, "imagenet", True  # 11: numbers of two digits
    source, net = small_resnet(*shape, seed=1), small_resnet(*shape)
    load_foreign(net, {"resnet": authors_names(source.state_dict()), "agent": {}})
    assert_equal(state(net), state(source))


@pytest.mark.parametrize(("has_it", "count"), [(True, 12), (False, 7)])
def test_num_batches_tracked_is_the_files_or_stays_where_the_file_has_none(has_it, count):
    source, net = small_resnet(seed=1), small_resnet()
    source.bn1.num_batches_tracked.fill_(12)
    net.bn1.num_batches_tracked.fill_(7)
    weights = source.state_dict()
    load_foreign(net, weights if has_it else {"resnet": authors_names(weights), "agent": {}})
    assert net.bn1.num_batches_tracked == count


@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_weights_that_lie_in_a_training_programs_checkpoint_are_found(tmp_path, name):
    source, net = small_resnet(seed=1), small_resnet()
    content = {"epoch": 3, name: under_module(source), "optimizer": {}}
    load_foreign(net, saved(content, tmp_path / "file.pt"))
    assert_equal(state(net), state(source))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_another_precision_are_converted(dtype):
    source, net = small_resnet(seed=1), small_resnet()
    weights = source.state_dict().items()
    load_foreign(net, {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights})
    assert net.fc.weight.dtype == torch.float64
    assert_equal(net.fc.weight, source.fc.weight.to(dtype).double())


# --------------------------------------------------------------- two roads: the start of the policy
def test_the_body_starts_from_torchvisions_resnet18_without_the_second_blocks(tmp_path):
    theirs = randomise(torchvision.models.resnet18(), 3).double().eval()
    net = policy_net(4, "imagenet").double().eval()
    start_policy(net, saved(theirs.state_dict(), tmp_path / "file.pt"))
    for i in range(1, 5):
        del getattr(theirs, f"layer{i}")[1]
    theirs.fc, x = torch.nn.Identity(), images(1, 64)
    assert_same(net.embed(x), theirs(torch.nn.functional.avg_pool2d(x, 2)))


@pytest.mark.parametrize("without_counts", [True, False])
def test_the_body_starts_from_weights_that_lie_in_a_checkpoint(tmp_path, without_counts):
    net, source = policy18(), policy18().features
    weights = under_module(source)
    if without_counts:
        weights = {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")}
    start_policy(net, saved({"state_dict": weights}, tmp_path / "file.pt"))
    assert_equal(state(net.features), state(source))


@pytest.mark.parametrize("value", [None, torch.zeros(9, 8, 3, 3)])
def test_a_start_from_unfit_weights_is_refused_and_changes_nothing(tmp_path, value):
    net, weights = policy18(), policy18().features.state_dict()
    del weights["layer3.0.conv2.weight"]
    weights |= {} if value is None else {"layer3.0.conv2.weight": value}
    with refused(r"file.pt.*layer3.0.conv2.weight", net):
        start_policy(net, saved(weights, tmp_path / "file.pt"))


# ---------------------------------------------------------------------------- laws: what is refused
def test_a_number_that_is_not_finite_in_the_networks_precision_is_refused():
    net = small_resnet().float()
    weights = state(net.double())
    weights["fc.bias"][0] = 1e300
    with refused("holds a number that is not finite", net.float()):
        load_foreign(net, weights)


def test_no_name_of_a_file_breaks_the_line_or_fills_it():
    net, name = small_resnet(), "\x1b[2J\n" + "x" * 10_000_000
    odd = {(1,) * 10_000_000: 1, name: 1}
    for content in ({**net.state_dict(), **odd}, {"agent": {}, **odd}, {"resnet": odd}):
        with refused("resnet", net):
            load_foreign(net, content)


REASONS = {  # what is done to the weights, at the name of their last convolution; and what is said
    "missing": (lambda w, name: w.pop(name), 'Missing key.* ".*conv2.weight"'),
    "left over": (lambda w, name: w.update({f"{name}9": w[name]}), 'Unexpected key.* ".*weight9"'),
    "twice": (lambda w, name: w.update({f"module.{name}": 0}), "conv2.weight' is there twice"),
    "no tensor": (lambda w, name: w.update({name: [1.0]}), "conv2.weight.*received <class 'list'>"),
    "another shape": (lambda w, name: w.update({name: torch.ones(2)}), "size mismatch for .*conv2"),
    "nan": (lambda w, name: w.update({name: w[name] * torch.nan}), "a number that is not finite"),
    "inf": (lambda w, name: w.update({name: w[name] / 0}), "a number that is not finite"),
}
faults = pytest.mark.parametrize("fault", REASONS)


def spoil(weights, fault):
    """Makes one of the faults in a state_dict."""
    name = next(name for name in reversed(weights) if name.endswith("conv2.weight"))
    REASONS[fault][0](weights, name)


@faults
@pytest.mark.parametrize("make", [small_resnet, lambda **o: small_policy_net(3, **o)])
def test_a_state_dict_with_a_fault_is_refused_and_changes_nothing(make, fault):
    net, weights = make(), state(make(seed=7))
    spoil(weights, fault)
    with refused(REASONS[fault][1], net):
        load_foreign(net, weights)


@faults
@pytest.mark.parametrize("part", ["resnet", "agent"])
def test_an_authors_checkpoint_with_a_fault_in_one_network_changes_neither(part, fault):
    model, checkpoint = pair(), authors(pair(seed=7))
    spoil(checkpoint[part], fault)
    with refused(REASONS[fault][1], model):
        load_foreign(model, checkpoint)


net, deeper = small_resnet, lambda: small_resnet((1, 2, 1))
weights, others = net().state_dict(), net(classes=7).state_dict()
WRONG = {  # kind -> a model, what it is given, and what is said
    "one network for two": (pair, weights, r"holds no `resnet`; it has \['conv1.weight'"),
    "no agent": (pair, {"resnet": weights}, r"checkpoint holds no `agent`; it has \['resnet'\]"),
    "no resnet": (net, {"agent": {}, "epoch": 3}, r"no `resnet`; it has \['agent', 'epoch'\]"),
    "another depth": (deeper, weights, r"resnet: .* Missing key.* \"layer2.1.conv1.weight\""),
    "other classes": (net, others, r"size mismatch for fc.weight: .*\[7, 5\].*\[5, 5\]"),
    "empty parts": (net, {"resnet": {}, "agent": {}}, "resnet: .*Missing key"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_weights_of_something_else_are_refused(kind):
    make, content, said = WRONG[kind]
    model = make()
    with refused(said, model):
        load_foreign(model, content)


def test_a_file_with_more_than_plain_types_and_tensors_is_refused(tmp_path):
    torch.save({"resnet": small_resnet().state_dict(), "more": rng}, tmp_path / "evil.pt")
    with refused("evil.pt cannot be read"):
        load_foreign(small_resnet(), tmp_path / "evil.pt")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), 5, "text", None])
def test_content_that_is_no_dict_is_refused(tmp_path, content):
    with refused(f"holds a {type(content).__name__}; it must hold a dict of tensors"):
        load_foreign(small_resnet(), saved(content, tmp_path / "odd.pt"))
