"""BatchNorm folded: the same results, whatever is kept."""

import copy

import pytest
import torch
from helpers import assert_equal, assert_same, cases, few, images, policies, randomise, seeds, state
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from blockdrop_min import BlockDrop, FixedPolicy, fast, policy_net, resnet


def assert_close(actual, expected):
    """Equal to 1e-4 of the largest number: sums in another order, over a random network."""
    scale = expected.abs().max().clamp_min(1) if expected.numel() else 1
    assert_same(actual / scale, expected / scale, 1e-4)


def assert_alike(model, x):
    """A fast copy of a BlockDrop keeps the same blocks and gives the same logits. Returns it."""
    quick = fast(model)
    expected, expected_u = copy.deepcopy(model).eval()(x)
    logits, u = quick(x)
    assert_equal(u, expected_u)
    assert_close(logits, expected)
    return quick


def small():
    return randomise(resnet(8), 0).eval()


def small_pair():
    return BlockDrop(small(), randomise(policy_net(3), 1)).eval()


# ---------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize("execute", ["masked", "sparse"])
@few
@given(case=cases(min_batch=0))
def test_fast_logits_are_those_of_the_network(execute, case):
    quick = fast(case.net)
    assert_close(quick(case.x, case.u, execute), case.net(case.x, case.u, execute))
    assert_close(quick(case.x), case.net(case.x))


@given(seeds, st.integers(0, 5), st.sampled_from(((8, 9), (16, 5), (3, 7), None)), st.booleans())
def test_a_fast_blockdrop_keeps_the_same_blocks_and_gives_the_same_logits(seed, B, sizes, half):
    width, side = sizes or (8, 9)
    policy = randomise(policy_net(3, width=width, half_size=half), seed + 1)
    policy = policy if sizes else FixedPolicy(torch.tensor([1.0, 0.0, 1.0]))
    net = randomise(resnet(8, num_classes=4), seed)
    model = BlockDrop(net, policy, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)).eval()
    x = images(B, side, seed=seed).float().sigmoid()
    quick = assert_alike(model, x)
    assert_equal(fast(quick)(x), quick(x))


REAL = [(32, "cifar", 32), (110, "cifar", 32), (18, "imagenet", 65), (50, "imagenet", 64)]


@pytest.mark.parametrize(("depth", "family", "side"), REAL)
def test_the_real_networks_give_the_same_logits_fast_without_a_batchnorm(depth, family, side):
    net = randomise(resnet(depth, family=family), 3).eval()
    quick, x, u = fast(net), images(3, side).float(), policies(3, net.num_blocks)
    assert_close(quick(x, u), net(x, u, execute="sparse"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())


# --------------------------------------------------------------------------------------------- laws
def test_nothing_of_a_fast_copy_has_a_gradient():
    model = small_pair()
    assert {p.requires_grad for p in fast(model).parameters()} == {False}
    assert {p.requires_grad for p in model.parameters()} == {True}
    logits = fast(model.resnet)(images(2).float())
    assert not logits.requires_grad
    assert not logits.is_inference()  # it may be used where a gradient is taken


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_inf_and_nan_of_a_dropped_block_reach_no_image(bad):
    net = small()
    u = torch.tensor([[1, 0, 1], [1, 1, 1]])
    expected = net(images(2).float(), u)[0]
    net.layer2[0].conv1.weight.data.fill_(bad)
    logits = fast(net)(images(2).float(), u)
    assert_close(logits[0], expected)
    assert logits[1].isnan().all()


def test_the_images_and_the_model_stay_as_they_are_and_a_copy_does_not_follow_the_model():
    net, x = small(), images(3).float().contiguous(memory_format=torch.channels_last)
    before = x.clone(), state(net)
    quick = fast(net)
    logits = quick(x, policies(3, 3))
    assert_equal((x, state(net)), before)
    randomise(net, 1)
    assert_equal(quick(x, policies(3, 3)), logits)


def test_a_fast_copy_of_a_model_in_training_mode_is_in_eval_mode():
    model = small_pair().train()
    quick = assert_alike(model, images(4).float().sigmoid())
    assert model.training
    assert {module.training for module in quick.modules()} == {False}
