"""The laws of answers.py: against PyTorch, the method's own functions and enumeration."""

import itertools

import answers
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, probabilities, rng, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from blockdrop_min import policy_loss, reward


def world(s, seed):
    """A random reward for each image and policy, and J of each image, written out."""
    powers = 2 ** torch.arange(s.shape[1])
    table = torch.randn(len(s), 2 ** s.shape[1], generator=rng(seed), dtype=s.dtype)

    def reward_of(u):
        return table.gather(1, (u.long() * powers).sum(1, keepdim=True)).squeeze(1)

    def expected(s):
        total = 0
        for policy in itertools.product((0, 1), repeat=s.shape[1]):
            u = torch.tensor(policy, dtype=s.dtype).expand_as(s)
            pi = (s**u * (1 - s) ** (1 - u)).prod(1)
            total = total + pi * reward_of(u)
        return total

    return reward_of, expected


def attached_loss(s, u, A):
    return -(A * torch.where(u == 1, s, 1 - s).log().sum(1)).mean()


def measured_factor(s, seed):
    reward_of, expected = world(s, seed)
    s = s.clone().requires_grad_()
    true = torch.autograd.grad(-expected(s).mean(), s)[0]
    attached = sum_over_policies(s, reward_of, expected)
    return ((attached * true).sum(1) / true.square().sum(1)).detach()


def sum_over_policies(s, reward_of, expected):
    total = 0
    for policy in itertools.product((0, 1), repeat=s.shape[1]):
        u = torch.tensor(policy, dtype=s.dtype).expand_as(s)
        likely = torch.where(u == 1, s, 1 - s).prod(1).detach()
        total = total + attached_loss(s, u, likely * (reward_of(u) - expected(s)))
    return torch.autograd.grad(total, s)[0]


# ----------------------------------------------------------------------------------- what it costs
def counted(layer, x):
    """The FLOPs that PyTorch counts, and the size of the output."""
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    return counter.get_total_flops(), tuple(y.shape[2:])


def test_a_convolution_by_hand():
    layer = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    # 5 x 8 pixels become 3 x 4; each reads 3 x 9 numbers for each of 4 channels
    assert answers.layer_cost(layer, (5, 8)) == (2 * 27 * 4 * 12, (3, 4))


def test_a_linear_layer_and_pooling_by_hand():
    flops, _ = answers.layer_cost(torch.nn.Linear(5, 7), (1, 1))
    assert flops == 2 * 5 * 7
    pool = torch.nn.MaxPool2d(3, stride=2, padding=1)
    assert answers.layer_cost(pool, (5, 8)) == (0, (3, 4))


@given(st.data())
def test_a_convolution_costs_what_pytorch_counts(data):
    kernel, stride, padding = (
        data.draw(st.tuples(*[st.integers(low, high)] * 2))
        for low, high in ((1, 4), (1, 3), (0, 1))
    )
    height, width = data.draw(st.tuples(*[st.integers(4, 9)] * 2))
    layer = torch.nn.Conv2d(2, 3, kernel, stride, padding)
    x = torch.zeros(1, 2, height, width)
    assert answers.layer_cost(layer, (height, width)) == counted(layer, x)


def test_costs_are_whole_numbers():
    for layer in (torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(5, 7)):
        assert type(answers.layer_cost(layer, (5, 8))[0]) is int


# -------------------------------------------------------------------- why the advantage is detached
@given(probabilities(max_blocks=4), seeds)
def test_the_expected_gradient_is_that_of_the_expected_reward_written_out(s, seed):
    reward_of, expected = world(s, seed)
    found = answers.expected_gradient(policy_loss, s, reward_of, lambda s: expected(s).detach())
    s = s.clone().requires_grad_()
    assert_same(found, torch.autograd.grad(-expected(s).mean(), s)[0])


@given(probabilities(max_blocks=4), seeds)
def test_with_the_baseline_attached_the_expected_gradient_is_that_of_enumeration(s, seed):
    reward_of, expected = world(s, seed)
    found = answers.expected_gradient(attached_loss, s, reward_of, expected)
    assert_same(found, sum_over_policies(s.clone().requires_grad_(), reward_of, expected))


def any_linear_loss(s, u, A):
    return (A * s[:, 0]).mean()


def test_the_probability_of_a_policy_is_a_weight_and_is_not_differentiated():
    s = torch.tensor([[0.25]], dtype=torch.float64)
    # 0.25 x 1 x ds/ds + 0.75 x 0, and not the derivative of s x s, 0.5
    found = answers.expected_gradient(
        any_linear_loss, s, lambda u: u[:, 0], lambda s: torch.zeros(1)
    )
    assert found.tolist() == [[0.25]]


def test_the_baseline_is_subtracted_and_differentiated_where_it_has_a_gradient():
    s = torch.tensor([[0.25]], dtype=torch.float64)
    # the derivative of (R - s) s is R - 2 s: 0.25 x (1 - 0.5) + 0.75 x (0 - 0.5)
    found = answers.expected_gradient(any_linear_loss, s, lambda u: u[:, 0], lambda s: s[:, 0])
    assert found.tolist() == [[-0.25]]


def test_the_expected_gradient_leaves_s_as_it_was():
    s = torch.tensor([[0.3, 0.6]], dtype=torch.float64)
    reward_of, _ = world(s, 0)
    answers.expected_gradient(policy_loss, s, reward_of, lambda s: torch.zeros(1))
    assert not s.requires_grad and s.tolist() == [[0.3, 0.6]]


def test_the_factor_of_one_coin_by_hand():
    s = torch.tensor([[0.5]], dtype=torch.float64)  # A is +-d/2 and log pi is -ln 2 for both
    assert answers.attached_factor(s).tolist() == pytest.approx([1.693147])


def test_the_factor_of_a_biased_coin_by_hand():
    s = torch.tensor([[0.25]], dtype=torch.float64)
    assert answers.attached_factor(s).tolist() == pytest.approx([1.562335])


def test_the_factor_of_two_coins_by_hand():
    s = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert answers.attached_factor(s).tolist() == pytest.approx([2.386294])


def test_the_factor_of_a_decided_image_is_1():
    s = torch.tensor([[1e-9, 1 - 1e-9], [0, 1]], dtype=torch.float64)
    assert answers.attached_factor(s).tolist() == pytest.approx([1, 1], abs=1e-6)


@given(probabilities(max_blocks=4), seeds)
def test_the_factor_is_what_enumeration_gives(s, seed):
    assert_same(answers.attached_factor(s), measured_factor(s, seed), 1e-6)


# --------------------------------------------------------------------------------- the silent shape
def test_the_silent_loss_of_two_images_by_hand():
    found = answers.broadcast_loss(torch.tensor([-1.0, -2.0]), torch.tensor([3.0, 5.0]))
    assert found.shape == ()
    assert found.item() == pytest.approx((3 * 1 + 3 * 2 + 5 * 1 + 5 * 2) / 4)


@given(st.integers(1, 9), seeds)
def test_the_silent_loss_is_the_mean_over_all_pairs(count, seed):
    log, A = torch.randn(2, count, generator=rng(seed), dtype=torch.float64)
    assert_same(answers.broadcast_loss(log, A), -(A[:, None] * log).mean())


def test_the_silent_loss_of_50_000_images_fits_into_memory():
    count = 50_000  # 50,000 x 50,000 numbers are 20 GB
    found = answers.broadcast_loss(torch.full((count,), -1.0), torch.ones(count))
    assert found.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_silent_loss_teaches_nothing_on_the_silent_batch(count):
    A, log = answers.silent_batch(count).double(), torch.full((count,), -1.0, dtype=torch.float64)
    assert A.shape == (count,)
    log.requires_grad_()
    (wrong,) = torch.autograd.grad(-(A[:, None] * log).mean(), log)
    (right,) = torch.autograd.grad(-(A * log).mean(), log)
    assert wrong.abs().max() < 1e-6
    assert right.abs().min() > 1e-3


def by_a_loop(s, u, A):
    total = 0
    for i in range(len(s)):
        for k in range(s.shape[1]):
            total = total - A[i] * (s[i, k] if u[i, k] == 1 else 1 - s[i, k]).log()
    return total / len(s)


def by_cross_entropy(s, u, A):
    return (A[:, None] * F.binary_cross_entropy(s, u, reduction="none")).sum(1).mean()


RIGHT = {
    "yours": policy_loss,
    "float64": lambda s, u, A: policy_loss(s.double(), u.double(), A.double()),
    "a sum over images": lambda s, u, A: len(s) * policy_loss(s, u, A),
    "a millionth": lambda s, u, A: 1e-6 * policy_loss(s, u, A),
    "a million": lambda s, u, A: 1e6 * policy_loss(s, u, A),
}
MIXING = {  # the silent loss first: it judges each image by the mean
    "silent": lambda s, u, A: policy_loss(s, u, A.mean().expand_as(A)),
    "neighbour": lambda s, u, A: policy_loss(s, u, A.roll(1)),
    "sorted": lambda s, u, A: policy_loss(s, u, A.sort().values),
    "reversed": lambda s, u, A: policy_loss(s, u, A.flip(0)),
    "centred": lambda s, u, A: policy_loss(s, u, A - A.mean()),
    "scaled": lambda s, u, A: policy_loss(s, u, A / A.std()),
    "the first": lambda s, u, A: policy_loss(s, u, A[:1].expand_as(A)),
    "the last is another's": lambda s, u, A: policy_loss(s, u, torch.cat([A[:-1], A[:1]])),
    "the others exchanged": lambda s, u, A: policy_loss(s, u, torch.cat([A[:1], A[1:].flip(0)])),
    "a millionth": lambda s, u, A: 1e-6 * policy_loss(s, u, A.roll(1)),
    "cumulative": lambda s, u, A: policy_loss(s, u, A.cumsum(0)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_test_accepts_a_right_loss(name):
    assert answers.catches(RIGHT[name]) is True


@pytest.mark.parametrize("loss", [by_a_loop, by_cross_entropy])
def test_the_test_accepts_a_right_loss_that_is_written_in_another_way(loss):
    assert answers.catches(loss) is True


@pytest.mark.parametrize("name", MIXING)
def test_the_test_refuses_a_loss_that_mixes_images(name):
    assert answers.catches(MIXING[name]) is False


def test_the_test_calls_the_loss_not_too_often():
    calls = []
    answers.catches(lambda s, u, A: calls.append(1) or policy_loss(s, u, A))
    assert 0 < len(calls) <= 20


# ----------------------------------------------------------------------------- the price of a block
def expected_reward(right, keep, num_blocks, gamma):
    """By the method's own reward, of an image that is right with this probability."""
    u = (torch.arange(num_blocks) < keep).double().expand(2, -1)
    R = reward(u, torch.tensor([True, False]), gamma)
    return (right * R[0] + (1 - right) * R[1]).item()


@given(st.data(), st.floats(0.1, 1), st.integers(2, 20), st.floats(0.1, 20))
def test_at_break_even_both_choices_earn_the_same(data, right, num_blocks, gamma):
    keep = data.draw(st.integers(1, num_blocks))
    fewer = data.draw(st.integers(0, keep - 1))
    q = answers.breakeven(right, keep, fewer, num_blocks, gamma)
    earned = expected_reward(q, fewer, num_blocks, gamma)
    assert earned == pytest.approx(expected_reward(right, keep, num_blocks, gamma), abs=1e-5)


def test_from_9_to_7_of_9_blocks_at_gamma_2_by_hand():
    assert answers.breakeven(1.0, 9, 7, 9, 2.0) == pytest.approx(0.835052)


def test_with_no_penalty_and_all_blocks_kept_nothing_is_too_unlikely():
    assert answers.breakeven(0.9, 9, 5, 9, 0.0) == 0


def test_break_even_is_a_number():
    assert type(answers.breakeven(0.9, 9, 5, 9, 2.0)) is float


def test_break_even_grows_with_gamma_towards_the_probability_itself():
    found = [answers.breakeven(0.8, 6, 3, 9, gamma) for gamma in (0.0, 1.0, 4.0, 16.0, 1e9)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.8)
