"""The reward: 1 - (|u|_0 / K)^2 for a right prediction, -gamma for a wrong one.

And what is right: `correct_under`.
"""

import re

import pytest
import torch
from helpers import (
    assert_equal,
    assert_same,
    batch,
    few,
    images_met,
    pair,
    policies,
    rng,
    seeds,
    state,
)
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import reward
from blockdrop_min.rewards import correct_under

gammas = st.floats(0, 1e6)


@st.composite
def outcomes(draw):
    """Policies [B, K] and whether predictions are right [B]."""
    B, K, seed = draw(st.integers(1, 5)), draw(st.integers(1, 20)), draw(seeds)
    return policies(B, K, seed), torch.rand(B, generator=rng(seed + 1)) < 0.5


# ------------------------------------------------------------------------------------------ by hand
def test_two_images_by_hand():
    u = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    R = reward(u, torch.tensor([True, False]), gamma=5)
    assert R.tolist() == [0.75, -5.0]  # 1 - (2/4)^2, and a wrong one


def test_right_with_no_block_earns_1_and_with_all_blocks_0():
    u = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert reward(u, torch.tensor([True, True]), 1).tolist() == [1.0, 0.0]


# ---------------------------------------------------------------------------------------- two roads
@given(outcomes(), gammas)
def test_the_reward_is_that_of_a_plain_loop(case, gamma):
    expected = []
    for policy, right in zip(*(t.tolist() for t in case), strict=True):
        kept = sum(1 for keep in policy if keep == 1)
        expected.append(1 - (kept / len(policy)) ** 2 if right else -gamma)
    before = [t.clone() for t in case]
    assert_same(reward(*case, gamma), torch.tensor(expected, dtype=torch.float64))
    assert_equal(list(case), before)


# --------------------------------------------------------------------------------------------- laws
@given(outcomes(), gammas)
def test_a_reward_lies_between_0_and_1_or_is_minus_gamma(case, gamma):
    u, correct = case
    R = reward(u, correct, gamma)
    assert R.shape == correct.shape
    assert ((R >= 0) & (R <= 1))[correct].all()
    assert R[~correct].eq(-gamma).all()


@given(st.integers(1, 60), st.data())
def test_a_right_prediction_earns_less_with_each_block_added(K, data):
    order = torch.tensor(data.draw(st.permutations(range(K))))
    u = torch.ones(K + 1, K).tril(-1)[:, order]  # row i keeps i blocks
    assert (reward(u, torch.ones(K + 1, dtype=torch.bool), 1).diff() < 0).all()


@given(outcomes(), gammas)
def test_a_wrong_prediction_earns_the_same_whatever_was_kept(case, gamma):
    u, correct = case
    assert reward(u, torch.zeros_like(correct), gamma).unique().tolist() == [-gamma]


@given(outcomes())
def test_an_image_is_rewarded_for_itself_alone(case):
    u, correct = case
    alone = [reward(u[i : i + 1], correct[i : i + 1], 2.0) for i in range(len(u))]
    assert_equal(reward(u, correct, 2.0), torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.float64])
@few
@given(case=outcomes())
def test_rewards_have_the_dtype_of_a_policy_of_floats_and_are_float32_for_others(dtype, case):
    u, correct = case
    R = reward(u.to(dtype), correct, 3)
    assert R.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert reward(u, correct, 3).dtype == torch.float64
    assert_same(R.double(), reward(u, correct, 3), 1e-6)


# ------------------------------------------------------------------------------ laws: correct_under
def test_what_is_right_under_a_policy_equals_one_image_at_a_time():
    net = pair().resnet
    x, y = batch(30)
    u = policies(30, 3)
    (correct,) = correct_under(net, x, y, u)
    for i in range(30):
        assert bool(correct[i]) == bool(net(x[i : i + 1], u[i]).argmax() == y[i]), f"image {i}"


@given(seeds, st.integers(1, 7), st.integers(1, 3), st.integers(0, 5))
def test_what_is_right_under_several_policies_is_what_is_right_under_each(seed, B, n, shared):
    net = pair((2, 1, 2), seed=seed % 5).double().resnet
    x, y = batch(B, seed=seed)
    x = x.double()
    alike = policies(B, shared, seed)
    several = [torch.cat([alike, policies(B, 5 - shared, seed + i)], 1) for i in range(n)]
    for u, found in zip(several, correct_under(net, x, y, *several, shared=shared), strict=True):
        assert_equal(found, net(x, u).argmax(1) == y)


def test_what_policies_share_runs_once():
    net = pair((2, 1, 2)).resnet
    u, v = torch.ones(2, 4, 5)
    v[0, 3] = 0
    counts = images_met(net)
    correct_under(net, *batch(4), u, v, shared=3)
    assert counts == [4, 4, 4, 7, 8]


@pytest.mark.parametrize("training", [True, False])
def test_looking_what_is_right_leaves_the_mode_as_it_was(training):
    net = pair().resnet.train(training)
    correct_under(net, *batch(), torch.ones(6, 3))
    assert {module.training for module in net.modules()} == {training}


def test_looking_what_is_right_leaves_images_and_statistics_as_they_are_and_records_nothing():
    net = pair().resnet.train()
    x, y = batch()
    before = state(net)
    recorded = []
    net.fc.register_forward_hook(lambda _, inputs, logits: recorded.append(logits.requires_grad))
    correct_under(net, x, y, policies(6, 3))
    assert_equal(x, batch()[0])
    assert_equal(state(net), before)
    assert recorded == [False]


# -------------------------------------------------------------------------------------------- edges
def test_gamma_may_be_0_or_huge():
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for gamma in (0, 1e30):
        R = reward(u, torch.tensor([True, False]), gamma)
        assert R.tolist() == [0.75, pytest.approx(-gamma)]


def test_no_images_earn_no_rewards():
    assert reward(torch.ones(0, 3), torch.ones(0, dtype=torch.bool), 1).shape == (0,)


U, RIGHT = torch.ones(4, 3), torch.ones(4) > 0
REFUSED = [
    ((U, RIGHT, gamma), f"gamma is {gamma}; it must be finite and at least 0")
    for gamma in (-1, -1e-9, float("nan"), float("inf"))
]
for shape in [(4, 1), (1,), (3,), (4, 3), ()]:
    REFUSED.append(((U, torch.ones(shape) > 0, 1), "they must be [B, K] and bool [B]"))
for shape in [(4,), (4, 3, 1)]:
    expected = f"u is {list(shape)} and correct torch.bool [4]"
    REFUSED.append(((torch.ones(shape), RIGHT, 1), expected))
for dtype in (torch.float32, torch.int64):
    REFUSED.append(((U, RIGHT.to(dtype), 1), f"correct {dtype}"))


@pytest.mark.parametrize(("given", "expected"), REFUSED)
def test_what_has_no_reward_is_refused(given, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        reward(*given)
