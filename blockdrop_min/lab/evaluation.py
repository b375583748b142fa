"""What a run has learned, measured: accuracy, blocks and FLOPs of its policy and of those that it has to beat."""

from dataclasses import dataclass

import torch

from ..blockdrop import FixedPolicy, static_policy
from ..policy_net import force_on, greedy
from .cost import policy_cost, resnet_cost
from .data import centre_crop, seeded

BATCH = 250
DRAWS = 3  # random policies are averaged over this many draws
SEARCH = 15  # static policies that the search for the best one tries


@dataclass
class Result:
    """How a policy did on a split. correct: [N] bool.    u: [N, K].    flops: [N], policy network included."""

    correct: torch.Tensor
    u: torch.Tensor
    flops: torch.Tensor
    flops_full: int

    def __post_init__(self):
        blocks = self.u.sum(1).double()
        self.accuracy = self.correct.double().mean().item()
        self.blocks_mean, self.blocks_std = blocks.mean().item(), blocks.std(correction=0).item()
        self.flops_mean, self.flops_std = (
            self.flops.mean().item(),
            self.flops.std(correction=0).item(),
        )
        self.flops_saved = 1 - self.flops_mean / self.flops_full
        self.distinct_policies = len(self.u.unique(dim=0))


def flops_under(model, u, image_size, looks=True):
    """FLOPs of each image under the policies u [B, K], the policy network's included if it `looks`: [B] float64.

    A `FixedPolicy` looks at nothing.    Returns them, and the FLOPs of the full network.
    """
    cost = resnet_cost(model.resnet, image_size)
    looks = looks and not isinstance(model.policy, FixedPolicy)
    return cost.of(u) + (policy_cost(model.policy, image_size) if looks else 0), cost.full


@torch.inference_mode()
def run_policy(model, split, crop, u=None, free=None, threshold=None, workers=0):
    """The model on all images of a split, under its greedy policy or under a given one. Sets eval mode.

    u: [K] or [N, K], 0/1; None for the model's own policy, in which blocks that are not `free` [K] are forced on and
    `threshold` may replace the model's.    Returns a `Result`, its tensors on the CPU.
    """
    model.eval()
    given = None if u is None else u.expand(len(split), -1).to(split.labels.device).split(BATCH)
    correct, used = [], []
    for i, (x, y) in enumerate(split.batches(BATCH)):
        x = model.prepare(centre_crop(x, crop))
        if given:
            policies = given[i]
        else:
            policies = greedy(model.policy(x), model.threshold if threshold is None else threshold)
            policies = force_on(policies, free)
        logits = model.resnet(x, policies, execute="sparse")
        correct.append((logits.argmax(1) == y).cpu())
        used.append(policies.cpu())
    used = torch.cat(used)
    return Result(torch.cat(correct), used, *flops_under(model, used, crop, looks=not given))


def best_static_policy(model, split, crop, start):
    """The best policy [K] for all images that a search on this split finds, with as many blocks as those it starts from.

    start: policies [K] of equally many blocks. From the best of them on, one kept block at a time changes places
    with a dropped one, and what is better is taken, until nothing is or SEARCH policies have been tried.
    """
    tried = {}

    def accuracy(u):
        key = tuple(u.tolist())
        if key not in tried:
            tried[key] = run_policy(model, split, crop, u).accuracy
        return tried[key]

    best = max(start, key=accuracy)
    generator, improved = seeded("search"), True
    while improved:
        improved = False
        swaps = torch.cartesian_prod(best.nonzero()[:, 0], (best == 0).nonzero()[:, 0])
        for i in torch.randperm(len(swaps), generator=generator).tolist():
            on, off = swaps[i].tolist()
            other = best.clone()
            other[on], other[off] = 0, 1
            if len(tried) < SEARCH and accuracy(other) > accuracy(best):
                best, improved = other, True
                break
    return best


def pooled(results):
    """Several draws of one kind of policy as one result over all their images."""
    parts = (
        torch.cat([getattr(result, part) for result in results])
        for part in ("correct", "u", "flops")
    )
    return Result(*parts, results[0].flops_full)


def compare(model, data, seed=0):
    """BlockDrop and its rivals on the test set: a dict name -> `Result`.

    first, random, distribute: the paper's heuristics with BlockDrop's number of blocks, rounded.    best static: the best
    policy of that many blocks for all images, searched on the validation split.    blind: random policies that keep each
    block as often as BlockDrop does, whatever the image.
    """
    K, crop, generator = model.resnet.num_blocks, data.crop, seeded(seed, "rivals")

    def test(u=None):
        return run_policy(model, data.test, crop, u)

    ours = test()
    keep, rates = max(1, round(ours.blocks_mean)), ours.u.mean(0)
    static = {
        kind: static_policy(kind, keep, model.resnet.segments) for kind in ("first", "distribute")
    }
    random = [static_policy("random", keep, model.resnet.segments, generator) for _ in range(DRAWS)]
    often = torch.zeros(K).index_fill(0, rates.topk(keep).indices, 1.0)
    best = best_static_policy(model, data.val, crop, [often, *static.values()])
    blind = [
        torch.bernoulli(rates.expand(len(data.test), K), generator=generator) for _ in range(DRAWS)
    ]
    return {
        "full": test(torch.ones(K)),
        "blockdrop": ours,
        "first": test(static["first"]),
        "random": pooled([test(u) for u in random]),
        "distribute": test(static["distribute"]),
        "best static": test(best),
        "blind": pooled([test(u) for u in blind]),
    }


def rank_correlation(a, b):
    """Spearman's rank correlation of two [N], ties sharing their mean rank; 0 if either is constant."""

    def ranks(v):
        _, place, count = v.double().unique(return_inverse=True, return_counts=True)
        return (count.cumsum(0) - (count - 1) / 2)[place]

    a, b = (r - r.mean() for r in (ranks(a), ranks(b)))
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return (a @ b / scale).item() if scale > 0 else 0.0
