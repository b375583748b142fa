"""Finetuning: the joint step, and the step of the settled policy."""

import copy

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
    gradients,
    images_met,
    learning,
    pair,
    rng,
    seeds,
    state,
)
from hypothesis import given

from blockdrop_min import entropy, greedy, policy_loss, reward
from blockdrop_min.finetuning import finetune_step, settled_step

FIXED = [1.0, 0.0, 1.0]


def ready(seed=LIVELY, fixed=None):
    """A small BlockDrop of three blocks, ready for finetuning."""
    return learning(pair(seed=seed, fixed=fixed), resnet=True, policy=True)


def step(model, x, y, seed=0, full_fraction=0.0, beta=BETA, gamma=GAMMA):
    return finetune_step(model, x, y, ALPHA, beta, gamma, rng(seed), full_fraction)


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


def test_an_image_that_passes_twice_counts_twice_in_the_cross_entropy():
    # All blocks are kept anyway, and images 3 to 5 are 0 to 2 again: more passes change no logit.
    model = ready()
    model.policy = Given(torch.ones(6, 3))
    x, y = batch(3)

    def loss(first, last, full_fraction):
        labels = torch.cat([first, last])
        step_of = copy.deepcopy(model), x.repeat(2, 1, 1, 1), labels, 1.0, BETA, GAMMA, rng(0)
        return finetune_step(*step_of, full_fraction)[0]

    other = (y + 1) % 5
    expected = (2 * loss(y, y, 0.0) + loss(other, other, 0.0)) / 3
    assert_same(loss(y, other, 0.5), expected, 1e-5)


# ------------------------------------------------------- the joint step, laws: what it leaves alone
def test_batchnorm_counts_one_batch_a_finetune_step():
    model = ready()
    step(model, *batch())
    assert model.resnet.bn1.num_batches_tracked == 1


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


def test_in_finetuning_the_resnet_learns():
    model = ready()
    step(model, *batch())[0].backward()
    assert model.resnet.conv1.weight.grad.any()


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


# -------------------------------------------------------------------- the step under a fixed policy
def test_a_fixed_policys_step_is_cross_entropy_under_it():
    model = ready(fixed=FIXED)
    x, y = batch()
    expected = F.cross_entropy(copy.deepcopy(model).resnet(x, torch.tensor(FIXED)), y)
    assert_same(settled_step(model, x, y, GAMMA)[0], expected, 1e-5)


def test_under_a_fixed_policy_the_block_that_it_drops_does_not_learn():
    model = ready(fixed=FIXED)
    settled_step(model, *batch(), GAMMA)[0].backward()
    for k, block in enumerate(model.resnet.blocks):
        learns = block.conv1.weight.grad is not None
        assert learns == (k != 1), f"block {k}"
