"""The curriculum: blocks are freed from the last to the first, and the step.

What is not free is forced on and learns nothing.
"""

import copy
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    ALPHA,
    BETA,
    GAMMA,
    LIVELY,
    Given,
    alphas,
    assert_equal,
    assert_no_gradient,
    assert_same,
    batch,
    drawn,
    few,
    gradient,
    images,
    images_met,
    learning,
    pair,
    rng,
    seeds,
    small_policy_net,
    state,
)
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import bound, entropy, force_on, free_blocks, policy_loss, reward, sample
from blockdrop_min.curriculum import curriculum_step, portion, warm_start_step

sizes = st.integers(1, 60)
ALL = torch.tensor([True, True, True])
# The masks of three blocks that a curriculum has; none is free in the first.
MASKS = tuple(torch.arange(3) >= first for first in (3, 2, 1, 0))
each_mask = pytest.mark.parametrize("free", MASKS, ids=["none", "last", "last two", "all"])


def ready(seed=LIVELY):
    """A small BlockDrop of three blocks, ready for the curriculum and its warm start."""
    return learning(pair(seed=seed, num_classes=5), resnet=False, policy=True)


def step(model, x, y, free=ALL, seed=0, alpha=ALPHA, beta=BETA, classify=0.0):
    return curriculum_step(model, x, y, free, alpha, beta, GAMMA, rng(seed), classify)


# ----------------------------------------------------------------------------- free_blocks, by hand
@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, [0, 0, 0, 1]), (1, [0, 0, 1, 1]), (3, [1, 1, 1, 1]), (9, [1, 1, 1, 1])],
)
def test_one_more_block_is_free_in_each_epoch_the_last_one_first(epoch, expected):
    assert free_blocks(epoch, 4).int().tolist() == expected


@pytest.mark.parametrize(("epoch", "expected"), [(0, [0, 0, 1, 1, 1]), (1, [1, 1, 1, 1, 1])])
def test_a_curriculum_of_two_epochs_frees_half_of_the_blocks_at_a_time(epoch, expected):
    assert free_blocks(epoch, 5, epochs=2).int().tolist() == expected


def test_a_long_curriculum_waits_between_blocks():
    assert [int(free_blocks(epoch, 2, epochs=5).sum()) for epoch in range(5)] == [1, 1, 2, 2, 2]


# --------------------------------------------------------------------------- free_blocks, two roads
@given(st.integers(0, 80), sizes)
def test_without_a_length_the_last_t_plus_1_blocks_are_free(epoch, K):
    assert free_blocks(epoch, K).tolist() == [k >= K - (epoch + 1) for k in range(K)]


@given(sizes)
def test_a_curriculum_of_K_epochs_is_the_papers(K):
    for epoch in range(K + 1):
        assert_equal(free_blocks(epoch, K, epochs=K), free_blocks(epoch, K))


@given(st.integers(1, 54))
def test_the_blocks_of_a_deep_network_are_counted_in_whole_numbers(epochs):
    # 54 * (25 / 26) is more than 54 * 25 / 26 in floating point, or less
    for epoch in range(epochs):
        count = math.ceil(Fraction(54 * (epoch + 1), epochs))
        assert int(free_blocks(epoch, 54, epochs).sum()) == count


# -------------------------------------------------------------------------------- free_blocks, laws
@given(sizes, st.none() | st.integers(1, 80))
def test_every_block_is_freed_once_in_order_and_stays_free(K, epochs):
    free = torch.stack([free_blocks(epoch, K, epochs) for epoch in range(epochs or K)]).int()
    assert (free.diff(dim=0) >= 0).all(), "once free, always free"
    assert (free.diff(dim=1) >= 0).all(), "a block is free only if all later ones are"
    assert free[-1].all(), "in the end all are free"


@given(sizes, st.integers(1, 80))
def test_a_curriculum_with_a_length_is_spread_evenly(K, epochs):
    counts = [0] + [int(free_blocks(epoch, K, epochs).sum()) for epoch in range(epochs)]
    freed = torch.tensor(counts).diff()
    assert freed.max() - freed.min() <= 1
    assert freed[0] >= 1


@given(sizes, st.integers(1, 80), st.integers(0, 20))
def test_after_its_end_all_blocks_are_free(K, epochs, later):
    assert free_blocks(epochs - 1 + later, K, epochs).all()


@given(st.integers(2, 6), st.data(), alphas, seeds)
def test_at_no_epoch_does_any_loss_term_give_a_forced_blocks_logit_a_gradient(K, data, alpha, seed):
    free = free_blocks(data.draw(st.integers(0, K - 1)), K)
    policy = small_policy_net(K, seed=seed)
    s_bounded = bound(policy(images(2, seed=seed)), alpha)
    u = force_on(sample(s_bounded, rng(seed)), free)
    loss = policy_loss(s_bounded, u, torch.tensor([1.0, -2.0]), free)
    assert not gradient(loss, policy.logit.weight)[~free].any()
    assert not gradient(entropy(s_bounded, free), policy.logit.weight)[~free].any()


# ------------------------------------------------------------------------------- free_blocks, edges
@given(sizes, st.integers(1, 80))
def test_the_mask_is_bool_and_as_long_as_there_are_blocks(K, epochs):
    free = free_blocks(0, K, epochs)
    assert free.dtype == torch.bool
    assert free.shape == (K,)


@pytest.mark.parametrize("arguments", [(-1, 4), (0, 0), (0, 4, 0), (0, -3), (2, 4, -1)])
def test_an_impossible_epoch_or_size_is_refused(arguments):
    epoch, K = arguments[:2]
    expected = f"epoch {epoch}, num_blocks {K}, epochs .*; they must be at least 0, 1 and 1"
    with pytest.raises(ValueError, match=expected):
        free_blocks(*arguments)


# ------------------------------------------------------------------------------------------ portion
@pytest.mark.parametrize(
    ("fraction", "count", "expected"),
    [(0, 6, 0), (0.05, 6, 1), (0.1, 6, 1), (0.5, 6, 3), (1, 6, 6), (0.07, 100, 7), (0.55, 20, 11)],
)
def test_a_portion_is_rounded_up_but_not_by_a_rounding_error(fraction, count, expected):
    assert portion(fraction, count) == expected


@given(st.integers(1, 1000), st.data())
def test_the_portion_of_a_true_fraction_is_exact(count, data):
    part = data.draw(st.integers(0, count))
    assert portion(part / count, count) == part


# ----------------------------------------------------------------------------------- the warm start
def test_a_warm_start_step_is_cross_entropy_of_a_classifier_on_the_policys_features():
    model = ready()
    x, _ = batch()
    policy = copy.deepcopy(model.policy)
    logits = policy.classifier(policy.embed(x))
    y = (logits.argmax(1) + torch.arange(6) % 2) % 5
    loss, seen = warm_start_step(model, x, y)
    assert_same(loss, F.cross_entropy(logits, y), 1e-6)
    assert seen["correct"].tolist() == [True, False] * 3


def test_a_warm_start_reaches_features_and_classifier_but_not_the_policys_logits():
    model = ready()
    x, y = batch()
    warm_start_step(model, x, y)[0].backward()
    for name, p in model.policy.named_parameters():
        assert (p.grad is None) == name.startswith("logit"), name


# -------------------------------------------------------------------------------- the step, by hand
def test_in_these_laws_policies_keep_some_images_of_every_block():
    model = ready()
    for count in (6, 20, 60):
        _, u, u_greedy = drawn(model, batch(count)[0])
        for policies in (u, u_greedy):
            assert (policies.mean(0) > 0).all(), f"{count} images"
            assert (policies.mean(0) < 1).all(), f"{count} images"


# ------------------------------------------------------------------------------ the step, two roads
@each_mask
@few
@given(seed=seeds)
def test_the_curriculum_loss_is_the_policy_loss_less_the_entropy_bonus(free, seed):
    model = ready(seed % 100)
    x, y = batch(seed=seed)
    s_bounded, u, _ = drawn(model, x, free, seed)
    loss, seen = step(model, x, y, free, seed)
    expected = policy_loss(s_bounded, u, seen["A"], free) - BETA * entropy(s_bounded, free)
    assert_same(loss, expected, 1e-5)


def test_the_classifier_learns_on_with_the_weight_that_it_is_given():
    model = ready()
    x, y = batch()
    cross_entropy = F.cross_entropy(copy.deepcopy(model.policy).classify(x), y)
    without, _ = step(copy.deepcopy(model), x, y)
    loss, _ = step(model, x, y, classify=0.3)
    assert_same(loss, without + 0.3 * cross_entropy, 1e-5)


def test_without_that_weight_the_classifier_gets_no_gradient():
    model = ready()
    step(model, *batch())[0].backward()
    assert model.policy.classifier.weight.grad is None


# ----------------------------------------------------------------- the step, laws: what it computes
@each_mask
def test_a_curriculum_step_runs_forced_blocks_once_and_free_ones_as_two_policies_keep_them(free):
    model = ready()
    x, y = batch()
    _, u, u_greedy = drawn(model, x, free)
    expected = [6 if not free[k] else int(u[:, k].sum() + u_greedy[:, k].sum()) for k in range(3)]
    counts = images_met(model.resnet)
    step(model, x, y, free)
    assert counts == [count for count in expected if count]


@few
@given(seeds)
def test_an_image_whose_sample_is_its_greedy_policy_has_advantage_0(seed):
    model = ready(seed % 100)
    x, y = batch(20, seed=seed)
    _, u, u_greedy = drawn(model, x, seed=seed)
    same = (u == u_greedy).all(1)
    _, seen = step(model, x, y, seed=seed)
    assert not seen["A"][same].any()


def test_samples_that_are_the_greedy_policies_leave_nothing_to_learn():
    # s of 0, not bounded: no sample is better or worse than the greedy policy, or could be another.
    model = ready()
    model.policy = Given(torch.zeros(6, 3))
    loss, _ = step(model, *batch(), alpha=1.0)
    assert loss.item() == 0


@each_mask
def test_forced_blocks_are_kept_by_the_sample_and_by_the_baseline(free):
    # A policy that would drop every block: both passes keep the forced ones, and drop the others.
    model = ready()
    model.policy = Given(torch.zeros(20, 3))
    x, y = batch(20)
    _, seen = step(model, x, y, free, alpha=1.0)
    best = 1 - (float((~free).sum()) / 3) ** 2
    assert seen["A"].tolist() == [0] * 20
    torch.testing.assert_close(seen["R"], torch.where(seen["correct"], best, -GAMMA))


@given(alphas)
def test_the_baseline_keeps_a_tie_and_nothing_below_it_whatever_alpha(alpha):
    # Bounded, the number next below a half may round to a half.
    model = ready()
    below = 0.5 - 2**-25
    model.policy = Given(torch.tensor([0.5, below, 0.5]).repeat(20, 1))
    x, y = batch(20)
    _, seen = step(model, x, y, alpha=alpha)
    u_greedy = torch.tensor([1.0, 0.0, 1.0]).repeat(20, 1)
    R_greedy = reward(u_greedy, model.resnet(x, u_greedy).argmax(1) == y, GAMMA)
    assert_same(seen["A"], seen["R"] - R_greedy, 1e-6)


# ---------------------------------------------------------------------- the step, laws: what learns
@pytest.mark.parametrize("step_of", [step, warm_start_step], ids=["policy", "warm"])
def test_a_curriculum_step_leaves_the_resnet_bitwise_as_it_was(step_of):
    model = ready()
    x, y = batch()
    before = state(model.resnet)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    step_of(model, x, y)[0].backward()
    optimizer.step()
    assert_equal(state(model.resnet), before)
    assert_no_gradient(model.resnet)


@each_mask
@few
@given(seed=seeds)
def test_no_loss_term_gives_a_forced_blocks_logit_a_gradient(free, seed):
    model = ready(seed % 100)
    x, y = batch(seed=seed)
    loss, _ = step(model, x, y, free, seed)
    assert not gradient(loss, model.policy.logit.weight)[~free].any()
    assert not gradient(loss, model.policy.logit.bias)[~free].any()


@each_mask
def test_the_entropy_bonus_of_a_free_block_that_is_a_coin_is_beta_ln_2(free):
    model = ready()
    model.policy = Given(torch.full((6, 3), 0.5))
    x, y = batch()
    without, _ = step(model, x, y, free, beta=0.0)
    loss, _ = step(model, x, y, free, beta=2.0)
    assert (loss - without).item() == pytest.approx(-2 * math.log(2) * free.sum().item(), abs=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_in_a_forced_column_stay_out_of_the_loss_and_its_gradient(value):
    s = torch.rand(6, 3, generator=rng(0))
    model = ready()
    x, y = batch()
    model.policy = Given(s)
    expected, _ = step(model, x, y, MASKS[1])
    poisoned = torch.cat([torch.full((6, 2), value), s[:, 2:]], 1)
    model.policy = Given(poisoned)
    loss, _ = step(model, x, y, MASKS[1])
    assert_equal(loss, expected)
    found = gradient(loss, model.policy.s)
    assert not found[:, :2].any()
    assert found[:, 2].isfinite().all()
