"""A training step of ours against one written as the authors': the same loss, and how much sooner.

`python -m pytest tests/test_speed.py --speed -s` measures it: ResNet-110, batches of 64, 17 of 54 blocks kept in the end;
also without what the curriculum gains from a folded ResNet, and without what the two policies of a step share.
"""

import copy
import functools
import statistics
import unittest.mock

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from torch import nn

from blockdrop_min import BlockDrop, bound, entropy, force_on, greedy, policy_loss, reward, sample, training
from blockdrop_min.lab.bench import synthetic_policies, take_turns, untrained
from blockdrop_min.lab.cost import policy_cost, resnet_cost
from blockdrop_min.lab.folding import fast
from blockdrop_min.finetuning import policy_step, set_mode


def authors_step(model, x, y, free, alpha, beta, gamma, generator, joint=False):
    """Every block on every image, times 0 or 1, for both policies."""

    def dense(u):
        maps = model.resnet.stem(x)
        for block, keep in zip(model.resnet.blocks, u.T[:, :, None, None, None], strict=True):
            shortcut = block.shortcut(maps)
            maps = keep * (shortcut + block.residual(maps)).relu() + (1 - keep) * shortcut
        return model.resnet.head(maps)

    s = model.policy(x)
    s_bounded = bound(s, alpha)
    u, u_greedy = force_on(sample(s_bounded, generator), free), force_on(greedy(s.detach()), free)
    with torch.set_grad_enabled(joint):
        logits = dense(u)
    with torch.no_grad():
        A = reward(u, logits.argmax(1) == y, gamma) - reward(u_greedy, dense(u_greedy).argmax(1) == y, gamma)
    loss = policy_loss(s_bounded, u, A, free) - beta * entropy(s_bounded, free)
    return loss + F.cross_entropy(logits, y) if joint else loss, {}


class Drawn(nn.Module):
    """A policy network that runs, and says what `u` says: it keeps with 0.95 or with 0.05."""

    def __init__(self, policy, u):
        super().__init__()
        self.policy, self.u, self.num_blocks = policy, u, policy.num_blocks

    def forward(self, x):
        return 0.05 + 0.9 * self.u + 0 * self.policy(x)


def step(take, model, x, free, stage):
    """One step without the optimizer's. Returns its loss."""
    set_mode(model, stage)
    model.zero_grad()
    y = torch.arange(len(x)) % 10
    loss, _ = take(model, x, y, free, 0.8, 0.1, 2.0, torch.Generator().manual_seed(0), joint=stage == "finetune")
    loss.backward()
    return loss


def unshared_step(*args, **options):
    """Ours, but each of the two policies passes alone (finetuning asks for one, twice the same)."""
    both = training.correct_under_both

    def alone(net, x, y, u, v):
        first = both(net, x, y, u, u)
        return first if u is v else (first[0], both(net, x, y, v, v)[0])

    with unittest.mock.patch.object(training, "correct_under_both", alone):
        return policy_step(*args, **options)


def rivals(depth, keep, size, side):
    """name -> function (free, stage) -> loss: the authors' step and ours, on the same images and policies."""
    model = untrained(depth, "cifar")
    u = synthetic_policies(size, model.resnet.num_blocks, keep, torch.Generator().manual_seed(0))
    theirs = BlockDrop(model.resnet, Drawn(model.policy, u))
    ours, x = copy.deepcopy(theirs).to(memory_format=torch.channels_last), torch.randn(size, 3, side, side)
    folded = functools.partial(policy_step, frozen=fast(ours.resnet))
    steps = {"sparse, nothing shared": unshared_step, "sparse, shared": policy_step, "ours": folded}
    return {"authors": functools.partial(step, authors_step, theirs, x)} | {
        name: functools.partial(step, take, ours, ours.prepare(x)) for name, take in steps.items()
    }


def step_flops(free, stage):
    """FLOPs of a step of the authors' and of ours in the measurement below, a backward pass counted as two forward ones."""
    model, u = untrained(110, "cifar"), synthetic_policies(64, 54, 17, torch.Generator().manual_seed(0))
    cost, s = resnet_cost(model.resnet, 32), 0.05 + 0.9 * u
    sampled, best = force_on(sample(bound(s, 0.8), torch.Generator().manual_seed(0)), free), force_on(greedy(s), free)
    looks, full = 3 * 64 * policy_cost(model.policy, 32), 64 * cost.full
    if stage == "finetune":
        return looks + 4 * full, looks + (3 * cost.of(sampled) + cost.of(best)).sum().item()
    first = (sampled == best).all(0).long().cumprod(0)  # blocks that all share run once, and so do images that share all
    again = cost.of(best * (1 - first))[(sampled != best).any(1)]
    return looks + 2 * full, looks + (cost.of(sampled).sum() + again.sum()).item()


@pytest.mark.parametrize("name", ["sparse, nothing shared", "sparse, shared", "ours"])
def test_in_the_curriculum_the_authors_step_has_our_loss(name):
    steps, free = rivals(depth=14, keep=3, size=6, side=16), torch.arange(6) >= 2
    assert_same(steps["authors"](free, "curriculum"), steps[name](free, "curriculum"), 1e-5)


@pytest.mark.parametrize(("stage", "shares"), [("curriculum", (1 / 8, 3 / 8, 5 / 8, 7 / 8)), ("finetune", (1.0,))])
def test_our_steps_are_faster_than_the_authors(pytestconfig, stage, shares):
    if not pytestconfig.getoption("speed"):
        pytest.skip("minutes, and only on a quiet machine; run with --speed")
    steps = rivals(depth=110, keep=17, size=64, side=32)
    took, flops = dict.fromkeys(steps, 0.0), torch.zeros(2)
    for share in shares:  # moments of a curriculum, evenly spaced, that hands over 54 blocks
        free = torch.arange(54) >= 54 - round(share * 54)
        runs = {name: functools.partial(step, free, stage) for name, step in steps.items()}
        for name, series in take_turns(runs, torch.device("cpu"), seconds=30).items():
            took[name] += statistics.median(series)
        flops += torch.tensor(step_flops(free, stage))
    faster = {name: took["authors"] / seconds for name, seconds in took.items()}
    print(
        f"\n{stage}, images a second: "
        + ", ".join(f"{name} {64 * len(shares) / took[name]:.1f} (x {faster[name]:.2f})" for name in took)
        + f"; by FLOPs x {flops[0] / flops[1]:.2f}"
    )
    assert faster["ours"] > 1.5
