"""A training step of ours against one written as the authors': the same loss, and how much sooner.

`python -m pytest tests/test_authors.py --speed -s` measures it: ResNet-110, batches of 64, 17
of 54 blocks kept in the end.
"""

import copy
import functools
import statistics

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, learning
from speed.bench import random_policies, take_turns, untrained
from torch import nn

from blockdrop_min import (
    BlockDrop,
    bound,
    entropy,
    force_on,
    greedy,
    policy_cost,
    policy_loss,
    resnet_cost,
    reward,
    sample,
)
from blockdrop_min.curriculum import curriculum_step
from blockdrop_min.finetuning import finetune_step

ALPHA, BETA, GAMMA = 0.8, 0.1, 2.0
LEARNING = {"curriculum": (False, True), "finetune": (True, True)}  # ResNet, policy network
MOMENTS = {"curriculum": (1 / 8, 3 / 8, 5 / 8, 7 / 8), "finetune": (1.0,)}  # blocks that are free


def authors_step(model, x, y, free, generator, joint):
    """Every block on every image, times 0 or 1, for both policies."""

    def dense(u):
        maps = model.resnet.stem(x)
        for block, keep in zip(model.resnet.blocks, u.T[:, :, None, None, None], strict=True):
            shortcut = block.shortcut(maps)
            maps = keep * (shortcut + block.residual(maps)).relu() + (1 - keep) * shortcut
        return model.resnet.head(maps)

    s = model.policy(x)
    s_bounded = bound(s, ALPHA)
    u = force_on(sample(s_bounded, generator), free)
    u_greedy = force_on(greedy(s.detach()), free)
    with torch.set_grad_enabled(joint):
        logits = dense(u)
    with torch.no_grad():
        R = reward(u, logits.argmax(1) == y, GAMMA)
        model.resnet.eval()  # ours: the greedy pass leaves BatchNorm's statistics alone
        A = R - reward(u_greedy, dense(u_greedy).argmax(1) == y, GAMMA)
        model.resnet.train(joint)
    loss = policy_loss(s_bounded, u, A, free) - BETA * entropy(s_bounded, free)
    return loss + F.cross_entropy(logits, y) if joint else loss


def our_step(model, x, y, free, generator, joint):
    """The same with what train.py calls."""
    if joint:
        return finetune_step(model, x, y, ALPHA, BETA, GAMMA, generator)[0]
    return curriculum_step(model, x, y, free, ALPHA, BETA, GAMMA, generator)[0]


class Drawn(nn.Module):
    """A policy network that runs, and says what `u` says: it keeps with 0.95 or with 0.05."""

    def __init__(self, policy, u):
        super().__init__()
        self.policy = policy
        self.u = u
        self.num_blocks = policy.num_blocks

    def embed(self, x):
        return self.policy.embed(x)

    def keep_probabilities(self, features):
        return 0.05 + 0.9 * self.u + 0 * self.policy.keep_probabilities(features)

    def forward(self, x):
        return self.keep_probabilities(self.embed(x))


def step(take, model, x, stage, free):
    """One step without the optimizer's. Returns its loss."""
    learning(model, *LEARNING[stage])
    model.zero_grad()
    y = torch.arange(len(x)) % 10
    loss = take(model, x, y, free, torch.Generator().manual_seed(1), stage == "finetune")
    loss.backward()
    return loss.detach()


def rivals(depth, keep, size, side):
    """The authors' step and ours, on the same images and policies: name -> f(stage, free)."""
    model = untrained(depth, "cifar")
    u = random_policies(size, model.resnet.num_blocks, keep, torch.Generator().manual_seed(0))
    theirs = BlockDrop(model.resnet, Drawn(model.policy, u))
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    x = torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(2))
    return {
        "authors": functools.partial(step, authors_step, theirs, x),
        "ours": functools.partial(step, our_step, ours, ours.prepare(x)),
    }


def step_flops(stage, free):
    """FLOPs of a step of the authors' and of ours as measured below.

    A backward pass counts as two forward ones.
    """
    model = untrained(110, "cifar")
    u = random_policies(64, 54, 17, torch.Generator().manual_seed(0))
    s = 0.05 + 0.9 * u
    cost = resnet_cost(model.resnet, 32)
    sampled = force_on(sample(bound(s, ALPHA), torch.Generator().manual_seed(1)), free)
    best = force_on(greedy(s), free)
    policy = 3 * 64 * policy_cost(model.policy, 32)
    full = 64 * cost.full
    if stage == "finetune":
        return policy + 4 * full, policy + (3 * cost.of(sampled) + cost.of(best)).sum().item()
    own = best * free  # forced blocks, and the stem, run once for both policies
    once = (cost.of(sampled) + cost.of(own) - cost.fixed).sum().item()
    return policy + 2 * full, policy + once


def test_in_the_curriculum_the_authors_step_has_our_loss():
    # In finetuning BatchNorm sees other images: theirs all, ours those that keep the block.
    steps = rivals(depth=14, keep=3, size=6, side=16)
    losses = {name: take("curriculum", torch.arange(6) >= 2) for name, take in steps.items()}
    assert_same(losses["authors"], losses["ours"], 1e-5)


@pytest.mark.parametrize("stage", MOMENTS)
def test_our_steps_are_faster_than_the_authors(pytestconfig, stage):
    if not pytestconfig.getoption("speed"):
        pytest.skip("minutes, and only on a quiet machine; run with --speed")
    steps = rivals(depth=110, keep=17, size=64, side=32)
    took = dict.fromkeys(steps, 0.0)
    flops = torch.zeros(2)
    for fraction in MOMENTS[stage]:  # evenly spaced in a curriculum that hands over 54 blocks
        free = torch.arange(54) >= 54 - round(fraction * 54)
        times = take_turns(steps, [(stage, free)], torch.device("cpu"), seconds=30)
        for name, series in times.items():
            took[name] += statistics.median(series)
        flops += torch.tensor(step_flops(stage, free))
    faster = took["authors"] / took["ours"]
    print(f"\n{stage}: ours is {faster:.2f} times as fast; by FLOPs {flops[0] / flops[1]:.2f}")
    assert faster > 1.5
