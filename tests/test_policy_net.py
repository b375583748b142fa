"""The policy network, and the pure functions of s and u: bound, greedy, sample, policy_loss, entropy, static_policy."""

import math

import pytest
import torch
from helpers import (
    Reference,
    alphas,
    assert_same,
    few,
    gradients,
    images,
    masks,
    policies,
    probabilities,
    rng,
    seeds,
    small_policy_net,
    weighted_sum,
)
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import PolicyNet, bound, entropy, greedy, policy_loss, policy_net, sample, static_policy
from blockdrop_min.masked_resnet import BasicBlock

s_anywhere = probabilities(inside=False)


def advantages(count, seed):
    return torch.randn(count, generator=rng(seed), dtype=torch.float64)


def gradient(loss, s):
    return torch.autograd.grad(loss, s, allow_unused=True, materialize_grads=True)[0]


# ------------------------------------------------------------------------------------------------------- by hand
def test_bounding_by_hand():
    bounded = bound(torch.tensor([[0.0, 0.9, 1.0]]), alpha=0.8)
    assert_same(bounded, torch.tensor([[0.2, 0.74, 0.8]]), 1e-6)  # 0.8 x 0.9 + 0.2 x 0.1 = 0.74


def test_greedy_keeps_what_is_likely_and_a_tie():
    assert greedy(torch.tensor([[0.49999, 0.5, 0.50001, 0.0, 1.0]])).tolist() == [[0, 1, 1, 0, 1]]


def test_greedy_at_another_threshold_keeps_a_tie_too():
    assert greedy(torch.tensor([[0.2, 0.25, 0.5]]), threshold=0.25).tolist() == [[0, 1, 1]]


def test_the_policy_loss_of_two_images_and_three_blocks_by_hand():
    s = torch.tensor([[0.5, 0.8, 0.2], [0.6, 0.5, 0.9]])
    u = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    # -(2 (ln 0.5 + ln 0.8 + ln 0.8) - 1 (ln 0.4 + ln 0.5 + ln 0.9)) / 2 = -(2 ln 0.32 - ln 0.18) / 2
    assert policy_loss(s, u, torch.tensor([2.0, -1.0])).item() == pytest.approx(-(2 * math.log(0.32) - math.log(0.18)) / 2)


def test_the_policy_loss_counts_free_blocks_only():
    s, u = torch.tensor([[0.5, 0.8, 0.2]]), torch.tensor([[1.0, 1.0, 0.0]])
    loss = policy_loss(s, u, torch.tensor([3.0]), free=torch.tensor([False, True, False]))
    assert loss.item() == pytest.approx(-3 * math.log(0.8))


def test_a_better_than_expected_sample_becomes_more_likely():
    s = torch.tensor([[0.5, 0.5]], requires_grad=True)
    better, worse = (gradient(policy_loss(s, torch.tensor([[1.0, 0.0]]), torch.tensor([A])), s) for A in (1.0, -1.0))
    assert better.sign().tolist() == [[-1, 1]]  # descent raises s of the kept block and lowers that of the dropped one
    assert worse.sign().tolist() == [[1, -1]]


def test_the_entropy_of_a_coin_is_ln_2_and_adds_up_over_blocks():
    assert entropy(torch.full((2, 3), 0.5)).item() == pytest.approx(3 * math.log(2))


def test_the_entropy_by_hand():
    s = torch.tensor([[0.2, 1.0], [0.5, 0.5]])
    first = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert entropy(s).item() == pytest.approx((first + 2 * math.log(2)) / 2)


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


# ----------------------------------------------------------------------------------------------------- two roads
@given(probabilities(), st.data(), seeds)
def test_the_policy_loss_is_that_of_a_plain_loop(s, data, seed):
    (B, K), free = s.shape, data.draw(masks(s.shape[1]))
    u, A = policies(B, K, seed), advantages(B, seed)
    total = 0.0
    for i in range(B):
        log_pi = 0.0
        for k in range(K):
            if free[k]:
                log_pi += math.log(s[i, k]) if u[i, k] == 1 else math.log(1 - s[i, k])
        total -= A[i].item() * log_pi
    assert policy_loss(s, u, A, free).item() == pytest.approx(total / B, rel=1e-10, abs=1e-10)


@given(probabilities(), seeds)
def test_the_policy_loss_is_the_log_probability_of_torchs_bernoulli(s, seed):
    u, A = policies(*s.shape, seed), advantages(len(s), seed)
    log_pi = torch.distributions.Bernoulli(probs=s).log_prob(u).sum(1)  # [B]
    assert_same(policy_loss(s, u, A), -(A * log_pi).mean())


@given(probabilities(), st.data())
def test_the_entropy_is_that_of_a_plain_loop(s, data):
    free, total = data.draw(masks(s.shape[1])), 0.0
    for row in s.tolist():
        for p, is_free in zip(row, free.tolist(), strict=True):
            total += (-p * math.log(p) - (1 - p) * math.log(1 - p)) if is_free else 0.0
    assert entropy(s, free).item() == pytest.approx(total / len(s), rel=1e-10)


@given(probabilities())
def test_the_entropy_is_that_of_torchs_bernoulli(s):
    assert_same(entropy(s), torch.distributions.Bernoulli(probs=s).entropy().sum(1).mean())


@given(s_anywhere, alphas)
def test_bounding_is_that_of_a_plain_loop(s, alpha):
    expected = [[alpha * p + (1 - alpha) * (1 - p) for p in row] for row in s.tolist()]
    assert_same(bound(s, alpha), torch.tensor(expected, dtype=s.dtype))


@given(s_anywhere)
def test_greedy_is_that_of_a_plain_loop(s):
    assert greedy(s).dtype == s.dtype
    assert greedy(s).tolist() == [[1.0 if p >= 0.5 else 0.0 for p in row] for row in s.tolist()]


# ---------------------------------------------------------------------------------------------------- laws: bound
@given(s_anywhere, alphas)
def test_bounded_probabilities_lie_between_1_minus_alpha_and_alpha(s, alpha):
    bounded = bound(s, alpha)
    assert bounded.min() >= 1 - alpha - 1e-12
    assert bounded.max() <= alpha + 1e-12


@given(s_anywhere, alphas)
def test_bounding_treats_keeping_and_dropping_alike(s, alpha):
    assert_same(bound(1 - s, alpha), 1 - bound(s, alpha))


@given(s_anywhere, alphas)
def test_bounding_keeps_every_probability_on_its_side_of_a_half(s, alpha):
    assert_same((bound(s, alpha) - 0.5), (2 * alpha - 1) * (s - 0.5))


# ----------------------------------------------------------------------------------------------------- laws: sample
@given(s_anywhere, seeds)
def test_a_sample_is_float_0_or_1_without_gradient_and_the_same_for_the_same_seed(s, seed):
    u = sample(s.requires_grad_(), rng(seed))
    assert ((u == 0) | (u == 1)).all()
    assert (u.shape, u.dtype, u.requires_grad) == (s.shape, s.dtype, False)
    assert torch.equal(u, sample(s, rng(seed)))


def test_another_seed_gives_another_sample():
    s = torch.full((10, 10), 0.5)
    assert not torch.equal(sample(s, rng(0)), sample(s, rng(1)))


def test_sampling_from_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    sample(torch.full((3, 3), 0.5), rng(0))
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_generator_the_global_seed_counts():
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(sample(torch.full((5, 5), 0.5)))
    assert torch.equal(*draws)


def test_each_block_is_kept_as_often_as_its_probability_says():
    s, N = torch.tensor([0.0, 0.02, 0.2, 0.5, 0.8, 0.98, 1.0], dtype=torch.float64), 20_000
    kept = sample(s.expand(N, -1), rng(0)).mean(0)
    assert ((kept - s).abs() <= 4.5 * (s * (1 - s) / N).sqrt()).all()  # 4.5 binomial deviations: 1 in 100,000


def test_blocks_and_images_are_sampled_independently():
    N = 20_000
    u = sample(torch.full((N, 5), 0.5, dtype=torch.float64), rng(0)) - 0.5
    blocks, neighbours = u.T @ u / N, u[1:].T @ u[:-1] / N  # [K, K] covariances; 1/4 for a block with itself
    assert_same(blocks, torch.eye(5).double() / 4, 4.5 / 4 / N**0.5)
    assert_same(neighbours, torch.zeros(5, 5).double(), 4.5 / 4 / N**0.5)


# ----------------------------------------------------------------------------------------------------- laws: losses
@given(probabilities(), st.integers(2, 4), seeds)
def test_both_losses_are_means_so_repeating_the_batch_changes_nothing(s, times, seed):
    u, A = policies(*s.shape, seed), advantages(len(s), seed)
    again = [t.repeat(times, *[1] * (t.dim() - 1)) for t in (s, u, A)]
    assert_same(policy_loss(*again), policy_loss(s, u, A))
    assert_same(entropy(again[0]), entropy(s))


@given(probabilities(), seeds, st.floats(-100, 100))
def test_the_policy_loss_is_linear_in_the_advantage(s, seed, factor):
    u, A = policies(*s.shape, seed), advantages(len(s), seed)
    assert_same(policy_loss(s, u, factor * A), factor * policy_loss(s, u, A), 1e-9)


@given(probabilities(), seeds)
def test_no_gradient_flows_through_the_advantage(s, seed):
    s.requires_grad_()
    u, A = policies(*s.shape, seed), advantages(len(s), seed).requires_grad_()
    expected = gradient(policy_loss(s, u, A.detach()), s)
    assert_same(gradient(policy_loss(s, u, A + s.sum(1) - s.sum(1).detach()), s), expected)
    assert not gradient(policy_loss(s, u, A), A).any()


@given(probabilities(), st.data(), seeds)
def test_a_block_that_is_not_free_changes_neither_losses_nor_gradients(s, data, seed):
    free = data.draw(masks(s.shape[1]))
    u, A = policies(*s.shape, seed), advantages(len(s), seed)
    for value in (0.0, 0.7, 1.0):
        other = torch.where(free, s, torch.full_like(s, value)).requires_grad_()
        for loss in (policy_loss(other, u, A, free), entropy(other, free)):
            assert not gradient(loss, other)[:, ~free].any()
        assert_same(policy_loss(other, u, A, free), policy_loss(s[:, free], u[:, free], A))
        assert_same(entropy(other, free), entropy(s[:, free]))


@given(probabilities(), seeds)
def test_no_mask_means_that_all_blocks_are_free(s, seed):
    u, A, free = policies(*s.shape, seed), advantages(len(s), seed), torch.ones(s.shape[1], dtype=torch.bool)
    assert_same(policy_loss(s, u, A), policy_loss(s, u, A, free))
    assert_same(entropy(s), entropy(s, free))


@given(s_anywhere)
def test_the_entropy_lies_between_0_and_K_ln_2(s):
    assert 0 <= entropy(s) <= s.shape[1] * math.log(2) + 1e-12


@given(probabilities())
def test_the_entropy_treats_keeping_and_dropping_alike(s):
    assert_same(entropy(1 - s), entropy(s))


@given(probabilities())
def test_the_entropy_pulls_every_probability_towards_a_half(s):
    s.requires_grad_()
    assert_same(gradient(entropy(s), s), ((1 - s) / s).log().detach() / len(s))  # dH/dp = ln((1 - p) / p)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
@few
@given(s=probabilities(), seed=seeds)
def test_the_policy_loss_takes_policies_of_any_dtype(dtype, s, seed):
    u, A = policies(*s.shape, seed), advantages(len(s), seed)
    assert_same(policy_loss(s, u.to(dtype), A), policy_loss(s, u, A))


# ---------------------------------------------------------------------------------------------- laws: static_policy
segments = st.lists(st.integers(1, 20), min_size=1, max_size=5)
kinds = st.sampled_from(["first", "random", "distribute"])


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
    for count, size in zip(kept, segments, strict=True):
        assert count == size or count >= max(kept) - 1


@given(segments, st.data())
def test_distribute_keeps_the_first_blocks_of_each_segment(segments, data):
    u = static_policy("distribute", data.draw(st.integers(0, sum(segments))), segments)
    assert all((part.diff() <= 0).all() for part in u.split(segments))


@given(segments, seeds)
def test_random_is_reproducible_from_its_generator(segments, seed):
    draws = [static_policy("random", sum(segments) // 2, segments, rng(seed)) for _ in range(2)]
    assert torch.equal(*draws)


def test_random_keeps_every_block_equally_often():
    g, N = rng(0), 3000
    kept = torch.stack([static_policy("random", 2, (3, 2), g) for _ in range(N)]).mean(0)
    assert ((kept - 0.4).abs() <= 4.5 * (0.4 * 0.6 / N) ** 0.5).all()


# ----------------------------------------------------------------------------------------------------- the network
@given(st.sampled_from(["cifar", "imagenet"]), st.integers(1, 6), st.booleans(), st.integers(0, 3), seeds)
def test_the_policy_net_is_a_resnet_with_a_logit_a_block_and_a_sigmoid(family, K, half, B, seed):
    net, x = small_policy_net(K, family, 2, half, seed), images(B, 16, 12, seed)
    small = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) if half else x
    ref = Reference(net.features)
    ref.weights.update({f"fc.{part}": net.logit.state_dict()[part] for part in ("weight", "bias")})
    assert_same(net(x).double(), 1 / (1 + (-ref.plain(small)).exp()), 1e-6)


@pytest.mark.parametrize(("family", "widths"), [("cifar", [16, 32, 64]), ("imagenet", [64, 128, 256, 512])])
def test_it_has_one_basic_block_a_segment(family, widths):
    with torch.device("meta"):
        net = policy_net(15, family)
    assert [block.conv2.out_channels for block in net.features.blocks] == widths
    assert net.features.family == family
    assert all(type(block) is BasicBlock for block in net.features.blocks)
    assert (net.logit.in_features, net.logit.out_features, net.num_blocks) == (widths[-1], 15, 15)


@pytest.mark.parametrize(("family", "half"), [("cifar", False), ("imagenet", True)])
def test_only_the_imagenet_policy_net_halves_the_image_unless_told_otherwise(family, half):
    with torch.device("meta"):
        assert [policy_net(3, family, half=given).half for given in (None, True, False)] == [half, True, False]


def test_its_probabilities_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert small_policy_net(3).float()(images(1).float()).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(s=s_anywhere, seed=seeds)
def test_losses_and_gradients_are_finite_at_0_a_half_and_1(dtype, s, seed):
    s = s.to(dtype).requires_grad_()
    u, A = policies(*s.shape, seed), advantages(len(s), seed)
    for loss in (policy_loss(s, u, A), entropy(s)):
        assert loss.isfinite()
        assert gradient(loss, s).isfinite().all()


def test_a_tiny_probability_counts_as_what_it_is():
    s, u, A = torch.tensor([[1e-30]]), torch.tensor([[1.0]]), torch.tensor([1.0])
    assert policy_loss(s, u, A).item() == pytest.approx(30 * math.log(10))
    assert entropy(s).item() == pytest.approx(1e-30 * 30 * math.log(10), rel=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("forced", [0.0, 1.0])
def test_nan_and_inf_in_a_block_that_is_not_free_stay_out_of_the_losses_and_their_gradients(value, forced):
    s, free = torch.tensor([[value, 0.25]], requires_grad=True), torch.tensor([False, True])
    loss, bonus = policy_loss(s, torch.tensor([[forced, 1.0]]), torch.ones(1), free), entropy(s, free)
    assert loss.item() == pytest.approx(math.log(4))
    assert gradient(loss, s).tolist() == [[0, -4]]
    assert bonus.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert gradient(bonus, s).tolist() == [[0, pytest.approx(math.log(3))]]


def test_a_mask_on_the_cpu_serves_losses_on_another_device():
    s, free = torch.full((2, 3), 0.5, device="meta"), torch.tensor([False, True, True])
    assert policy_loss(s, s, s[:, 0], free).is_meta
    assert entropy(s, free).is_meta


def test_a_certain_policy_has_no_entropy_and_its_own_sample_no_loss():
    s = torch.tensor([[0.0, 1.0]])
    assert entropy(s) == 0
    assert policy_loss(s, s, torch.tensor([3.0])) == 0


def test_sampling_from_what_is_not_a_number_is_refused():
    with pytest.raises(FloatingPointError, match=r"^a keep-probability is not finite$"):
        sample(torch.tensor([[0.5, torch.nan]]))


@given(s_anywhere)
def test_alpha_1_leaves_the_probabilities_as_they_are(s):
    assert torch.equal(bound(s, 1), s)


@given(s_anywhere)
def test_the_lowest_alpha_leaves_next_to_nothing_but_coins(s):
    assert_same(bound(s, math.nextafter(0.5, 1)), torch.full_like(s, 0.5), 1e-15)


@pytest.mark.parametrize("alpha", [0.5, 0.3, 0, -1, 1.0001, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha}; it must lie in \(0.5, 1\]"):
        bound(torch.full((1, 1), 0.5), alpha)


@pytest.mark.parametrize("shape", [(4, 1), (1,), (3,), (1, 4), (4, 3), ()])
def test_an_advantage_of_another_shape_is_refused_because_it_would_broadcast_unseen(shape):
    with pytest.raises(ValueError, match=rf"advantage has shape \[{', '.join(map(str, shape))}\]; it must be \[4\]"):
        policy_loss(torch.full((4, 3), 0.5), torch.ones(4, 3), torch.ones(shape))


@pytest.mark.parametrize("shape", [(4, 1), (3,), (1, 3), (4, 4), ()])
def test_a_policy_of_another_shape_is_refused_because_it_would_broadcast_unseen(shape):
    with pytest.raises(ValueError, match=r"u has shape .*; it must be \[4, 3\]"):
        policy_loss(torch.full((4, 3), 0.5), torch.ones(shape), torch.ones(4))


@pytest.mark.parametrize("free", [torch.ones(3), torch.ones(4, 3) > 0, torch.ones(1) > 0, torch.ones(4) > 0])
def test_a_mask_of_another_shape_or_dtype_is_refused(free):
    s = torch.full((4, 3), 0.5)
    for loss in (lambda: policy_loss(s, s.round(), torch.ones(4), free), lambda: entropy(s, free)):
        with pytest.raises(ValueError, match=r"free is torch.* it must be bool \[3\]"):
            loss()


@pytest.mark.parametrize("shape", [(3,), (4, 3, 1), ()])
def test_probabilities_of_another_shape_are_refused(shape):
    s = torch.full(shape, 0.5)
    for loss in (lambda: policy_loss(s, s, torch.ones(shape[:1])), lambda: entropy(s)):
        with pytest.raises(ValueError, match=r"probabilities have shape .*; they must be \[B, K\]"):
            loss()


@pytest.mark.parametrize("keep", [-1, 10])
@pytest.mark.parametrize("kind", ["first", "random", "distribute"])
def test_keeping_more_than_all_or_less_than_none_is_refused(kind, keep):
    with pytest.raises(ValueError, match=f"keep is {keep}; it must lie between 0 and the number of blocks, 9"):
        static_policy(kind, keep, (3, 3, 3))


def test_an_unknown_kind_of_static_policy_is_refused():
    with pytest.raises(ValueError, match='kind is \'last\'; it must be "first", "random" or "distribute"'):
        static_policy("last", 1, (3,))


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match='family is \'mnist\'; it must be "cifar" or "imagenet"'):
        policy_net(3, "mnist")


def test_a_policy_net_may_have_one_block_and_one_channel():
    assert small_policy_net(1, width=1)(images(2)).shape == (2, 1)


@pytest.mark.parametrize(("K", "width"), [(0, 4), (-1, 4), (3, -2), (3, 0)])
def test_a_policy_net_without_blocks_or_channels_is_refused(K, width):
    with pytest.raises(ValueError, match=f"num_blocks is {K} and width is {width}; both must be at least 1"):
        policy_net(K, width=width)


def test_policy_net_gives_a_policy_net_whose_every_weight_learns():
    net = small_policy_net(3, width=8)
    assert isinstance(net, PolicyNet)
    assert all(g.any() for g in gradients(weighted_sum(net(images(2))).double(), net).values())
