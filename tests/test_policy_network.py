"""The policy network, and the pure functions of s and u: bound, greedy, sample, force_on."""

import math

import pytest
import torch
from helpers import (
    Reference,
    alphas,
    assert_equal,
    assert_same,
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
    weighted_sum,
)
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import PolicyNet, bound, force_on, greedy, policy_net, sample
from blockdrop_min.masked_resnet import BasicBlock

s_anywhere = probabilities(inside=False)


# ------------------------------------------------------------------------------------------ by hand
def test_bounding_by_hand():
    bounded = bound(torch.tensor([[0.0, 0.9, 1.0]]), alpha=0.8)
    assert_same(bounded, torch.tensor([[0.2, 0.74, 0.8]]), 1e-6)  # 0.8 x 0.9 + 0.2 x 0.1 = 0.74


def test_greedy_keeps_what_is_likely_and_a_tie():
    assert greedy(torch.tensor([[0.49999, 0.5, 0.50001, 0.0, 1.0]])).tolist() == [[0, 1, 1, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_policies_have_the_dtype_of_the_probabilities(dtype):
    assert greedy(torch.tensor([[0.2, 0.7]], dtype=dtype)).dtype == dtype


def test_forcing_on_keeps_the_free_columns_and_writes_1_in_the_others():
    u = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert force_on(u, torch.tensor([False, True, True])).tolist() == [[1, 1, 0], [1, 0, 0]]


# ---------------------------------------------------------------------------------------- two roads
@given(s_anywhere, alphas)
def test_bounding_is_that_of_a_plain_loop(s, alpha):
    expected = [[alpha * p + (1 - alpha) * (1 - p) for p in row] for row in s.tolist()]
    assert_same(bound(s, alpha), torch.tensor(expected, dtype=s.dtype))
    assert_equal(bound(s, 1), s)


@given(s_anywhere)
def test_greedy_is_that_of_a_plain_loop(s):
    assert greedy(s).dtype == s.dtype
    assert greedy(s).tolist() == [[1.0 if p >= 0.5 else 0.0 for p in row] for row in s.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@few
@given(s=s_anywhere, seed=seeds)
def test_a_sample_is_that_of_torchs_bernoulli_on_a_cpu(dtype, s, seed):
    s = s.to(dtype)
    assert_equal(sample(s, rng(seed)), torch.bernoulli(s, generator=rng(seed)))


# -------------------------------------------------------------------------------------- laws: bound
@given(s_anywhere, alphas)
def test_bounding_treats_keeping_and_dropping_alike(s, alpha):
    assert_same(bound(1 - s, alpha), 1 - bound(s, alpha))


@given(s_anywhere, alphas, st.data())
def test_gradients_flow_through_bounding_and_through_the_free_columns_of_forcing(s, alpha, data):
    free = data.draw(masks(s.shape[1]))
    s.requires_grad_()
    found = gradient(force_on(bound(s, alpha), free).sum(), s)
    assert_same(found, (2 * alpha - 1) * free.double().expand_as(s))
    assert not force_on(bound(s.detach(), alpha), free).requires_grad


@given(s_anywhere, alphas)
def test_gradients_flow_through_bounding(s, alpha):
    found = gradient(bound(s.requires_grad_(), alpha).sum(), s)
    assert_same(found, torch.full_like(s, 2 * alpha - 1))


# ------------------------------------------------------------------------------------- laws: sample
@given(s_anywhere, seeds)
def test_a_sample_is_float_0_or_1_without_gradient_and_the_same_for_the_same_seed(s, seed):
    u = sample(s.requires_grad_(), rng(seed))
    assert ((u == 0) | (u == 1)).all()
    assert u.shape == s.shape
    assert u.dtype == s.dtype
    assert not u.requires_grad
    assert_equal(u, sample(s, rng(seed)))


def test_samples_follow_their_generator_go_on_in_it_and_leave_the_global_one_alone():
    s = torch.full((10, 10), 0.5)
    before = torch.get_rng_state()
    g = rng(0)
    first, second = sample(s, g), sample(s, g)
    assert not torch.equal(first, second)
    assert not torch.equal(first, sample(s, rng(1)))
    assert_equal(first, sample(s, rng(0)))
    assert_equal(before, torch.get_rng_state())


def test_without_a_generator_samples_follow_the_global_one_and_go_on_in_it():
    s = torch.full((5, 5), 0.5)
    torch.manual_seed(5)
    first, second = sample(s), sample(s)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert_equal(sample(s), first)


def test_each_block_is_kept_as_often_as_its_probability_says():
    s = torch.tensor([0.0, 0.02, 0.2, 0.5, 0.8, 0.98, 1.0], dtype=torch.float64)
    N = 20_000
    kept = sample(s.expand(N, -1), rng(0)).mean(0)
    error = 4.5 * (s * (1 - s) / N).sqrt()  # 4.5 binomial deviations: 1 in 100,000
    assert ((kept - s).abs() <= error).all()


def test_blocks_and_images_are_sampled_independently():
    N = 20_000
    u = sample(torch.full((N, 5), 0.5, dtype=torch.float64), rng(0)) - 0.5
    blocks = u.T @ u / N  # [K, K] covariances; 1/4 for a block with itself
    neighbours = u[1:].T @ u[:-1] / N
    assert_same(blocks, torch.eye(5).double() / 4, 4.5 / 4 / N**0.5)
    assert_same(neighbours, torch.zeros(5, 5).double(), 4.5 / 4 / N**0.5)


# ----------------------------------------------------------------------------------- laws: force_on
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
@given(free=st.integers(1, 12).flatmap(masks), B=st.integers(0, 5), seed=seeds)
def test_forcing_on_touches_forced_columns_only(dtype, free, B, seed):
    u = policies(B, len(free), seed).to(dtype)
    before = u.clone()
    forced = force_on(u, free)
    assert_equal(u, before)
    assert_equal(forced[:, free], u[:, free])
    assert (forced[:, ~free] == 1).all()
    assert forced.dtype == dtype


# -------------------------------------------------------------------------------------- the network
@pytest.mark.parametrize("family", ["cifar", "imagenet"])
@pytest.mark.parametrize("half_size", [False, True])
@few
@given(K=st.integers(1, 6), B=st.integers(0, 3), seed=seeds)
def test_the_policy_net_is_a_resnet_with_a_logit_a_block_and_a_sigmoid(
    family, half_size, K, B, seed
):
    net = small_policy_net(K, family, 2, half_size, seed)
    x = images(B, 16, 12, seed)
    looked_at = x
    if half_size:
        looked_at = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    ref = Reference(net.features)
    ref.weights["fc.weight"] = net.logit.weight
    ref.weights["fc.bias"] = net.logit.bias
    assert_same(net(x), 1 / (1 + (-ref.plain(looked_at)).exp()), 1e-6)


def test_each_block_has_a_probability_of_its_own():
    net = small_policy_net(3)
    x = images(2)
    before = net(x)
    net.logit.bias.data[1] += 5.0
    after = net(x)
    assert_equal(after[:, [0, 2]], before[:, [0, 2]])
    assert (after[:, 1] > before[:, 1]).all()


def test_half_the_image_in_is_the_whole_of_a_smaller_one():
    halves = small_policy_net(3, half_size=True)
    whole = small_policy_net(3, half_size=False)
    small = images(2, 6, 4)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_same(halves(large), whole(small))
    checks = torch.tensor([[3.0, -1.0], [-4.0, 2.0]]).repeat(6, 4)  # each 2 x 2 sums to 0
    assert_same(halves(large + checks), whole(small))


def test_the_classifier_is_a_linear_layer_on_the_features_and_has_no_part_in_the_policy():
    with_classifier = small_policy_net(3, num_classes=4)
    without = policy_net(3, width=3, half_size=False).double().eval()
    without.load_state_dict(with_classifier.state_dict(), strict=False)
    x = images(2)
    layer = with_classifier.classifier
    expected = without.embed(x) @ layer.weight.T + layer.bias
    assert_same(with_classifier.classify(x), expected)
    assert_equal(with_classifier(x), without(x))


@pytest.mark.parametrize("width", [None, 6])
@pytest.mark.parametrize(("family", "first", "count"), [("cifar", 16, 3), ("imagenet", 64, 4)])
def test_it_has_one_basic_block_a_segment_and_each_twice_as_wide(family, first, count, width):
    with torch.device("meta"):
        net = policy_net(15, family, width)
    widths = [(width or first) * 2**i for i in range(count)]
    assert [block.conv2.out_channels for block in net.features.blocks] == widths
    assert net.features.family == family
    assert {type(block) for block in net.features.blocks} == {BasicBlock}
    assert net.logit.in_features == widths[-1]
    assert net.logit.out_features == net.num_blocks == 15
    assert not hasattr(net, "classifier")


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
@pytest.mark.parametrize("told", [None, True, False])
def test_only_the_imagenet_policy_net_halves_the_image_unless_told_otherwise(family, told):
    with torch.device("meta"):
        net = policy_net(3, family, half_size=told)
    assert net.half_size == (family == "imagenet" if told is None else told)


@given(seeds)
def test_the_probabilities_of_a_policy_net_lie_between_0_and_1(seed):
    s = small_policy_net(3, seed=seed)(images(4, seed=seed))
    assert ((s >= 0) & (s <= 1)).all()


def test_a_new_policy_net_prefers_no_block():
    assert not policy_net(3).logit.bias.any()


def test_its_probabilities_are_float32_under_autocast():
    net = small_policy_net(3).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images(1).float()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_logit_is_converted_to_float32_or_better_before_its_sigmoid(dtype):
    net = small_policy_net(1).to(dtype)
    net.logit.weight.data.zero_()
    net.logit.bias.data.fill_(5.0)
    s = net.keep_probabilities(torch.zeros(2, net.logit.in_features, dtype=dtype))
    assert s.dtype == torch.promote_types(dtype, torch.float32)
    assert s.tolist() == [[pytest.approx(1 / (1 + math.exp(-5)), abs=1e-7)]] * 2  # bfloat16: 0.9922


# -------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize("alpha", [0.5, 0.3, 0, -1, 1.0001, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha}; it must lie in \(0.5, 1\]"):
        bound(torch.full((1, 1), 0.5), alpha)


def test_what_is_not_a_number_is_sampled_as_0():
    assert sample(torch.tensor([[torch.nan, 1.0]])).tolist() == [[0.0, 1.0]]


def test_a_mask_on_the_cpu_forces_policies_on_another_device():
    assert force_on(torch.zeros(2, 3, device="meta"), torch.tensor([False, True, True])).is_meta


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_forcing_on_covers_what_is_not_finite(value):
    s = torch.tensor([[value, 0.25]])
    assert force_on(s, torch.tensor([False, True])).tolist() == [[1.0, 0.25]]


def test_forcing_on_leaves_what_is_not_a_number_in_a_free_column():
    s = torch.tensor([[0.25, torch.nan]])
    assert force_on(s, torch.tensor([False, True])).isnan().tolist() == [[False, True]]


def test_no_mask_forces_nothing():
    u = policies(2, 3)
    assert_equal(force_on(u, None), u)


@pytest.mark.parametrize(
    ("u", "free"),
    [
        (torch.ones(3), torch.ones(3) > 0),  # a policy without images
        (torch.ones(2, 3), torch.ones(3)),
        (torch.ones(2, 3), torch.ones(4) > 0),
        (torch.ones(2, 3), torch.ones(2, 3) > 0),
    ],
)
def test_forcing_on_refuses_a_mask_of_another_shape_or_dtype(u, free):
    with pytest.raises(ValueError, match=r"free is torch.* it must be bool \[3\]"):
        force_on(u, free)


def test_a_policy_net_may_have_one_block_and_one_channel():
    assert small_policy_net(1, width=1)(images(2)).shape == (2, 1)


REFUSED = {(3, "mnist"): 'family is \'mnist\'; it must be "cifar" or "imagenet"'}
for K, width in ((0, 4), (-1, 4), (3, -2), (3, 0)):
    expected = f"num_blocks is {K}, width is {width}; both must be at least 1"
    REFUSED[K, "cifar", width] = expected


@pytest.mark.parametrize("given", REFUSED)
def test_a_policy_net_that_does_not_exist_is_refused(given):
    with pytest.raises(ValueError, match=REFUSED[given]):
        policy_net(*given)


def test_policy_net_gives_a_policy_net_whose_every_weight_learns():
    net = small_policy_net(3, width=8)
    assert isinstance(net, PolicyNet)
    for name, found in gradients(weighted_sum(net(images(2))), net).items():
        assert found.any(), name
