"""Pretraining: random policies, how dropping sets in, and the step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    assert_equal,
    assert_no_gradient,
    assert_same,
    batch,
    learning,
    pair,
    rng,
    seeds,
    state,
)
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min.pretraining import Pretraining, drop_fraction, pretrain_step, random_policies


def ready(seed=0):
    """A small BlockDrop of three blocks, ready for pretraining."""
    return learning(pair(seed=seed), resnet=True, policy=False)


# ------------------------------------------------------------------------------------------ by hand
@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0), (0.2, 0), (0.3, 0.375), (0.4, 0.75), (1, 0.75)]
)
def test_dropping_sets_in_between_a_fifth_and_two_fifths_of_pretraining(progress, expected):
    assert drop_fraction(progress, 0.75) == pytest.approx(expected)


def test_random_policies_drop_blocks_in_the_stated_fraction_of_the_images():
    u = random_policies(20_000, 300, 0.4, rng(0))
    assert (u.mean(1) < 1).double().mean().item() == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_the_keep_rates_of_random_policies_are_uniform_from_15_percent_to_all(fraction):
    rates = random_policies(int(20_000 / fraction), 400, fraction, rng(0)).mean(1)
    rates = rates[rates < 1]  # of the images that drop blocks
    assert rates.mean().item() == pytest.approx((0.15 + 1) / 2, abs=0.01)
    assert rates.std().item() == pytest.approx((1 - 0.15) / 12**0.5, abs=0.01)
    assert rates.min() > 0.05  # 0.15, less four standard deviations of a mean over 400 blocks


def test_random_policies_drop_each_block_on_its_own():
    u = random_policies(40_000, 2, 1.0, rng(0)).bool()
    both = (u[:, 0] & u[:, 1]).double().mean().item()
    one = u.double().mean().item()
    # With the rate r uniform in (0.15, 1), E r = 0.575; given r the blocks are independent, so
    # that both are kept with probability E r^2.
    assert one == pytest.approx(0.575, abs=0.01)
    assert both == pytest.approx((1 - 0.15**3) / 3 / 0.85, abs=0.01)


# ---------------------------------------------------------------------------------------- two roads
def test_a_plain_pretraining_step_is_cross_entropy_of_the_full_network():
    model = ready()
    x, y = batch()
    expected = F.cross_entropy(copy.deepcopy(model).resnet(x), y)
    loss, _ = pretrain_step(model, x, y, 0.0, generator=None)  # and draws no random numbers
    assert_same(loss, expected, 1e-6)


def test_pretraining_runs_each_image_under_a_policy_of_its_own():
    model = ready()
    x, _ = batch(12)
    u = random_policies(12, 3, 1.0, rng(4))
    logits = copy.deepcopy(model).resnet(x, u, execute="sparse")
    y = (logits.argmax(1) + torch.arange(12) % 2) % 5
    loss, seen = pretrain_step(model, x, y, 1.0, rng(4))
    assert_same(loss, F.cross_entropy(logits, y), 1e-5)
    assert seen["correct"].tolist() == [True, False] * 6


# --------------------------------------------------------------------------------------------- laws
def test_a_pretraining_stage_drops_from_its_own_point_on():
    x, y = batch(12)
    stage = Pretraining(drop=1.0, drop_from=0.5)
    for progress, fraction in ((0.5, 0.0), (0.7, 1.0)):
        expected, _ = pretrain_step(ready(), x, y, fraction, rng(4))
        assert_same(stage.step(ready(), x, y, 0, progress, rng(4))[0], expected, 1e-6)


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_random_policies_are_of_0_and_1_and_repeatable(seed, B, K, fraction):
    u = random_policies(B, K, fraction, rng(seed))
    assert u.shape == (B, K)
    assert set(u.unique().tolist()) <= {0.0, 1.0}
    assert_equal(random_policies(B, K, fraction, rng(seed)), u)


def test_a_pretraining_step_leaves_the_policy_network_bitwise_as_it_was():
    model = ready()
    x, y = batch()
    before = state(model.policy)
    pretrain_step(model, x, y, 0.5, rng(0))[0].backward()
    assert_equal(state(model.policy), before)
    assert_no_gradient(model.policy)


# -------------------------------------------------------------------------------------------- edges
def test_a_fraction_of_0_drops_nothing():
    assert random_policies(50, 9, 0.0, rng(0)).min() == 1
