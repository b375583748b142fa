"""What a policy achieves, measured, and the rivals that BlockDrop has to beat."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ..blockdrop import FixedPolicy
from ..policy_network import force_on, greedy
from .cost import policy_cost, resnet_cost
from .data import centre_crop, seeded
from .heuristics import static_policy

BATCH = 250
DRAWS = 3  # what is random is averaged over this many draws
SEARCH = 15  # static policies that the search for the best one tries


@dataclass
class Result:
    """How a policy did on a split.

    correct: [N] bool, whether the predictions are right.
    u: [N, K] of 0/1, the policies.
    flops: [N] float64, the policy network's included.
    flops_full: FLOPs of the full network.
    """

    correct: torch.Tensor
    u: torch.Tensor
    flops: torch.Tensor
    flops_full: int

    def __post_init__(self):
        blocks = self.u.sum(1).double()
        self.accuracy = self.correct.double().mean().item()
        self.blocks_mean = blocks.mean().item()
        self.blocks_std = blocks.std(correction=0).item()
        self.flops_mean = self.flops.mean().item()
        self.flops_std = self.flops.std(correction=0).item()
        self.flops_saved = 1 - self.flops_mean / self.flops_full
        self.distinct_policies = len(self.u.unique(dim=0))

    def row(self):
        """What JSON has of every policy that is compared."""
        return {"accuracy": self.accuracy, "blocks": self.blocks_mean, "flops": self.flops_mean}


@torch.inference_mode()
def run_policy(model, split, crop, u=None, free=None, workers=0):
    """The model on all images of a split, under its greedy policy or under a given one.

    Sets eval mode.

    u: [K] or [N, K] of 0/1; None: the model's own policy.
    free: [K] bool; in the model's own policy other blocks are forced on.
    workers: processes that read images from files.
    Returns a `Result`, its tensors on the CPU.
    """
    model.eval()
    given = None if u is None else u.cpu().expand(len(split), -1).split(BATCH)
    correct = []
    used = []
    for i, (x, y) in enumerate(split.batches(BATCH, workers=workers)):
        x = model.prepare(centre_crop(x, crop))
        policies = force_on(greedy(model.policy(x)), free) if u is None else given[i]
        logits = model.resnet(x, policies, execute="sparse")
        correct.append(logits.argmax(1) == y)
        used.append(policies)
    correct = torch.cat(correct).cpu()  # once, at the end: each move waits for the GPU
    used = torch.cat(used).cpu()
    return Result(correct, used, *flops_under(model, used, crop, u is None))


def flops_under(model, u, image_size, own=True):
    """FLOPs of images under the policies u [B, K]: [B] float64; and those of the full network.

    own: whether the policies are the model's own, so that its policy network is paid for.
    """
    cost = resnet_cost(model.resnet, image_size)
    flops = cost.of(u)
    if own and not isinstance(model.policy, FixedPolicy):
        flops += policy_cost(model.policy, image_size)
    return flops, cost.full


def evaluate_policies(model, data, seed=0, workers=0, counted=None):
    """BlockDrop and its rivals on the test set: name -> `Result`.

    full: all blocks.
    blockdrop: the model's own policy.
    first, random, distribute: the paper's heuristics, with BlockDrop's mean number of blocks.
    best static: the best policy of that many blocks for all images, searched on validation, or
        that of `counted`, the best policies of 0, 1, ..., K blocks.
    blind: random policies that keep each block as often as BlockDrop does, whatever the image.
    """
    run = partial(run_policy, model, data.test, data.crop, workers=workers)
    segments = model.resnet.segments
    generator = seeded(seed, "rivals")
    ours = run()
    keep = max(1, round(ours.blocks_mean))
    rates = ours.u.mean(0)  # [K]

    first = static_policy("first", keep, segments)
    distribute = static_policy("distribute", keep, segments)
    random = [static_policy("random", keep, segments, generator) for _ in range(DRAWS)]
    often = torch.zeros_like(rates).index_fill(0, rates.topk(keep).indices, 1.0)
    if counted is None:
        start = [often, first, distribute]
        best = best_static_policy(model, data.val, data.crop, start, workers)
    else:
        best = counted[keep]
    blind = [torch.bernoulli(rates.expand_as(ours.u), generator=generator) for _ in range(DRAWS)]

    rivals = {"first": [first], "random": random, "distribute": [distribute]}
    rivals |= {"best static": [best], "blind": blind}
    results = {"full": run(torch.ones_like(rates)), "blockdrop": ours}
    for name, draws in rivals.items():
        results[name] = pooled([run(u) for u in draws])
    return results


def best_static_policy(model, split, crop, start, workers=0):
    """The best policy for all images that a search on this split finds, with as many blocks.

    From the best of the starts on, a kept block changes places with a dropped one, and what is
    better is taken, until nothing is or SEARCH policies have been tried.

    start: policies [K] of equally many blocks.
    Returns u: [K].
    """
    run = partial(run_policy, model, split, crop, workers=workers)
    generator = seeded("search")
    starts = dict.fromkeys(tuple(u.tolist()) for u in start)  # each of them once
    tried = {u: run(torch.tensor(u)).accuracy for u in starts}
    best = max(tried, key=tried.get)
    waiting = neighbours(best, generator)
    while waiting and len(tried) < SEARCH:
        u = waiting.pop(0)
        if u in tried:
            continue
        tried[u] = run(torch.tensor(u)).accuracy
        if tried[u] > tried[best]:
            best = u
            waiting = neighbours(best, generator)
    return torch.tensor(best)


def neighbours(u, generator):
    """The policies in which a kept block of u changes places with a dropped one, in random order.

    u and each of them: a tuple of K floats.
    """
    u = torch.tensor(u)
    swaps = torch.cartesian_prod(u.nonzero()[:, 0], (u == 0).nonzero()[:, 0])  # [S, 2]
    swaps = swaps[torch.randperm(len(swaps), generator=generator)]
    new = torch.tensor([[0.0, 1.0]]).expand(len(swaps), 2)
    return [tuple(row) for row in u.repeat(len(swaps), 1).scatter(1, swaps, new).tolist()]


def pooled(results):
    """Several draws of one kind of policy as one `Result` over all their images."""
    tensors = [(result.correct, result.u, result.flops) for result in results]
    return Result(*map(torch.cat, zip(*tensors, strict=True)), results[0].flops_full)


def dealt_loss(model, data, ours, seed=0, workers=0):
    """What is lost if the same policies are dealt to other images: the accuracy and its error.

    Near 0 if the policy does not depend on the image, whatever the number of policies.

    ours: the `Result` of the policies on the test set.
    Returns the loss, a mean over images and DRAWS deals, and its standard error over images.
    """
    generator = seeded(seed, "deals")
    right = 0.0  # [N], how often under a dealt policy
    for _ in range(DRAWS):
        u = ours.u[torch.randperm(len(ours.u), generator=generator)]
        right += run_policy(model, data.test, data.crop, u, workers=workers).correct.double()
    return mean_and_error(ours.correct.double() - right / DRAWS)


def mean_and_error(values):
    """The mean of values [N] and its standard error; of one value, 0."""
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(0.0)
    return values.mean().item(), error.item()


def rank_correlation(a, b):
    """Spearman's rank correlation of two [N]; ties share their mean rank; 0 if one is constant."""
    return F.cosine_similarity(centred_ranks(a), centred_ranks(b), dim=0).item()


def centred_ranks(values):
    """The rank of each value [N] less the mean rank; ties share the mean of theirs."""
    _, place, count = values.double().unique(return_inverse=True, return_counts=True)
    ranks = (count.cumsum(0) - (count - 1) / 2)[place].double()
    return ranks - ranks.mean()
