"""All 2^K policies, counted: what looking at the image can gain, and what of it was learned.

With few blocks nothing has to be searched. All policies run as a tree: an image branches at each
block, and policies that begin alike share their beginning. That takes 2^K - 1 block evaluations an
image in place of K 2^(K - 1).
"""

import torch
import torch.nn.functional as F

from ..rewards import reward
from .cost import resnet_cost
from .data import centre_crop
from .evaluation import Result, digits, mean_and_error

MAX_BLOCKS = 12
BATCH = 50  # for each of its images at most K + 1 feature maps are in memory
BINS = 5  # of the full network's confidence: as many images of validation in each
NEEDS = {  # how a policy is chosen -> what has to look at the image first, or to know its label
    "learned": "policy net",
    "one for all": "nothing",
    "by confidence": "full net",
    "each image's best": "label",
}


def all_policies(num_blocks, keep=None):
    """All policies [2^K, K], counting in binary from none to all; or those of `keep` blocks."""
    places = torch.arange(num_blocks).flip(0)
    u = (torch.arange(2**num_blocks)[:, None] >> places & 1).float()
    return u if keep is None else u[u.sum(1) == keep]


def branches(blocks, x, keep=None):
    """The outputs of these blocks under all their policies, one after the other.

    x: [B, C, H, W].
    keep: only under the policies of this many blocks.
    Yields [B, C', H', W'], in the order of `all_policies`.
    """
    if not blocks:
        yield x
        return
    shortcut = blocks[0].shortcut(x)
    if keep is None or keep < len(blocks):
        yield from branches(blocks[1:], shortcut, keep)
    if keep != 0:
        x = F.relu(shortcut + blocks[0].residual(x))
        yield from branches(blocks[1:], x, keep and keep - 1)


@torch.inference_mode()
def count(model, split, crop, workers=0, keep=None):
    """Runs all policies, or those of `keep` blocks, on all images of a split. Sets eval mode.

    Returns correct: [N, P] bool, in the order of `all_policies`, and the confidence under the last
    policy, which of all of them keeps every block: [N]; on the CPU.
    Raises ValueError if there are more than MAX_BLOCKS blocks.
    """
    net = model.eval().resnet
    if net.num_blocks > MAX_BLOCKS:
        allowed = f"K can be at most {MAX_BLOCKS}"
        raise ValueError(f"K = {net.num_blocks} blocks have too many policies to count; {allowed}")
    parts = []
    for x, y in split.batches(BATCH, workers=workers):
        x = net.stem(model.prepare(centre_crop(x, crop)))
        correct = []
        for features in branches(net.blocks, x, keep):
            logits = net.head(features)
            correct.append(logits.argmax(1) == y)
        parts.append((torch.stack(correct, 1), logits.softmax(1).amax(1)))
    correct, confidence = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return correct, confidence


def best_by_group(correct, u, gamma, groups):
    """The policy with the highest mean reward in each of BINS groups of images.

    correct: [N, P] bool.
    u: [P, K], the policies; of equals the first is taken.
    groups: [N], the group of each image, from 0.
    Returns [BINS], indices into u; in a group without images the best for all of them.
    """
    member = F.one_hot(groups, BINS).double()  # [N, BINS]
    member[:, member.sum(0) == 0] = 1
    right = member.t() @ correct.double()  # [BINS, P]
    wrong = member.sum(0)[:, None] - right
    R = right * (1 - u.double().mean(1).square()) - gamma * wrong  # as in `reward`, summed
    return R.argmax(1)


def choose(val, test, u, gamma):
    """Every choice of a policy for each test image: name -> [N], indices into u.

    A policy of the frontier, the most accurate of its number of blocks, has its digits for a name.

    val, test: what `count` returns.
    """
    (correct, confidence), (bound, unseen) = val, test
    edges = confidence.double().quantile(torch.arange(1, BINS).double() / BINS)
    groups, others = (torch.bucketize(c.double(), edges) for c in (confidence, unseen))
    everyone = best_by_group(correct, u, gamma, torch.zeros_like(groups))[0]
    chosen = {"one for all": everyone.expand(len(unseen))}
    chosen["by confidence"] = best_by_group(correct, u, gamma, groups)[others]
    above = bound * (1 - u.mean(1).square() + gamma)  # [N, P], `reward` plus gamma
    chosen["each image's best"] = above.argmax(1)
    for keep in range(u.shape[1] + 1):
        same = (u.sum(1) == keep).nonzero()[:, 0]
        best = same[correct[:, same].sum(0).argmax()]
        chosen[digits(u[best])] = best.expand(len(unseen))
    return chosen


def enumerate_policies(model, data, gamma, learned=None, workers=0):
    """What each way to choose a policy achieves on the test set, as plain types, for JSON.

    Chosen on validation, but for the bound, which knows the labels of the test images.

    gamma: the penalty of a wrong prediction, in the reward.
    learned: the `Result` of a learned policy on the test set, or None.
    Returns a dict. policies: what it is chosen by -> numbers. frontier: of each number of blocks
    the single policy with the best accuracy.
    """
    cost = resnet_cost(model.resnet, data.crop)
    u = all_policies(model.resnet.num_blocks)
    val, test = (count(model, split, data.crop, workers) for split in (data.val, data.test))
    results = {"learned": learned} if learned else {}
    for name, index in choose(val, test, u, gamma).items():
        right = test[0].gather(1, index[:, None])[:, 0]
        looks = cost.full if NEEDS.get(name) == "full net" else 0
        results[name] = Result(right, u[index], cost.of(u[index]) + looks, cost.full)

    R = {name: reward(result.u, result.correct, gamma) for name, result in results.items()}
    found = {"gamma": gamma, "policies": {}, "frontier": {}}
    for name, result in results.items():
        row = {"reward": mean_and_error(R[name]), "needs": NEEDS.get(name, "nothing")}
        found["policies" if name in NEEDS else "frontier"][name] = row | result.row()
    found["best_static_reward"] = R["one for all"].mean().item()
    found["informed_reward"] = R["by confidence"].mean().item()
    if learned:
        found["learned_reward"] = R["learned"].mean().item()
    return found
