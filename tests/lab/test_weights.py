"""Weights made elsewhere: what fits is loaded, everything else is refused and changes nothing."""

import io
import os
import pickle
from collections import OrderedDict

import pytest
import torch
import torchvision
from helpers import assert_same, authors_names, images, randomise, small_policy_net, small_resnet

from blockdrop_min import BlockDrop, load_foreign, policy_net, resnet
from blockdrop_min.lab.weights import start_policy

FAMILIES = pytest.mark.parametrize("family", ["cifar", "imagenet"])


def pair(family="cifar", seed=0):
    """A small random BlockDrop of three blocks: float64, eval mode."""
    return BlockDrop(
        small_resnet(family=family, seed=seed), small_policy_net(3, family, seed=seed + 1)
    )


def authors(model, agent="agent"):
    """The weights of this BlockDrop as a checkpoint of the authors, with what else those hold."""
    heads = {"vnet.weight": torch.zeros(1, 12), "vnet.bias": torch.zeros(1)}
    networks = {
        "resnet": authors_names(model.resnet.state_dict()),
        agent: authors_names(model.policy.state_dict()) | heads,
    }
    return {**networks, "epoch": 1600, "reward": 0.52, "acc": 0.936}


def copied(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(network, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def saved(content, path):
    torch.save(content, path)
    return path


# ------------------------------------------------------------------------------------------ by hand
def test_the_authors_names_by_hand():
    names = {
        "layer2.0.downsample.1.weight": 0,
        "layer1.3.bn2.bias": 1,
        "features.layer3.0.conv1.weight": 2,
        "fc.bias": 3,
    }
    assert list(authors_names(names)) == [
        "ds.1.1.weight",
        "blocks.0.3.bn2.bias",
        "features.blocks.2.0.conv1.weight",
        "fc.bias",
    ]


# ------------------------------------------------------------------------ two roads: what is loaded
@pytest.mark.parametrize("prefix", ["", "module."])
@FAMILIES
def test_a_resnet_takes_torchvisions_names(family, prefix):
    source, net = small_resnet(family=family, seed=1), small_resnet(family=family)
    load_foreign(net, {prefix + name: tensor for name, tensor in source.state_dict().items()})
    assert equal(net, source.state_dict())


def test_a_resnet_takes_a_file_of_torchvision(tmp_path):
    theirs = randomise(torchvision.models.resnet18(num_classes=4), 0).eval()
    ours = load_foreign(
        resnet(18, 4, "imagenet"), saved(theirs.state_dict(), tmp_path / "resnet18.pth")
    ).eval()
    x = images(1, 32).float()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@FAMILIES
def test_a_policy_net_takes_its_own_names(family):
    source, net = small_policy_net(3, family, seed=5), small_policy_net(3, family)
    load_foreign(net, {f"module.{name}": tensor for name, tensor in source.state_dict().items()})
    assert equal(net, source.state_dict())


@pytest.mark.parametrize("agent", ["agent", "net"])
@FAMILIES
def test_a_blockdrop_takes_both_networks_of_an_authors_checkpoint(family, agent):
    source, model = pair(family, seed=7), pair(family)
    load_foreign(model, authors(source, agent))
    assert equal(model, source.state_dict())
    x = images(3, 33).sigmoid()
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.eval()(x), source.eval()(x), strict=True)
    )


@FAMILIES
def test_each_network_takes_its_part_of_an_authors_checkpoint(family):
    source, model = pair(family, seed=7), pair(family)
    load_foreign(model.resnet, authors(source))
    load_foreign(model.policy, authors(source))
    assert equal(model, source.state_dict())


@pytest.mark.parametrize("agent", ["agent", "net"])
def test_a_policy_net_takes_a_curriculum_checkpoint_which_holds_the_agent_only(agent):
    source, net = pair(seed=7), small_policy_net(3)
    checkpoint = authors(source, agent)
    del checkpoint["resnet"]
    load_foreign(net, checkpoint)
    assert equal(net, source.policy.state_dict())


def test_an_older_agents_classifier_and_value_head_are_ignored():
    source, net = pair(seed=7), small_policy_net(3)
    checkpoint = authors(source)
    checkpoint["agent"] |= {
        "features.fc.weight": torch.zeros(10, 12),
        "features.fc.bias": torch.zeros(10),
    }
    assert equal(load_foreign(net, checkpoint), source.policy.state_dict())


@pytest.mark.parametrize("name", ["vnet.weight", "features.fc.bias"])
def test_what_is_ignored_beside_an_agent_is_left_over_beside_a_resnet(name):
    net, agent = small_resnet(), small_policy_net(3)
    load_foreign(agent, {**agent.state_dict(), name: torch.zeros(1)})
    for checkpoint in (
        {**net.state_dict(), name: torch.zeros(1)},
        {"resnet": {**net.state_dict(), name: torch.zeros(1)}},
    ):
        with pytest.raises(
            ValueError, match=rf"resnet: 0 tensors missing \[\], 1 left over \['{name}'\]"
        ):
            load_foreign(net, checkpoint)


def test_a_deeper_network_of_bottlenecks_takes_the_authors_names():
    options = dict(
        segments=(3, 2, 11), widths=(2, 3, 4), family="imagenet", bottleneck=True
    )  # 11: numbers of two digits
    source, net = small_resnet(seed=1, **options), small_resnet(**options)
    load_foreign(net, {"resnet": authors_names(source.state_dict()), "agent": {}})
    assert equal(net, source.state_dict())


@pytest.mark.parametrize("zipped", [True, False])
def test_files_old_and_new_are_read(tmp_path, zipped):
    source, model = pair(seed=7), pair()
    torch.save(authors(source), tmp_path / "ckpt.t7", _use_new_zipfile_serialization=zipped)
    load_foreign(model, str(tmp_path / "ckpt.t7"))
    assert equal(model, source.state_dict())


def test_the_model_that_was_given_comes_back():
    model = pair()
    assert load_foreign(model, authors(pair())) is model


def test_weights_without_num_batches_tracked_keep_the_networks_own_count():
    net = small_resnet()
    net.bn1.num_batches_tracked.fill_(12)
    load_foreign(net, {"resnet": authors_names(small_resnet(seed=1).state_dict()), "agent": {}})
    assert net.bn1.num_batches_tracked == 12


def test_num_batches_tracked_is_loaded_where_the_file_has_it():
    source, net = small_resnet(seed=1), small_resnet()
    source.bn1.num_batches_tracked.fill_(12)
    assert load_foreign(net, source.state_dict()).bn1.num_batches_tracked == 12


def test_the_checkpoint_stays_as_it_is():
    checkpoint = authors(pair(seed=7))
    names = [list(checkpoint["resnet"]), list(checkpoint["agent"])]
    load_foreign(pair(), checkpoint)
    assert [list(checkpoint["resnet"]), list(checkpoint["agent"])] == names


def test_the_body_starts_from_torchvisions_resnet18_without_the_second_blocks(tmp_path):
    theirs = randomise(torchvision.models.resnet18(), 3).double().eval()
    net = policy_net(4, "imagenet").double().eval()
    start_policy(net, saved(theirs.state_dict(), tmp_path / "file.pt"))
    for i in range(1, 5):
        del getattr(theirs, f"layer{i}")[1]
    theirs.fc, x = torch.nn.Identity(), images(1, 64)
    assert_same(net.embed(x), theirs(torch.nn.functional.avg_pool2d(x, 2)))


def test_the_body_starts_from_a_file_that_lacks_num_batches_tracked(tmp_path):
    net, source = (
        policy_net(4, "imagenet", width=2),
        policy_net(4, "imagenet", width=2).features.state_dict(),
    )
    start_policy(
        net,
        saved(
            {name: t for name, t in source.items() if not name.endswith("num_batches_tracked")},
            tmp_path / "file.pt",
        ),
    )
    assert torch.equal(net.features.conv1.weight, source["conv1.weight"])


@pytest.mark.parametrize("fault", ["missing", "another shape"])
def test_a_start_from_unfit_weights_is_refused_and_changes_nothing(tmp_path, fault):
    net, source = (
        policy_net(4, "imagenet", width=2),
        policy_net(4, "imagenet", width=2).features.state_dict(),
    )
    before = {name: t.clone() for name, t in net.state_dict().items()}
    if fault == "missing":
        del source["layer3.0.conv2.weight"]
    else:
        source["layer3.0.conv2.weight"] = torch.zeros(9, 8, 3, 3)
    with pytest.raises(ValueError, match=r"file.pt.*layer3.0.conv2.weight"):
        start_policy(net, saved(source, tmp_path / "file.pt"))
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_weights_that_lie_in_a_training_programs_checkpoint_are_found(tmp_path, name):
    source, net = small_resnet(seed=1), small_resnet()
    state = {f"module.{key}": tensor for key, tensor in source.state_dict().items()}
    load_foreign(net, saved({"epoch": 3, name: state, "optimizer": {}}, tmp_path / "file.pt"))
    assert equal(net, source.state_dict())


def test_a_policy_net_starts_from_weights_that_lie_in_a_checkpoint(tmp_path):
    net, source = policy_net(4, "imagenet", width=8), policy_net(4, "imagenet", width=8).features
    state = {f"module.{key}": tensor for key, tensor in source.state_dict().items()}
    start_policy(net, saved({"state_dict": state}, tmp_path / "file.pt"))
    assert equal(net.features, source.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_another_precision_are_converted(dtype):
    source, net = small_resnet(seed=1), small_resnet()
    load_foreign(
        net,
        {
            name: t.to(dtype) if t.is_floating_point() else t
            for name, t in source.state_dict().items()
        },
    )
    assert net.fc.weight.dtype == torch.float64
    assert torch.equal(net.fc.weight, source.fc.weight.to(dtype).double())


# ---------------------------------------------------------------------------- laws: what is refused
@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("layer1.0.bn1.running_var", -0.1, "too low"),
        ("layer1.0.bn1.num_batches_tracked", -1, "too low"),
        ("fc.bias", 1e300, "not finite"),  # it is, but not in the float32 of the network
    ],
)
def test_a_number_that_the_network_cannot_have_is_refused(name, number, said):
    net = small_resnet().float()
    state = {key: t.double() if t.is_floating_point() else t for key, t in copied(net).items()}
    state[name].view(-1)[0] = number
    with pytest.raises(ValueError, match=rf"{name} holds a number that .*{said}"):
        load_foreign(net, state)


def test_a_count_of_booleans_is_refused():
    net = small_resnet()
    with pytest.raises(ValueError, match=r"num_batches_tracked is torch.bool"):
        load_foreign(net, {**net.state_dict(), "bn1.num_batches_tracked": torch.tensor(True)})


def test_no_name_of_a_file_breaks_the_line_or_fills_it():
    net, name = small_resnet(), "\x1b[2J\n" + "x" * 10_000
    for content in (
        {**net.state_dict(), name: torch.ones(1)},
        {"agent": {}, name: 1},
        {"resnet": {1: 2, name: 3}},
    ):
        with pytest.raises(ValueError) as raised:
            load_foreign(net, content)
        message = str(raised.value)
        assert message.isprintable()
        assert len(message) < 400


SPOILED = {  # what is in the place of a tensor
    "no tensor": lambda t: [1.0],
    "another shape": lambda t: torch.zeros(2, 2),
    "nan": lambda t: t * torch.nan,
    "inf": lambda t: t / 0,
    "integers": lambda t: t.to(torch.int32),
    "booleans": lambda t: t > 0,
    "complex": lambda t: torch.complex(t, t),
    "eight bits": lambda t: t.to(torch.float8_e4m3fn),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "expanded": lambda t: t[:1, :1].clone().expand_as(t),
    "overlapping": lambda t: (
        t.flatten()[: t.numel() // 2].clone().as_strided(t.shape, (1,) * t.ndim)
    ),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 1.0, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
}


def spoil(state, fault):
    """Makes one of the faults in a state_dict, at its last convolution."""
    name = next(name for name in reversed(state) if name.endswith("conv2.weight"))
    if fault == "missing":
        del state[name]
    elif fault == "left over":
        state["layer9.0.conv1.weight"] = torch.zeros(1)
    elif fault == "twice":
        state[f"module.{name}"] = state[name]
    else:
        state[name] = SPOILED[fault](state[name])


REASONS = {
    "missing": r"1 tensors missing \['.*conv2.weight'\], 0 left over",
    "left over": r"0 tensors missing \[\], 1 left over \['layer9.0.conv1.weight'\]",
    "twice": "conv2.weight' is there twice, under two names",
    **dict.fromkeys(
        ("no tensor", "sparse", "meta", "expanded", "overlapping", "nested"),
        "conv2.weight is no dense tensor",
    ),
    "integers": r"conv2.weight is torch.int32 .*; this network needs torch.float64 ",
    "booleans": r"conv2.weight is torch.bool .*; this network needs torch.float64 ",
    "complex": r"conv2.weight is torch.complex128 .*; this network needs torch.float64 ",
    "eight bits": r"conv2.weight is torch.float8_e4m3fn .*; this network needs torch.float64 ",
    "quantized": r"conv2.weight is torch.qint8 .*; this network needs torch.float64 ",
    "another shape": r"conv2.weight is .* \[2, 2\]; this network needs .* \[\d+, \d+, 3, 3\]",
    "nan": "conv2.weight holds a number that is not finite",
    "inf": "conv2.weight holds a number that is not finite",
}
faults = pytest.mark.parametrize("fault", REASONS)
pytestmark = pytest.mark.filterwarnings("ignore:.*(nested|quantize)")  # PyTorch calls them old


@faults
@pytest.mark.parametrize("make", [small_resnet, lambda: small_policy_net(3)])
def test_a_state_dict_with_a_fault_is_refused_and_changes_nothing(make, fault):
    net = make()
    before, state = (
        copied(net),
        OrderedDict((name, tensor + 1) for name, tensor in net.state_dict().items()),
    )
    spoil(state, fault)
    with pytest.raises(ValueError, match=REASONS[fault]):
        load_foreign(net, state)
    assert equal(net, before)


@faults
@pytest.mark.parametrize("part", ["resnet", "agent"])
def test_an_authors_checkpoint_with_a_fault_in_one_network_changes_neither(part, fault):
    model, checkpoint = pair(), authors(pair(seed=7))
    before = copied(model)
    spoil(checkpoint[part], fault)
    with pytest.raises(ValueError, match=REASONS[fault]):
        load_foreign(model, checkpoint)
    assert equal(model, before)


@pytest.mark.parametrize("part", ["resnet", "agent"])
def test_a_blockdrop_needs_both_networks(part):
    model, checkpoint = pair(), authors(pair(seed=7))
    before = copied(model)
    del checkpoint[part]
    with pytest.raises(ValueError, match=f"holds no `{part}`; it has "):
        load_foreign(model, checkpoint)
    assert equal(model, before)


def test_a_blockdrop_refuses_the_weights_of_one_network():
    model = pair()
    with pytest.raises(ValueError, match=r"checkpoint holds no `resnet`; it has \['conv1.weight'"):
        load_foreign(model, model.resnet.state_dict())


def test_a_resnet_refuses_a_curriculum_checkpoint():
    with pytest.raises(ValueError, match=r"holds no `resnet`; it has \['agent', 'epoch'\]"):
        load_foreign(small_resnet(), {"agent": {}, "epoch": 3})


def test_a_network_of_another_depth_is_refused():
    with pytest.raises(ValueError, match=r"checkpoint, resnet: 10 tensors missing"):
        load_foreign(small_resnet((1, 2, 1)), small_resnet().state_dict())


def test_a_network_with_another_number_of_classes_is_refused():
    with pytest.raises(
        ValueError,
        match=r"fc.weight is .* \[7, 5\]; this network needs .* \[5, 5\]",
    ):
        load_foreign(small_resnet(), small_resnet(classes=7).state_dict())


# ------------------------------------------------------------------------------------- edges: files
class Malicious:
    """A pickle of this runs a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("plain", [True, False])
def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path, plain):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Malicious(trace), protocol=2)) if plain else torch.save(
        {"resnet": Malicious(trace)}, path
    )
    with pytest.raises(
        ValueError,
        match=r"evil.pt cannot be read \(\w+\): it is damaged, .* or holds more",
    ):
        load_foreign(small_resnet(), path)
    assert not trace.exists()


def test_the_malicious_file_is_indeed_malicious(tmp_path):
    torch.load(
        io.BytesIO(saved_bytes({"resnet": Malicious(tmp_path / "trace")})), weights_only=False
    )
    assert (tmp_path / "trace").exists()


def saved_bytes(content):
    torch.save(content, buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    data = saved_bytes(small_resnet().state_dict())
    (tmp_path / "cut.pt").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"cut.pt cannot be read \(\w+\): it is damaged"):
        load_foreign(small_resnet(), tmp_path / "cut.pt")


def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.pt does not exist"):
        load_foreign(small_resnet(), tmp_path / "nowhere.pt")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only a plain file may stand there"):
        load_foreign(small_resnet(), tmp_path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), 5, "text", None])
def test_content_that_is_no_dict_is_refused(tmp_path, content):
    with pytest.raises(
        ValueError, match=f"holds a {type(content).__name__}; it must hold a dict of tensors"
    ):
        load_foreign(small_resnet(), saved(content, tmp_path / "odd.pt"))


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {1: torch.zeros(1)}, {"resnet": {}, "agent": {}}]
)
def test_a_dict_without_the_networks_tensors_is_refused(content):
    with pytest.raises(ValueError, match=r"checkpoint, resnet: \d+ tensors missing"):
        load_foreign(small_resnet(), content)


def test_every_message_is_one_line(tmp_path):
    torch.save({"resnet": Malicious(tmp_path / "trace")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read") as problem:
        load_foreign(small_resnet(), tmp_path / "evil.pt")
    assert "\n" not in str(problem.value)
