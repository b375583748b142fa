"""BlockDrop, the pair of networks; FixedPolicy, in the place of a policy network; static_policy."""

import re

import pytest
import torch
from helpers import (
    Given,
    assert_equal,
    assert_same,
    cases,
    images,
    images_met,
    pictures,
    policies,
    rng,
    seeds,
    small_policy_net,
    small_resnet,
)
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import BlockDrop, FixedPolicy, greedy, static_policy

segments = st.lists(st.integers(1, 20), min_size=1, max_size=5)
kinds = st.sampled_from(["first", "random", "distribute"])


def pair(seed=0, **options):
    """A small random BlockDrop of three blocks: float64, eval mode."""
    policy = small_policy_net(3, seed=seed + 1)
    return BlockDrop(small_resnet(seed=seed), policy, **options).double().eval()


# -------------------------------------------------------------------------------- the pair, by hand
def test_uint8_images_are_scaled_to_1_and_normalised_by_channel():
    model = pair(mean=(0.0, 0.5, 0.2), std=(1.0, 0.5, 0.4))
    x = model.prepare(torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1))
    # (1 - 0.5) / 0.5 and (51 / 255 - 0.2) / 0.4
    assert x.flatten().tolist() == pytest.approx([0, 1, 0], abs=1e-6)


def test_float_images_are_normalised_but_not_scaled():
    model = pair(mean=(1.0, 1.0, 1.0), std=(2.0, 2.0, 2.0))
    assert model.prepare(torch.full((1, 3, 1, 1), 5.0)).flatten().tolist() == [2, 2, 2]


# ------------------------------------------------------------------------------ the pair, two roads
@given(cases(families=("cifar",)))
def test_the_logits_are_those_of_the_resnet_under_the_greedy_policy(case):
    policy = small_policy_net(case.K, seed=case.seed)
    x = case.x.sigmoid()
    logits, u = BlockDrop(case.net, policy).eval()(x)
    assert_equal(u, greedy(policy(x)))
    assert_same(logits, case.net(x, u, "masked"))


def test_both_networks_see_the_normalised_images():
    model = pair(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).float()
    x = torch.randint(256, (4, 3, 9, 9), generator=rng(0), dtype=torch.uint8)
    mean = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    std = torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    prepared = (x / 255 - mean) / std
    logits, u = model(x)
    assert_equal(u, greedy(model.policy(prepared)))
    assert_same(logits, model.resnet(prepared, u), 1e-4)


def test_in_training_mode_blocks_run_masked():
    model = pair().train()
    x = pictures(6)
    logits, u = model(x)
    assert 0 < u.mean() < 1
    assert_same(logits, model.resnet(x, u, "masked"))


@pytest.mark.parametrize("training", [False, True])
def test_a_block_meets_the_images_that_keep_it_in_use_and_all_images_in_training(training):
    model = pair().train(training)
    counts = images_met(model.resnet)
    kept = model(pictures(6))[1].sum(0).tolist()
    assert set(kept) - {0, 6}
    assert counts == ([6] * 3 if training else [count for count in kept if count])


# ----------------------------------------------------------------------------------- the pair, laws
def test_the_images_move_to_memory_format_channels_last():
    assert pair().prepare(pictures(2)).is_contiguous(memory_format=torch.channels_last)


def test_images_of_another_memory_format_give_the_same():
    model = pair()
    x = pictures(4)
    assert_same(model(x.contiguous(memory_format=torch.channels_last)), model(x))


def test_normalisation_is_no_part_of_the_weights():
    assert {name.split(".")[0] for name in pair().state_dict()} == {"resnet", "policy"}


def test_the_images_given_stay_as_they_are():
    x = pictures(3)
    before = x.clone()
    pair()(x)
    assert_equal(x, before)


# ------------------------------------------------------------------- the images that the pair takes
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_integers_of_any_width_are_bytes(dtype):
    x = torch.randint(256, (4, 3, 9, 9), generator=rng(0), dtype=torch.uint8)
    model = pair().float()
    assert_equal(model(x.to(dtype)), model(x))


def test_images_of_another_precision_are_those_of_the_network():
    model = pair().float()
    x = pictures(3)  # float64, as NumPy makes them
    assert_equal(model(x), model(x.float()))


def test_an_array_is_as_good_as_a_tensor():
    x = pictures(2)
    assert_equal(pair()(x.numpy()), pair()(x))


def test_a_grey_image_is_the_same_in_three_channels():
    x = pictures(2)[:, :1]
    assert_equal(pair()(x), pair()(x.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("shape", [(3, 9, 9), (1, 9, 9, 3), (2, 4, 9, 9), (2, 2, 9, 9)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=f"images have shape {re.escape(str(list(shape)))}"):
        pair()(torch.rand(shape))


@pytest.mark.parametrize("value", [-0.01, 1.01, torch.nan, torch.inf])
def test_floats_outside_0_to_1_are_refused(value):
    x = pictures(2)
    x[1, 2, 3, 4] = value
    model = BlockDrop(small_resnet(), small_policy_net(3), mean=(0.5,) * 3).double().eval()
    with pytest.raises(ValueError, match=r"images of torch.float64 are out of range"):
        model(x)


def test_a_pair_that_does_not_normalise_takes_floats_as_they_are():
    model = BlockDrop(small_resnet(), small_policy_net(3)).eval()
    x = images(2)  # of both signs
    s = model.policy(x)
    assert_same(model(x)[0], model.resnet(x, greedy(s), execute="sparse"))


@pytest.mark.parametrize("value", [-1, 256])
def test_integers_outside_a_byte_are_refused(value):
    x = torch.zeros(2, 3, 9, 9, dtype=torch.int64)
    x[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"images of torch.int64 are out of range"):
        pair()(x)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_images_that_are_no_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match=f"images are {dtype}"):
        pair()(torch.zeros(1, 3, 9, 9, dtype=dtype))


# ---------------------------------------------------------------------------------- the pair, edges
def test_the_model_keeps_a_tie():
    model = BlockDrop(small_resnet(), Given(torch.tensor([[0.5, 0.49, 0.51]]))).double().eval()
    assert model(pictures(1))[1].tolist() == [[1, 0, 1]]


def test_a_batch_without_images_gives_no_logits_and_no_policies():
    logits, u = pair()(pictures(0))
    assert logits.shape == (0, 5)
    assert u.shape == (0, 3)


@pytest.mark.parametrize("policy", [small_policy_net(4), FixedPolicy(torch.ones(4))])
def test_networks_that_disagree_in_K_are_refused(policy):
    with pytest.raises(
        ValueError, match="the ResNet has 3 blocks but the policy network decides on 4"
    ):
        BlockDrop(small_resnet(), policy)


# -------------------------------------------------------------------------------------- FixedPolicy
@given(cases(families=("cifar",)), seeds)
def test_a_fixed_policy_is_the_same_for_every_image(case, seed):
    u = policies(1, case.K, seed)[0]
    x = case.x.sigmoid()
    logits, used = BlockDrop(case.net, FixedPolicy(u)).eval()(x)
    assert_equal(used.double(), u.expand(case.B, -1))
    assert_same(logits, case.net(x, u))


def test_a_fixed_policy_has_nothing_to_learn_and_is_saved():
    fixed = FixedPolicy(torch.tensor([1, 0, 1]))
    assert list(fixed.parameters()) == []
    assert fixed.state_dict()["u"].tolist() == [1, 0, 1]
    assert fixed.num_blocks == 3


# --------------------------------------------------------------------------- static_policy, by hand
@pytest.mark.parametrize(
    ("kind", "keep", "expected"),
    [
        ("first", 4, [1, 1, 1, 1, 0, 0, 0, 0, 0]),
        ("distribute", 3, [1, 0, 0, 1, 0, 0, 1, 0, 0]),
        ("distribute", 5, [1, 1, 0, 1, 1, 0, 1, 0, 0]),
    ],
)
def test_a_static_policy_by_hand(kind, keep, expected):
    assert static_policy(kind, keep, (3, 3, 3)).tolist() == expected


# ------------------------------------------------------------------------------ static_policy, laws
@given(kinds, segments, st.data(), seeds)
def test_a_static_policy_keeps_exactly_as_many_blocks_as_asked(kind, segments, data, seed):
    keep = data.draw(st.integers(0, sum(segments)))
    u = static_policy(kind, keep, segments, rng(seed))
    assert u.shape == (sum(segments),)
    assert u.dtype == torch.float32
    assert sorted(u.tolist()) == [0.0] * (sum(segments) - keep) + [1.0] * keep


@given(segments, st.data())
def test_first_keeps_the_first_blocks(segments, data):
    keep = data.draw(st.integers(0, sum(segments)))
    assert static_policy("first", keep, segments)[:keep].all()


@given(segments, st.data())
def test_distribute_keeps_as_many_in_each_segment_unless_one_is_full(segments, data):
    keep = data.draw(st.integers(0, sum(segments)))
    kept = [int(part.sum()) for part in static_policy("distribute", keep, segments).split(segments)]
    for i, (count, size) in enumerate(zip(kept, segments, strict=True)):
        assert count == size or count >= max(kept) - 1, f"segment {i}"


@given(segments, st.data())
def test_distribute_keeps_the_first_blocks_of_each_segment(segments, data):
    u = static_policy("distribute", data.draw(st.integers(0, sum(segments))), segments)
    for i, part in enumerate(u.split(segments)):
        assert (part.diff() <= 0).all(), f"segment {i}"


@given(segments, seeds)
def test_random_is_reproducible_from_its_generator(segments, seed):
    keep = sum(segments) // 2
    u = static_policy("random", keep, segments, rng(seed))
    assert_equal(static_policy("random", keep, segments, rng(seed)), u)


def test_random_keeps_every_block_equally_often():
    g = rng(0)
    N = 3000
    kept = torch.stack([static_policy("random", 2, (3, 2), g) for _ in range(N)]).mean(0)
    assert ((kept - 0.4).abs() <= 4.5 * (0.4 * 0.6 / N) ** 0.5).all()


# ----------------------------------------------------------------------------- static_policy, edges
@pytest.mark.parametrize("keep", [-1, 10])
@pytest.mark.parametrize("kind", ["first", "random", "distribute"])
def test_keeping_more_than_all_or_less_than_none_is_refused(kind, keep):
    with pytest.raises(ValueError, match=f"keep is {keep}; it must lie between 0 and K = 9"):
        static_policy(kind, keep, (3, 3, 3))


def test_an_unknown_kind_of_static_policy_is_refused():
    expected = 'kind is \'last\'; it must be "first", "random" or "distribute"'
    with pytest.raises(ValueError, match=expected):
        static_policy("last", 1, (3,))
