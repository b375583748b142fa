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
from helpers import ALPHA, BETA, GAMMA, assert_same, learning, rng
from speed.bench import random_policies, take_turns, untrained

from blockdrop_min import bound, entropy, force_on, greedy, policy_loss, reward, sample
from blockdrop_min.curriculum import curriculum_step
from blockdrop_min.finetuning import finetune_step

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


def step(take, model, x, stage, free):
    """One step without the optimizer's. Returns its loss."""
    learning(model, *LEARNING[stage])
    model.zero_grad()
    y = torch.arange(len(x)) % 10
    loss = take(model, x, y, free, rng(1), stage == "finetune")
    loss.backward()
    return loss.detach()


def rivals(depth, keep, size, side):
    """The authors' step and ours, on the same images and policies: name -> f(stage, free)."""
    model = untrained(depth, "cifar")
    u = random_policies(size, model.resnet.num_blocks, keep, rng(0))
    said = torch.logit(0.05 + 0.9 * u)  # a block is kept with 0.95 or with 0.05
    model.policy.logit.register_forward_hook(lambda layer, features, logits: said + 0 * logits)
    ours = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = torch.rand(size, 3, side, side, generator=rng(2))
    return {
        "authors": functools.partial(step, authors_step, model, x),
        "ours": functools.partial(step, our_step, ours, ours.prepare(x)),
    }


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
    for fraction in MOMENTS[stage]:  # evenly spaced in a curriculum that hands over 54 blocks
        free = torch.arange(54) >= 54 - round(fraction * 54)
        times = take_turns(steps, [(stage, free)], torch.device("cpu"), seconds=30)
        for name, series in times.items():
            took[name] += statistics.median(series)
    faster = took["authors"] / took["ours"]
    print(f"\n{stage}: ours is {faster:.2f} times as fast")
    assert faster > 1.5
