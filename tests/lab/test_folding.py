"""Fast inference: the same results as the readable path, whatever is kept."""

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from helpers import EXECUTIONS, assert_same, few, images, policies, randomise, seeds
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import BlockDrop, FixedPolicy, MaskedResNet, fast, policy_net, resnet
from blockdrop_min.masked_resnet import BasicBlock, Bottleneck

module = importlib.import_module(
    "blockdrop_min.fast"
)  # the name blockdrop_min.fast is the function


@st.composite
def cases(draw, families=("cifar", "imagenet")):
    """A random float32 network, images and policies: a namespace with net, x and u."""
    family = draw(st.sampled_from(families))
    bottleneck = draw(st.booleans())
    seed = draw(seeds)
    segments = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    widths = draw(
        st.lists(st.integers(1, 20), min_size=len(segments), max_size=len(segments)).map(sorted)
    )
    block = Bottleneck if bottleneck else BasicBlock
    net = randomise(
        MaskedResNet(block, segments, widths, draw(st.integers(1, 5)), family), seed
    ).eval()
    height = draw(st.integers(1, 20))
    width = draw(st.integers(1, 20))
    B = draw(st.integers(0, 5))
    u = policies(B, net.num_blocks, seed, keep=draw(st.sampled_from((0.0, 0.3, 0.5, 0.7, 1.0))))
    return SimpleNamespace(net=net, x=images(B, height, width, seed).float(), u=u, seed=seed)


def assert_close(actual, expected):
    """Equal to 1e-4 of the largest number: sums in another order, over the layers of a random network."""
    scale = expected.abs().max().clamp_min(1) if expected.numel() else 1
    assert_same(actual / scale, expected / scale, 1e-4)


# ---------------------------------------------------------------------------------------- two roads
@given(cases())
def test_fast_logits_are_those_of_the_readable_network(case):
    quick = fast(case.net)
    for u in (case.u, None):
        assert_close(quick(case.x, u), case.net(case.x, u, execute="sparse"))


def test_a_snapshot_of_a_snapshot_is_the_same_and_none_has_gradients():
    model = BlockDrop(randomise(resnet(8), 0), randomise(policy_net(3), 1)).eval()
    x = images(4, 16).float()
    for part in (model, model.resnet, model.policy):
        quick = fast(part)
        assert not any(p.requires_grad for p in quick.parameters())
        assert any(p.requires_grad for p in part.parameters())
        for found, expected in zip(fast(quick)(x), quick(x), strict=True):
            assert_equal(found, expected)


@few
@given(cases(), st.sampled_from(EXECUTIONS))
def test_both_executions_are_the_same_and_match(case, execute):
    assert_close(
        fast(case.net)(case.x, case.u, execute=execute), case.net(case.x, case.u, execute=execute)
    )


@given(seeds, st.integers(0, 5), st.sampled_from(((8, 9), (16, 5), (3, 7))), st.booleans())
def test_a_fast_blockdrop_keeps_the_same_blocks_and_gives_the_same_logits(seed, B, sizes, half):
    width, side = sizes
    net = resnet(8, num_classes=4)
    policy = policy_net(3, width=width, half=half)
    model = BlockDrop(
        randomise(net, seed), randomise(policy, seed + 1), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    ).eval()
    x = images(B, side, seed=seed).float()
    (logits, u) = fast(model)(x)
    (expected, expected_u) = model(x)
    assert_equal(u, expected_u)
    assert_close(logits, expected)


@pytest.mark.parametrize(
    "depth, family, side",
    [(32, "cifar", 32), (110, "cifar", 32), (18, "imagenet", 65), (50, "imagenet", 64)],
)
def test_the_real_networks_give_the_same_logits_fast(depth, family, side):
    net = randomise(resnet(depth, family=family), 3).eval()
    x = images(3, side).float()
    u = policies(3, net.num_blocks)
    assert_close(fast(net)(x, u), net(x, u, execute="sparse"))


def test_a_fast_policy_network_gives_the_same_probabilities():
    policy = randomise(policy_net(5, width=8, half=True), 0).eval()
    assert_same(fast(policy)(images(4).float()), policy(images(4).float()), 1e-5)


# --------------------------------------------------------------------------------------------- laws
def test_a_large_batch_is_the_same_as_its_images_one_by_one():
    net = randomise(resnet(8), 0).eval()
    count = 2 * module.piece_size(torch.empty(1)) + 3
    x = images(count).float()
    u = policies(count, 3)
    quick = fast(net)
    assert_close(quick(x, u), torch.cat([quick(x[i : i + 1], u[i]) for i in range(len(x))]))


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
    state = copy.deepcopy(net.state_dict())
    before = x.clone()
    fast(net)(x, policies(3, 3))
    assert_equal(x, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_a_snapshot_does_not_follow_the_model():
    net = randomise(resnet(8), 0).eval()
    quick = fast(net)
    x = images(2).float()
    before = quick(x)
    randomise(net, 1)
    assert_equal(quick(x), before)


def test_a_fast_model_of_a_model_in_training_mode_is_in_eval_mode():
    model = BlockDrop(randomise(resnet(8), 0), randomise(policy_net(3), 1)).train()
    expected = copy.deepcopy(model).eval()(images(4).float())
    assert_close(fast(model)(images(4).float())[0], expected[0])
    assert model.training
    assert not any(module.training for module in fast(model).modules())


def test_fast_logits_carry_no_gradient_but_may_be_used_where_one_is_taken():
    logits = fast(randomise(resnet(8), 0))(images(2).float())
    assert not logits.requires_grad
    assert not logits.is_inference()


# -------------------------------------------------------------------------------------------- edges
def test_a_fixed_policy_works():
    model = BlockDrop(randomise(resnet(8), 0), FixedPolicy(torch.tensor([1.0, 0.0, 1.0]))).eval()
    for ours, expected in zip(
        fast(model)(images(2).float()), model(images(2).float()), strict=True
    ):
        assert_close(ours, expected)


@pytest.mark.parametrize("u", [torch.ones(2, 4), torch.full((3,), 0.5)])
def test_a_bad_policy_is_refused(u):
    with pytest.raises(ValueError, match="u "):
        fast(resnet(8))(images(2).float(), u)
