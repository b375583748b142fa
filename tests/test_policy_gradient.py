"""The policy loss and the entropy, and the proof that the loss is right.

The proof: where all 2^K policies can be summed, the expected gradient of the loss is known.
J = sum over u of pi(u) R(u) is written out in full and differentiated by autograd. The road under
test never differentiates pi: it takes `policy_loss` of each policy, weighted with the probability
of sampling that policy. Both must agree.
"""

import itertools
import math
import re
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    alphas,
    assert_equal,
    assert_same,
    every_policy,
    few,
    gradient,
    gradients,
    images,
    masks,
    policies,
    probabilities,
    rng,
    seeds,
    small_policy_net,
    small_resnet,
)
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import (
    BlockDrop,
    bound,
    curriculum,
    entropy,
    finetuning,
    force_on,
    free_blocks,
    greedy,
    policy_loss,
    reward,
)


@st.composite
def samples(draw, inside=True):
    """Probabilities s [B, K], policies u [B, K] and advantages A [B]."""
    s = draw(probabilities(inside=inside))
    seed = draw(seeds)
    return s, policies(*s.shape, seed), torch.randn(len(s), generator=rng(seed)).double()


# ------------------------------------------------------------------------------------------ by hand
def test_the_policy_loss_of_two_images_and_three_blocks_by_hand():
    s = torch.tensor([[0.5, 0.8, 0.2], [0.6, 0.5, 0.9]])
    u = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    # -(2 (ln 0.5 + ln 0.8 + ln 0.8) - 1 (ln 0.4 + ln 0.5 + ln 0.9)) / 2
    expected = -(2 * math.log(0.32) - math.log(0.18)) / 2
    assert policy_loss(s, u, torch.tensor([2.0, -1.0])).item() == pytest.approx(expected)


def test_the_policy_loss_counts_free_blocks_only():
    s = torch.tensor([[0.5, 0.8, 0.2]])
    u = torch.tensor([[1.0, 1.0, 0.0]])
    loss = policy_loss(s, u, torch.tensor([3.0]), free=torch.tensor([False, True, False]))
    assert loss.item() == pytest.approx(-3 * math.log(0.8))


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, [[-1, 1]]), (-1.0, [[1, -1]])])
def test_a_better_than_expected_sample_becomes_more_likely(advantage, expected):
    s = torch.tensor([[0.5, 0.5]], requires_grad=True)
    loss = policy_loss(s, torch.tensor([[1.0, 0.0]]), torch.tensor([advantage]))
    # Better: descent raises s of the kept block and lowers that of the dropped one.
    assert gradient(loss, s).sign().tolist() == expected


def test_the_entropy_of_a_coin_is_ln_2_and_adds_up_over_blocks():
    assert entropy(torch.full((2, 3), 0.5)).item() == pytest.approx(3 * math.log(2))


def test_the_entropy_by_hand():
    s = torch.tensor([[0.2, 1.0], [0.5, 0.5]])
    first = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert entropy(s).item() == pytest.approx((first + 2 * math.log(2)) / 2)


# ---------------------------------------------------------------------------------------- two roads
@given(samples(), st.data())
def test_the_policy_loss_is_that_of_a_plain_loop(case, data):
    s, u, A = case
    free = data.draw(masks(s.shape[1]))
    total = 0.0
    for i in range(len(s)):
        log_pi = 0.0
        for k in range(s.shape[1]):
            if free[k]:
                log_pi += math.log(s[i, k]) if u[i, k] == 1 else math.log(1 - s[i, k])
        total -= A[i].item() * log_pi
    assert policy_loss(s, u, A, free).item() == pytest.approx(total / len(s), rel=1e-10, abs=1e-10)


@given(probabilities(), st.data())
def test_the_entropy_is_that_of_a_plain_loop(s, data):
    free = data.draw(masks(s.shape[1]))
    total = 0.0
    for row in s.tolist():
        for p, is_free in zip(row, free.tolist(), strict=True):
            total += (-p * math.log(p) - (1 - p) * math.log(1 - p)) if is_free else 0.0
    assert entropy(s, free).item() == pytest.approx(total / len(s), rel=1e-10)


# ------------------------------------------------------------------------------ laws of both losses
@given(samples(), st.integers(2, 4))
def test_both_losses_are_means_so_repeating_the_batch_changes_nothing(case, times):
    again = [t.repeat(times, *[1] * (t.dim() - 1)) for t in case]
    assert_same(policy_loss(*again), policy_loss(*case))
    assert_same(entropy(again[0]), entropy(case[0]))


@given(samples(), st.floats(-100, 100))
def test_the_policy_loss_is_linear_in_the_advantage(case, factor):
    s, u, A = case
    assert_same(policy_loss(s, u, factor * A), factor * policy_loss(s, u, A), 1e-9)


@given(samples())
def test_no_gradient_flows_through_the_advantage(case):
    s, u, A = case
    s.requires_grad_()
    A.requires_grad_()
    expected = gradient(policy_loss(s, u, A.detach()), s)
    assert_same(gradient(policy_loss(s, u, A + s.sum(1) - s.sum(1).detach()), s), expected)
    assert not gradient(policy_loss(s, u, A), A).any()


@given(samples(), st.data())
def test_a_block_that_is_not_free_changes_neither_losses_nor_gradients(case, data):
    s, u, A = case
    free = data.draw(masks(s.shape[1]))
    for value in (0.0, 0.7, 1.0):
        other = torch.where(free, s, torch.full_like(s, value)).requires_grad_()
        assert not gradient(policy_loss(other, u, A, free), other)[:, ~free].any()
        assert not gradient(entropy(other, free), other)[:, ~free].any()
        assert_same(policy_loss(other, u, A, free), policy_loss(s[:, free], u[:, free], A))
        assert_same(entropy(other, free), entropy(s[:, free]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
@few
@given(case=samples())
def test_policies_of_any_dtype_and_a_mask_of_all_blocks_change_nothing(dtype, case):
    s, u, A = case
    free = torch.ones(s.shape[1], dtype=torch.bool)
    assert_same(policy_loss(s, u.to(dtype), A, free), policy_loss(s, u, A))
    assert_same(entropy(s, free), entropy(s))


@given(probabilities())
def test_the_entropy_treats_keeping_and_dropping_alike(s):
    assert_same(entropy(1 - s), entropy(s))


@given(samples(inside=False))
def test_the_arguments_of_the_losses_stay_as_they_are(case):
    before = [t.clone() for t in case]
    policy_loss(*case)
    entropy(case[0])
    assert_equal(list(case), before)


# ----------------------------------------------------------------------------- edges of both losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(case=samples(inside=False))
def test_losses_and_gradients_are_finite_at_0_a_half_and_1(dtype, case):
    s, u, A = case
    s = s.to(dtype).requires_grad_()
    for loss in (policy_loss(s, u, A), entropy(s)):
        assert loss.isfinite()
        assert gradient(loss, s).isfinite().all()


def test_the_logarithms_of_many_unlikely_blocks_are_added_and_not_lost_in_a_product():
    s = torch.full((1, 54), 1e-3, requires_grad=True)  # 1e-162 is 0 in float32
    loss = policy_loss(s, torch.ones(1, 54), torch.ones(1))
    assert loss.item() == pytest.approx(54 * math.log(1000))
    assert_same(gradient(loss, s), torch.full((1, 54), -1000.0), 1e-4)


def test_a_tiny_probability_counts_as_what_it_is():
    s = torch.tensor([[1e-30]])
    u = torch.tensor([[1.0]])
    A = torch.tensor([1.0])
    assert policy_loss(s, u, A).item() == pytest.approx(30 * math.log(10))
    assert entropy(s).item() == pytest.approx(1e-30 * 30 * math.log(10), rel=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("forced", [0.0, 1.0])
def test_nan_and_inf_in_a_block_that_is_not_free_stay_out_of_the_losses_and_their_gradients(
    value, forced
):
    s = torch.tensor([[value, 0.25]], requires_grad=True)
    free = torch.tensor([False, True])
    loss = policy_loss(s, torch.tensor([[forced, 1.0]]), torch.ones(1), free)
    bonus = entropy(s, free)
    assert loss.item() == pytest.approx(math.log(4))
    assert gradient(loss, s).tolist() == [[0, -4]]
    assert bonus.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert gradient(bonus, s).tolist() == [[0, pytest.approx(math.log(3))]]


def test_a_mask_on_the_cpu_serves_losses_on_another_device():
    s = torch.full((2, 3), 0.5, device="meta")
    free = torch.tensor([False, True, True])
    assert policy_loss(s, s, s[:, 0], free).is_meta
    assert entropy(s, free).is_meta


def test_a_certain_policy_has_no_entropy_and_its_own_sample_no_loss():
    s = torch.tensor([[0.0, 1.0]])
    assert entropy(s) == 0
    assert policy_loss(s, s, torch.tensor([3.0])) == 0


@pytest.mark.parametrize("shape", [(4, 1), (1,), (3,), (1, 4), (4, 3), ()])
def test_an_advantage_of_another_shape_is_refused_because_it_would_broadcast_unseen(shape):
    expected = rf"advantage has shape {re.escape(str(list(shape)))}; it must be \[4\]"
    with pytest.raises(ValueError, match=expected):
        policy_loss(torch.full((4, 3), 0.5), torch.ones(4, 3), torch.ones(shape))


S = torch.full((4, 3), 0.5)
MASKS = [torch.ones(3), torch.ones(4, 3) > 0, torch.ones(1) > 0, torch.ones(4) > 0]
REFUSED = [
    ((S, torch.ones(shape), torch.ones(4)), r"u has shape .*; it must be \[4, 3\]")
    for shape in [(4, 1), (3,), (1, 3), (4, 4), ()]
]
REFUSED += [
    ((S, S, torch.ones(4), free), r"free is torch.* it must be bool \[3\]") for free in MASKS
]
REFUSED += [
    ((torch.ones(shape),) * 3, r"probabilities have shape .*; they must be \[B, K\]")
    for shape in [(3,), (4, 3, 1), ()]
]


@pytest.mark.parametrize(("given", "expected"), REFUSED)
def test_what_would_broadcast_unseen_is_refused(given, expected):
    with pytest.raises(ValueError, match=expected):
        policy_loss(*given)
    if not expected.startswith("u "):
        with pytest.raises(ValueError, match=expected):
            entropy(given[0], *given[3:])


# ---------------------------------------------------- the proof: two roads to the expected gradient
def expected_reward(s_bounded, free, R):
    """J, written out.

    A free block is kept with probability s and dropped with 1 - s, another one is always kept.

    R: a dict from policy (a tuple of K numbers) to the rewards [B].
    """
    total = 0
    for u in itertools.product((0, 1), repeat=len(free)):
        pi = torch.ones(len(s_bounded), dtype=s_bounded.dtype)
        for k, keep in enumerate(u):
            if free[k]:
                pi = pi * (s_bounded[:, k] if keep else 1 - s_bounded[:, k])
            elif not keep:
                pi = pi * 0
        total = total + pi * R[u]
    return total.mean()


def expected_loss(s_bounded, free, R, baseline):
    """The policy loss in expectation over the samples.

    Each of the 2^K counts as likely as `sample` draws it, with its advantage.

    baseline: a function of the policy u (a tuple) giving [B].
    """
    total = 0
    for u in every_policy(len(free)):
        likely = torch.where(u.bool(), s_bounded, 1 - s_bounded).prod(1).detach()  # [B]
        u = force_on(u.expand_as(s_bounded), free)
        advantage = R[key(u[0])] - baseline(key(u[0]))
        total = total + policy_loss(s_bounded, u, likely * advantage, free)
    return total


def key(u):
    return tuple(u.int().tolist())


def self_critical(s, free, R):
    """The rewards of the greedy policies, forced like the samples.

    A baseline that does not depend on the sample.
    """
    u_greedy = force_on(greedy(s.detach()), free)
    rewards = torch.stack([R[key(u)][i] for i, u in enumerate(u_greedy)])
    return lambda u: rewards


@st.composite
def problems(draw):
    """Probabilities of up to 6 blocks, bounded by some alpha; any reward for any policy.

    At least one block is free.
    """
    s = draw(probabilities(max_blocks=6))
    alpha = draw(alphas)
    seed = draw(seeds)
    B, K = s.shape
    g = rng(seed)
    R = {key(u): torch.randn(B, generator=g, dtype=torch.float64) for u in every_policy(K)}
    s_bounded = bound(s.requires_grad_(), alpha)
    free = draw(masks(K, min_free=1))
    return SimpleNamespace(s=s, s_bounded=s_bounded, free=free, R=R, B=B, K=K, g=g)


def zero(u):
    return 0.0


# ------------------------------------------------------------------------------- the proof, by hand
@pytest.mark.parametrize("alpha", [1.0, 0.8])
def test_the_gradient_for_one_block_is_the_difference_of_its_two_rewards_shrunk_by_bounding(alpha):
    s = torch.tensor([[0.3]], requires_grad=True)
    R = {(0,): torch.tensor([0.25]), (1,): torch.tensor([2.0])}
    free = torch.tensor([True])
    expected = 1.75 * (2 * alpha - 1)  # J = 0.3 x 2 + 0.7 x 0.25, dJ/ds = 2 - 0.25
    J = expected_reward(bound(s, alpha), free, R)
    assert gradient(J, s).item() == pytest.approx(expected)
    loss = expected_loss(bound(s, alpha), free, R, zero)
    assert gradient(loss, s).item() == pytest.approx(-expected)


# ------------------------------------------------------------------- the proof: the expected reward
@pytest.mark.parametrize("baseline", ["none", "self-critical", "any that knows the image alone"])
@given(p=problems(), beta=st.floats(0, 10), scale=st.floats(-100, 100))
def test_the_expected_gradient_is_that_of_the_expected_reward(baseline, p, beta, scale):
    b = scale * torch.randn(p.B, generator=p.g, dtype=torch.float64)
    critics = {"none": zero, "self-critical": self_critical(p.s, p.free, p.R)}
    critic = critics.get(baseline, lambda u: b)
    bonus = 0
    for k in p.free.nonzero()[:, 0]:
        q = p.s_bounded[:, k]
        bonus = bonus - (q * q.log() + (1 - q) * (1 - q).log()).mean()
    expected = -gradient(expected_reward(p.s_bounded, p.free, p.R) + beta * bonus, p.s)
    loss = expected_loss(p.s_bounded, p.free, p.R, critic) - beta * entropy(p.s_bounded, p.free)
    assert_same(gradient(loss, p.s), expected, 1e-10)


# ----------------------------------------------------------------- the proof: through real networks
@pytest.fixture(scope="module")
def world():
    """Four images, a ResNet of three blocks and a policy network; all rewards.

    The rewards come from the ResNet's own predictions.
    """
    net = small_resnet(seed=8)
    policy = small_policy_net(3, width=2, seed=2)
    x = images(4)
    net.fc.bias.data.zero_()
    y = net(x, torch.tensor([1, 0, 1])).argmax(1)  # right under this policy, and under some others
    R = {}
    for u in every_policy(3):
        with torch.no_grad():
            correct = net(x, u, "sparse").argmax(1) == y
        R[key(u)] = reward(u.expand(4, -1), correct, gamma=2)
    return SimpleNamespace(net=net, policy=policy, x=x, y=y, R=R)


def test_in_that_world_rewards_depend_on_image_and_policy(world):
    table = torch.stack(list(world.R.values()))  # [2^K, B]
    for i, column in enumerate(table.T):
        assert len(column.unique()) > 2, f"image {i}"
    assert max(len(row.unique()) for row in table) > 1


def assert_in_expectation(world, free, loss_of, monkeypatch, module):
    """Over all that two images can sample, the loss has the gradient of the expected reward.

    loss_of: the loss of one step, given the model, two images and their labels.
    module: where the step finds `sample`.
    """
    x = world.x[:2]
    y = world.y[:2]
    model = BlockDrop(deepcopy(world.net), deepcopy(world.policy).train())
    model.resnet.train = lambda mode=True: model.resnet  # R is that of eval mode: it stays
    s_bounded = bound(model.policy(x), 0.8)
    total = 0
    for u in every_policy(6).view(-1, 2, 3):
        likely = torch.where(u.bool(), s_bounded, 1 - s_bounded).prod().detach()
        u = force_on(u, free)
        monkeypatch.setattr(module, "sample", lambda s_bounded, generator, u=u: u)
        total = total + likely * loss_of(model, x, y)
    R = {u: rewards[:2] for u, rewards in world.R.items()}
    J = expected_reward(s_bounded, free, R) + 0.1 * entropy(s_bounded, free)
    expected = gradients(-J, model.policy)
    assert_same(gradients(total, model.policy), expected, 1e-8)
    assert max(found.abs().max() for found in expected.values()) > 1e-3


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_curriculum_step_gives_it_in_expectation_over_what_it_samples(world, monkeypatch, epoch):
    free = free_blocks(epoch, 3)

    def loss(model, x, y):
        return curriculum.curriculum_step(model, x, y, free, 0.8, 0.1, 2, None)[0]

    assert_in_expectation(world, free, loss, monkeypatch, curriculum)


@pytest.mark.parametrize("full_fraction", [0.0, 0.5])
def test_a_finetune_step_gives_it_in_expectation_over_what_it_samples(
    world, monkeypatch, full_fraction
):
    free = torch.ones(3, dtype=torch.bool)

    def loss(model, x, y):
        return finetuning.finetune_step(model, x, y, 0.8, 0.1, 2, None, full_fraction)[0]

    assert_in_expectation(world, free, loss, monkeypatch, finetuning)
