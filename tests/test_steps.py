"""What the steps of the curriculum and of finetuning have in common.

What only one of them does is in test_curriculum.py and test_finetuning.py.
"""

import copy
import math

import pytest
import torch
from helpers import (
    ALPHA,
    BETA,
    GAMMA,
    LIVELY,
    Given,
    assert_equal,
    batch,
    drawn,
    gradient,
    learning,
    pair,
    rewarded,
    rng,
    state,
)

from blockdrop_min.curriculum import curriculum_step
from blockdrop_min.finetuning import finetune_step

CURRICULUM = "curriculum"
FINETUNING = "finetuning"
ALL = torch.tensor([True, True, True])
EACH_FREEDOM = [(CURRICULUM, torch.arange(3) >= first) for first in (2, 1, 0)]
EACH_FREEDOM += [(FINETUNING, ALL)]
each_step = pytest.mark.parametrize("kind", [CURRICULUM, FINETUNING])


def ready(kind, seed=LIVELY):
    """A small BlockDrop of three blocks, ready for a step of this kind."""
    model = pair(seed=seed, num_classes=5)
    return learning(model, resnet=kind == FINETUNING, policy=True)


def step(kind, model, x, y, seed=0, alpha=ALPHA, beta=BETA, free=ALL):
    if kind == CURRICULUM:
        return curriculum_step(model, x, y, free, alpha, beta, GAMMA, rng(seed))
    return finetune_step(model, x, y, alpha, beta, GAMMA, rng(seed))


@pytest.mark.parametrize(("kind", "free"), EACH_FREEDOM)
def test_rewards_and_advantages_equal_a_loop_over_images(kind, free):
    model = ready(kind)
    x, _ = batch(60)
    _, u, u_greedy = drawn(model, x, free)
    sampled = copy.deepcopy(model.resnet)  # in the mode of the stage
    classes = sampled(x, u, execute="sparse").argmax(1)
    classes_greedy = copy.deepcopy(model.resnet).eval()(x, u_greedy).argmax(1)
    assert (classes != classes_greedy).any()
    y = torch.where(torch.arange(60) % 2 == 0, classes, classes_greedy)
    y[::5] = (y[::5] + 1) % 5  # and some that are wrong under both
    _, seen = step(kind, model, x, y, free=free)
    for i in range(60):
        R = rewarded(u[i], classes[i] == y[i])
        A = R - rewarded(u_greedy[i], classes_greedy[i] == y[i])
        assert seen["correct"][i] == (classes[i] == y[i]), f"image {i}"
        assert seen["R"][i].item() == pytest.approx(R, abs=1e-6), f"image {i}"
        assert seen["A"][i].item() == pytest.approx(A, abs=1e-6), f"image {i}"


@each_step
def test_a_wrong_sample_is_never_better_than_the_greedy_policy_and_sometimes_worse(kind):
    _, seen = step(kind, ready(kind), *batch(60))
    advantages = seen["A"][~seen["correct"]]
    assert (advantages <= 0).all()
    assert (advantages < 0).any()


@each_step
def test_a_reward_is_negative_exactly_where_the_sample_is_wrong(kind):
    _, seen = step(kind, ready(kind), *batch(60))
    assert_equal(seen["R"] < 0, ~seen["correct"])


@each_step
def test_the_entropy_bonus_of_a_block_that_is_a_coin_is_beta_ln_2(kind):
    model = ready(kind)
    model.policy = Given(torch.full((6, 3), 0.5))
    without, _ = step(kind, copy.deepcopy(model), *batch(), beta=0.0)
    loss, _ = step(kind, model, *batch(), beta=2.0)
    assert (loss - without).item() == pytest.approx(-2 * math.log(2) * 3, abs=1e-5)


@each_step
@pytest.mark.parametrize("beta", [BETA, 0.0])
def test_every_free_blocks_logit_has_a_gradient_with_and_without_a_bonus(kind, beta):
    model = ready(kind)
    loss, _ = step(kind, model, *batch(20), beta=beta)
    assert gradient(loss, model.policy.logit.bias).count_nonzero() == 3


@each_step
def test_at_alpha_near_a_half_no_logit_has_a_gradient_from_the_policy_loss(kind):
    model = ready(kind)
    loss, seen = step(kind, model, *batch(20), alpha=0.5 + 1e-9, beta=0.0)
    assert seen["A"].any()
    assert gradient(loss, model.policy.logit.bias).abs().max() < 1e-6


@each_step
def test_rewards_and_advantages_carry_no_gradient(kind):
    for name, value in step(kind, ready(kind), *batch())[1].items():
        assert not value.requires_grad, name


@each_step
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_policy_network_looks_once_at_each_image_whatever_else_is_asked(kind, share):
    # share: of the classifier's loss in the curriculum, of full passes in finetuning.
    model = ready(kind)
    x, y = batch()
    once = copy.deepcopy(model.policy)
    once(x)
    looks = []
    model.policy.features.conv1.register_forward_hook(lambda *_: looks.append(1))
    if kind == CURRICULUM:
        curriculum_step(model, x, y, ALL, ALPHA, BETA, GAMMA, rng(0), share)
    else:
        finetune_step(model, x, y, ALPHA, BETA, GAMMA, rng(0), share)
    assert_equal(state(model.policy), state(once))
    assert looks == [1]


@each_step
def test_a_step_is_a_function_of_its_generator(kind):
    model = ready(kind)
    x, y = batch(20)
    one, same, other = (step(kind, copy.deepcopy(model), x, y, seed)[0] for seed in (0, 0, 1))
    assert_equal(same, one)
    assert other.item() != one.item()


@each_step
def test_an_image_alone_makes_a_step(kind):
    loss, seen = step(kind, ready(kind), *batch(1))
    assert loss.isfinite()
    assert {name: len(value) for name, value in seen.items()} == {"correct": 1, "R": 1, "A": 1}
