"""The rivals that BlockDrop has to beat, and what looking at the image is worth beside them."""

from functools import partial
from itertools import product

import torch

from .cost import resnet_cost
from .data import seeded
from .enumeration import all_policies, count
from .evaluation import Result, digits, mean_and_error, run_policy
from .heuristics import static_policy
from .weights import with_resnet

DRAWS = 3  # what is random is averaged over this many draws
COUNTED = 9  # blocks, at most, with which the best static policy is counted,
SOME, FINALISTS = 250, 8  # on so many images, and so many policies on all
SEARCH = 12  # changes that are tried where there are more blocks
TRIALS = 5  # policies of one number of blocks that may become a fair rival


def measure_rivals(model, data, ours, seed=0, workers=0):
    """Policies that look at no image and are not trained, on the test set: name -> `Result`.

    first, random, distribute: the paper's heuristics, with BlockDrop's mean number of blocks.
    best static: the best policy of that many blocks for all images, chosen on validation.
    blind: random policies that keep each block as often as BlockDrop does, whatever the image.

    ours: the `Result` of BlockDrop on the test set.
    """
    generator = seeded(seed, "rivals")
    keep = max(1, round(ours.blocks_mean))
    rates = ours.u.mean(0)  # [K]
    often = torch.zeros_like(rates).index_fill(0, rates.topk(keep).indices, 1.0)
    rates = rates.expand_as(ours.u)
    heuristic = partial(static_policy, keep=keep, segments=model.resnet.segments)
    rivals = {
        "first": [heuristic("first")],
        "random": [heuristic("random", generator=generator) for _ in range(DRAWS)],
        "distribute": [heuristic("distribute")],
        "best static": [best_static(model, data, keep, [often], workers)],
        "blind": [torch.bernoulli(rates, generator=generator) for _ in range(DRAWS)],
    }
    run = partial(run_policy, model, data.test, data.crop, workers=workers)
    return {name: pooled([run(u) for u in draws]) for name, draws in rivals.items()}


def pooled(results):
    """Several draws of one kind of policy as one `Result` over all their images."""
    tensors = [(result.correct, result.u, result.flops) for result in results]
    return Result(*map(torch.cat, zip(*tensors, strict=True)), results[0].flops_full)


def best_static(model, data, keep, start=(), workers=0):
    """The best of `good_static`: u [K]."""
    return good_static(model, data, keep, start, workers)[0]


def good_static(model, data, keep, start=(), workers=0):
    """Policies [K] of `keep` blocks for all images, by their accuracy on validation, best first.

    With up to COUNTED blocks, all such policies run on some of the images, and the best of them on
    all. With more they are searched: SEARCH times, a kept block of the best one so far changes
    places with a dropped one.

    start: policies [K] of `keep` blocks from which the search may begin; it begins from the best of
        them and of the heuristics.
    """
    net = model.resnet
    start = [*start, *(static_policy(kind, keep, net.segments) for kind in ("first", "distribute"))]
    changes = SEARCH if 0 < keep < net.num_blocks else 0
    if net.num_blocks <= COUNTED:
        some = data.val.subset(torch.arange(len(data.val))[:SOME])
        right = count(model, some, data.crop, workers, keep)[0].sum(0)
        start = all_policies(net.num_blocks, keep)[right.argsort(descending=True)[:FINALISTS]]
        changes = 0

    def tried(u):
        return run_policy(model, data.val, data.crop, u, workers=workers).accuracy, u

    found = sorted(map(tried, start), key=lambda pair: -pair[0])
    generator = seeded("search")
    for _ in range(changes):
        best = found[0][1]
        either = (best, 1 - best)  # a random kept block and a random dropped one
        swapped = [torch.multinomial(blocks, 1, generator=generator) for blocks in either]
        u = best.clone()
        u[torch.cat(swapped)] = torch.tensor([0.0, 1.0])
        found = sorted([*found, tried(u)], key=lambda pair: -pair[0])
    return [u for _, u in found]


def static_rivals(model, data, resnet, workers=0):
    """The policies that may be trained as long as BlockDrop, around its mean FLOPs.

    Those of k and of k + 1 blocks have the best accuracies on validation for the pretrained ResNet
    that BlockDrop began with. That says little of what they are once they are trained, so there are
    several candidates, for a short trial.

    model: the `BlockDrop` that was trained.
    resnet: the file of the pretrained ResNet.
    Returns lists of candidates: of k blocks, of k + 1, each as K digits 0 or 1; and the paper's
    heuristics of k blocks, ["first:3"], ...
    """
    ours = run_policy(model, data.val, data.crop, workers=workers)
    cost = resnet_cost(model.resnet, data.crop)
    K = model.resnet.num_blocks
    pretrained = with_resnet(model, resnet)
    keep = int((ours.flops_mean - cost.fixed) / max(cost.blocks))  # or more: blocks differ in cost
    keep = min(max(keep, 1), K - 1)
    found = [good_static(pretrained, data, keep, workers=workers)[:TRIALS]]
    while len(found) < 2 or (min(map(cost.of, found[-1])) < ours.flops_mean and keep < K):
        keep += 1
        found.append(good_static(pretrained, data, keep, workers=workers)[:TRIALS])
    heuristics = [[f"{kind}:{keep - 1}"] for kind in ("first", "random", "distribute")]
    return [list(dict.fromkeys(map(digits, some))) for some in found[-2:]] + heuristics


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


def worth_of_looking(ours, rivals):
    """By how much accuracy BlockDrop beats one policy for all images at equal FLOPs, and its error.

    The comparison is with the best that rivals have at BlockDrop's FLOPs: one that costs no more,
    or the line from it to one that costs more. Below them all it is with the cheapest.

    ours: the `Result` of BlockDrop on the test set, its policy network paid for.
    rivals: those of policies for all images, trained as long, on the same images.
    Returns the paired difference, a mean over images, and its standard error; None if no rival
    costs as much as BlockDrop, and one could.
    """
    rivals = sorted(rivals, key=lambda rival: rival.flops_mean)
    below = [rival for rival in rivals if rival.flops_mean <= ours.flops_mean]
    above = [rival for rival in rivals if rival.flops_mean > ours.flops_mean]
    dear_enough = above or [r for r in below if r.flops_mean == ours.flops_mean or r.u.all()]
    if not dear_enough:
        return None
    lines = [low.correct.double() for low in below or above[:1]]
    for low, high in product(below, above):
        share = (ours.flops_mean - low.flops_mean) / (high.flops_mean - low.flops_mean)
        lines.append(torch.lerp(low.correct.double(), high.correct.double(), share))
    best = max(lines, key=torch.mean)
    return mean_and_error(ours.correct.double() - best)
