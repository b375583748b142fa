"""Finetuning: the joint step, and the step of the settled policy."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    ALPHA,
    BETA,
    GAMMA,
    LIVELY,
    Given,
    assert_equal,
    assert_no_gradient,
    assert_same,
    batch,
    drawn,
    few,
    gradient,
    gradients,
    images_met,
    learning,
    pair,
    rewarded,
    rng,
    seeds,
    state,
)
from hypothesis import given

from blockdrop_min import bound, entropy, greedy, policy_loss, reward
from blockdrop_min.finetuning import finetune_step, settled_step

FIXED = [1.0, 0.0, 1.0]


def ready(seed=LIVELY, fixed=None):
    """A small BlockDrop of three blocks, ready for finetuning."""
    return learning(pair(seed=seed, fixed=fixed), resnet=True, policy=True)


def step(model, x, y, seed=0, full_fraction=0.0, beta=BETA, gamma=GAMMA):
    return finetune_step(model, x, y, ALPHA, beta, gamma, rng(seed), full_fraction)


# -------------------------------------------------------------------------- the joint step, by hand
def test_the_advantage_of_finetuning_is_over_the_greedy_policy_in_eval_mode():
    model = ready()
    x, _ = batch(60)
    _, u, u_greedy = drawn(model, x)
    classes = copy.deepcopy(model.resnet)(x, u, execute="sparse").argmax(1)  # in training mode
    classes_greedy = copy.deepcopy(model.resnet).eval()(x, u_greedy).argmax(1)
    assert (classes != classes_greedy).any()
    y = torch.where(torch.arange(60) % 2 == 0, classes, classes_greedy)
    _, seen = step(model, x, y)
    for i in range(60):
        R = rewarded(u[i], classes[i] == y[i])
        A = R - rewarded(u_greedy[i], classes_greedy[i] == y[i])
        assert seen["R"][i].item() == pytest.approx(R, abs=1e-6), f"image {i}"
        assert seen["A"][i].item() == pytest.approx(A, abs=1e-6), f"image {i}"


def test_a_wrong_sample_of_finetuning_is_never_better_than_the_greedy_policy_and_sometimes_worse():
    model = ready()
    x, y = batch(60)
    _, seen = step(model, x, y)
    advantages = seen["A"][~seen["correct"]]
    assert (advantages <= 0).all()
    assert (advantages < 0).any()


def test_the_entropy_bonus_of_finetuning_is_beta_ln_2_for_a_block_that_is_a_coin():
    model = ready()
    model.policy = Given(torch.full((6, 3), 0.5))
    x, y = batch()
    without, _ = step(copy.deepcopy(model), x, y, beta=0.0)  # a step moves BatchNorm's statistics
    loss, _ = step(model, x, y, beta=2.0)
    assert (loss - without).item() == pytest.approx(-2 * math.log(2) * 3, abs=1e-5)


# ------------------------------------------------------------------------ the joint step, two roads
@pytest.mark.parametrize(
    ("full_fraction", "full"),  # of 6 images, rounded up
    [(0.0, 0), (0.1, 1), (0.5, 3), (1.0, 6)],
)
@few
@given(seed=seeds)
def test_finetuning_adds_the_cross_entropy_of_the_sampled_pass_and_of_a_share_of_full_passes(
    full_fraction, full, seed
):
    model = ready(seed % 100)
    x, y = batch(seed=seed)
    s_bounded, u, _ = drawn(model, x, seed=seed)
    inputs = torch.cat([x, x[:full]])
    policies = torch.cat([u, torch.ones(full, 3)])
    logits = copy.deepcopy(model).resnet(inputs, policies, execute="sparse")
    loss, seen = step(model, x, y, seed, full_fraction)
    policy_part = policy_loss(s_bounded, u, seen["A"]) - BETA * entropy(s_bounded)
    assert_same(loss, policy_part + F.cross_entropy(logits, torch.cat([y, y[:full]])), 1e-5)
    assert_equal(seen["correct"], logits[:6].argmax(1) == y)


# ----------------------------------------------------------- the joint step, laws: what it computes
@pytest.mark.parametrize(("full_fraction", "full"), [(0.0, 0), (0.5, 3)])
def test_a_finetune_step_computes_the_blocks_that_its_policies_keep(full_fraction, full):
    model = ready()
    x, y = batch()
    _, u, u_greedy = drawn(model, x)
    counts = images_met(model.resnet)
    step(model, x, y, full_fraction=full_fraction)
    assert sum(counts) == u.sum() + u_greedy.sum() + 3 * full


def test_no_image_passes_twice_unless_told():
    model = ready()
    x, y = batch()
    told, _ = step(copy.deepcopy(model), x, y, full_fraction=0.0)
    untold, _ = finetune_step(model, x, y, ALPHA, BETA, GAMMA, rng(0))
    assert_equal(untold, told)


@pytest.mark.parametrize(("full_fraction", "full"), [(0.0, []), (0.1, [1] * 3), (0.5, [3] * 3)])
def test_a_share_of_the_images_rounded_up_also_passes_with_all_blocks_on(full_fraction, full):
    model = ready()
    model.policy = Given(torch.zeros(6, 3))  # drops every block
    x, y = batch()
    counts = images_met(model.resnet)
    finetune_step(model, x, y, 1.0, BETA, GAMMA, rng(0), full_fraction)
    assert counts == full


def test_the_policy_network_of_finetuning_looks_once_at_each_image():
    model = ready()
    x, y = batch()
    once = copy.deepcopy(model.policy)
    once(x)
    step(model, x, y, full_fraction=0.5)
    assert_equal(state(model.policy), state(once))


# ------------------------------------------------------- the joint step, laws: what it leaves alone
def test_the_greedy_pass_of_finetuning_updates_no_batchnorm():
    model = ready()
    x, y = batch()
    sampled_only = copy.deepcopy(model.resnet)
    sampled_only(x, drawn(model, x)[1], execute="sparse")
    step(model, x, y)
    assert_equal(state(model.resnet), state(sampled_only))


def test_the_greedy_pass_of_finetuning_sends_no_gradient():
    model = ready()
    x, y = batch()
    alone = copy.deepcopy(model.resnet)
    expected = F.cross_entropy(alone(x, drawn(model, x)[1], execute="sparse"), y)
    loss, _ = step(model, x, y)
    assert_same(gradients(loss, model.resnet), gradients(expected, alone), 1e-6)


def test_finetuning_leaves_both_networks_in_training_mode():
    model = ready()
    step(model, *batch())
    assert {module.training for module in model.modules() if module is not model} == {True}


# ---------------------------------------------------------------- the joint step, laws: what learns
def test_the_cross_entropy_reaches_only_the_resnet():
    model = ready()
    x, y = batch()
    policy = copy.deepcopy(model.policy)
    _, u, _ = drawn(model, x)
    loss, seen = step(model, x, y)
    s_bounded = bound(policy(x), ALPHA)
    alone = policy_loss(s_bounded, u, seen["A"]) - BETA * entropy(s_bounded)
    assert_same(gradients(loss, model.policy), gradients(alone, policy), 1e-6)


def test_the_policy_loss_reaches_only_the_policy_network():
    model = ready()
    x, y = batch()
    without, _ = step(model, x, y, beta=0.0, gamma=0.0)
    found = gradients(without, model.resnet)
    much, _ = step(model, x, y, beta=9.0, gamma=99.0)
    assert_same(gradients(much, model.resnet), found, 1e-6)


def test_every_weight_of_a_block_that_an_image_keeps_learns_in_finetuning():
    model = ready()
    x, y = batch()
    _, u, _ = drawn(model, x)
    loss, _ = step(model, x, y)
    for k, block in enumerate(model.resnet.blocks):
        for name, found in gradients(loss, block).items():
            assert bool(found.any()) == bool(u[:, k].any()), f"block {k}, {name}"


def test_every_blocks_logit_has_a_gradient_in_finetuning():
    model = ready()
    x, y = batch(20)
    assert gradient(step(model, x, y)[0], model.policy.logit.bias).count_nonzero() == 3


def test_every_blocks_logit_has_a_gradient_without_a_bonus():
    model = ready()
    loss, _ = step(model, *batch(20), beta=0.0)
    assert gradient(loss, model.policy.logit.bias).count_nonzero() == 3


def test_in_finetuning_the_resnet_learns():
    model = ready()
    step(model, *batch())[0].backward()
    assert model.resnet.conv1.weight.grad.any()


def test_rewards_and_advantages_of_finetuning_carry_no_gradient():
    model = ready()
    for name, value in step(model, *batch())[1].items():
        assert not value.requires_grad, name


# ---------------------------------------------------------------------------- the joint step, edges
def test_a_finetune_step_is_a_function_of_its_generator():
    model = ready()
    x, y = batch(20)
    one, same, other = (step(copy.deepcopy(model), x, y, seed)[0] for seed in (0, 0, 1))
    assert_equal(same, one)
    assert other.item() != one.item()


def test_an_image_alone_makes_a_finetune_step():
    loss, seen = step(ready(), *batch(1), full_fraction=1.0)
    assert loss.isfinite()
    assert {name: len(value) for name, value in seen.items()} == {"correct": 1, "R": 1, "A": 1}


# --------------------------------------------------------------------------------- the settled step
@few
@given(seeds)
def test_a_settled_step_is_cross_entropy_under_the_policies_that_the_model_has_in_use(seed):
    model = ready(seed % 100)
    x, y = batch(20, seed=seed)
    reference = copy.deepcopy(model)
    u = greedy(reference.policy.eval()(x))
    logits = reference.resnet(x, u, execute="sparse")  # in training mode
    loss, seen = settled_step(model, x, y, GAMMA)
    correct = logits.argmax(1) == y
    assert_same(loss, F.cross_entropy(logits, y), 1e-5)
    assert_equal(seen["correct"], correct)
    assert_equal(seen["R"], reward(u, correct, GAMMA))
    assert_equal(seen["A"], torch.zeros(20))


def test_a_settled_step_leaves_the_policy_network_as_it_is():
    model = ready()
    before = state(model.policy)
    settled_step(model, *batch(), GAMMA)[0].backward()
    assert_equal(state(model.policy), before)  # BatchNorm's statistics, too
    assert_no_gradient(model.policy)


def test_in_a_settled_step_the_resnet_learns():
    model = ready()
    settled_step(model, *batch(), GAMMA)[0].backward()
    assert model.resnet.conv1.weight.grad.any()


# -------------------------------------------------------------------- the step under a fixed policy
def test_a_fixed_policys_step_is_cross_entropy_under_it():
    model = ready(fixed=FIXED)
    x, y = batch()
    expected = F.cross_entropy(copy.deepcopy(model).resnet(x, torch.tensor(FIXED)), y)
    assert_same(settled_step(model, x, y, GAMMA)[0], expected, 1e-5)


def test_a_fixed_policys_step_says_which_predictions_are_right():
    model = ready(fixed=FIXED)
    x, _ = batch()
    y = copy.deepcopy(model).resnet(x, FIXED, execute="sparse").argmax(1)
    y[1::2] = (y[1::2] + 1) % 5
    assert settled_step(model, x, y, GAMMA)[1]["correct"].tolist() == [True, False] * 3


def test_a_fixed_policys_step_computes_the_blocks_that_it_keeps():
    model = ready(fixed=FIXED)
    counts = images_met(model.resnet)
    settled_step(model, *batch(), GAMMA)
    assert counts == [6, 6]


def test_under_a_fixed_policy_the_block_that_it_drops_does_not_learn():
    model = ready(fixed=FIXED)
    settled_step(model, *batch(), GAMMA)[0].backward()
    for k, block in enumerate(model.resnet.blocks):
        learns = block.conv1.weight.grad is not None
        assert learns == (k != 1), f"block {k}"
