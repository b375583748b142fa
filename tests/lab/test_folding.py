"""BatchNorm folded: the same results, whatever is kept."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    EXECUTIONS,
    assert_equal,
    assert_same,
    few,
    images,
    pictures,
    policies,
    randomise,
    seeds,
    state,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from blockdrop_min import BlockDrop, FixedPolicy, MaskedResNet, fast, policy_net, resnet
from blockdrop_min.masked_resnet import BasicBlock, Bottleneck


@st.composite
def cases(draw, families=("cifar", "imagenet")):
    """A random float32 network, images and policies: a namespace with net, x and u."""
    family = draw(st.sampled_from(families))
    bottleneck = draw(st.booleans())
    seed = draw(seeds)
    segments = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    several = st.lists(st.integers(1, 20), min_size=len(segments), max_size=len(segments))
    widths = draw(several.map(sorted))
    block = Bottleneck if bottleneck else BasicBlock
    net = MaskedResNet(block, segments, widths, draw(st.integers(1, 5)), family)
    randomise(net, seed).eval()
    height = draw(st.integers(1, 20))
    width = draw(st.integers(1, 20))
    B = draw(st.integers(0, 5))
    u = policies(B, net.num_blocks, seed, keep=draw(st.sampled_from((0.0, 0.3, 0.5, 0.7, 1.0))))
    return SimpleNamespace(net=net, x=images(B, height, width, seed).float(), u=u, seed=seed)


def assert_close(actual, expected):
    """Equal to 1e-4 of the largest number: sums in another order, over a random network."""
    scale = expected.abs().max().clamp_min(1) if expected.numel() else 1
    assert_same(actual / scale, expected / scale, 1e-4)


def small_pair():
    return BlockDrop(randomise(resnet(8), 0), randomise(policy_net(3), 1)).eval()


# ---------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize("execute", EXECUTIONS)
@few
@given(case=cases())
def test_fast_logits_are_those_of_the_network(execute, case):
    expected = case.net(case.x, case.u, execute)
    assert_close(fast(case.net)(case.x, case.u, execute), expected)


@few
@given(cases())
def test_fast_logits_without_a_policy_are_those_of_the_network(case):
    assert_close(fast(case.net)(case.x), case.net(case.x))


def test_a_snapshot_of_a_snapshot_is_the_same():
    quick = fast(small_pair())
    x = pictures(4, 16).float()
    assert_equal(fast(quick)(x), quick(x))


@given(seeds, st.integers(0, 5), st.sampled_from(((8, 9), (16, 5), (3, 7))), st.booleans())
def test_a_fast_blockdrop_keeps_the_same_blocks_and_gives_the_same_logits(
    seed, B, sizes, half_size
):
    width, side = sizes
    net = randomise(resnet(8, num_classes=4), seed)
    policy = randomise(policy_net(3, width=width, half_size=half_size), seed + 1)
    model = BlockDrop(net, policy, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)).eval()
    x = pictures(B, side, seed=seed).float()
    logits, u = fast(model)(x)
    expected, expected_u = model(x)
    assert_equal(u, expected_u)
    assert_close(logits, expected)


@pytest.mark.parametrize(
    ("depth", "family", "side"),
    [(32, "cifar", 32), (110, "cifar", 32), (18, "imagenet", 65), (50, "imagenet", 64)],
)
def test_the_real_networks_give_the_same_logits_fast(depth, family, side):
    net = randomise(resnet(depth, family=family), 3).eval()
    x = images(3, side).float()
    u = policies(3, net.num_blocks)
    assert_close(fast(net)(x, u), net(x, u, execute="sparse"))


def test_a_fast_policy_network_gives_the_same_probabilities():
    policy = randomise(policy_net(5, width=8, half_size=True), 0).eval()
    assert_same(fast(policy)(images(4).float()), policy(images(4).float()), 1e-5)


# --------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("bottleneck", [False, True])
def test_no_batchnorm_is_left(bottleneck):
    with_shortcuts = resnet(50 if bottleneck else 18, family="imagenet")
    for name, module in fast(with_shortcuts).named_modules():
        assert not isinstance(module, nn.BatchNorm2d), name


@pytest.mark.parametrize("part", ["resnet", "policy"])
def test_nothing_of_a_snapshot_has_a_gradient(part):
    model = small_pair()
    for name, p in getattr(fast(model), part).named_parameters():
        assert not p.requires_grad, name
    for name, p in getattr(model, part).named_parameters():
        assert p.requires_grad, name


def test_a_large_batch_is_the_same_as_its_images_one_by_one():
    quick = fast(randomise(resnet(8), 0))
    x = images(67).float()
    u = policies(67, 3)
    assert_close(quick(x, u), torch.cat([quick(x[i : i + 1], u[i]) for i in range(67)]))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_inf_and_nan_of_a_dropped_block_reach_no_image(bad):
    net = randomise(resnet(8), 0).eval()
    u = torch.tensor([[1, 0, 1], [1, 1, 1]])
    expected = net(images(2).float(), u)[0]
    net.layer2[0].conv1.weight.data.fill_(bad)
    logits = fast(net)(images(2).float(), u)
    assert_close(logits[0], expected)
    assert logits[1].isnan().all()


def test_the_images_and_the_model_stay_as_they_are():
    net = randomise(resnet(8), 0).eval()
    x = images(3).float().contiguous(memory_format=torch.channels_last)
    x_before = x.clone()
    before = state(net)
    fast(net)(x, policies(3, 3))
    assert_equal(x, x_before)
    assert_equal(state(net), before)


def test_a_snapshot_does_not_follow_the_model():
    net = randomise(resnet(8), 0).eval()
    quick = fast(net)
    x = images(2).float()
    before = quick(x)
    randomise(net, 1)
    assert_equal(quick(x), before)


def test_a_fast_model_of_a_model_in_training_mode_is_in_eval_mode():
    model = small_pair().train()
    x = pictures(4).float()
    expected, _ = copy.deepcopy(model).eval()(x)
    quick = fast(model)
    assert_close(quick(x)[0], expected)
    assert model.training
    assert {module.training for module in quick.modules()} == {False}


def test_fast_logits_carry_no_gradient_but_may_be_used_where_one_is_taken():
    logits = fast(randomise(resnet(8), 0))(images(2).float())
    assert not logits.requires_grad
    assert not logits.is_inference()


# -------------------------------------------------------------------------------------------- edges
def test_a_fixed_policy_works():
    model = BlockDrop(randomise(resnet(8), 0), FixedPolicy(torch.tensor([1.0, 0.0, 1.0]))).eval()
    x = pictures(2).float()
    logits, u = fast(model)(x)
    expected, expected_u = model(x)
    assert_equal(u, expected_u)
    assert_close(logits, expected)


@pytest.mark.parametrize("u", [torch.ones(2, 4), torch.full((3,), 0.5)])
def test_a_bad_policy_is_refused(u):
    with pytest.raises(ValueError, match="u "):
        fast(resnet(8))(images(2).float(), u)
