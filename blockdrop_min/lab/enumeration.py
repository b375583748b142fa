"""All 2^K policies, counted: what looking at the image can gain, and what of it was learned.

With few blocks nothing has to be searched. All policies run as a tree: an image branches at each
block, and policies that begin alike share their beginning. That takes 2^K - 1 block evaluations an
image in place of K 2^(K - 1).
"""

import torch
import torch.nn.functional as F

from ..rewards import reward
from .cost import policy_cost, resnet_cost
from .data import centre_crop
from .evaluation import Result, mean_and_error, run_policy

MAX_BLOCKS = 12
BATCH = 50  # for each of its images at most K + 1 feature maps are in memory
BINS = (2, 3, 5, 8)  # of the full network's confidence
NEEDS = {  # how a policy is chosen -> what has to look at the image first, or to know its label
    "learned": "policy net",
    "one for all": "nothing",
    "by confidence": "full net",
    "by predicted class": "full net",
    "by glimpsed class": "policy net",
    "by true class": "label",
    "each image's best": "label",
}


def all_policies(num_blocks):
    """All policies [2^K, K], counting in binary: from all blocks dropped to all blocks kept."""
    places = torch.arange(num_blocks).flip(0)
    return (torch.arange(2**num_blocks)[:, None] >> places & 1).float()


def branches(blocks, x):
    """The outputs of these blocks under all their policies, one after the other.

    x: [B, C, H, W].
    Yields [B, C', H', W'], in the order of `all_policies`.
    """
    if not blocks:
        yield x
        return
    shortcut = blocks[0].shortcut(x)
    yield from branches(blocks[1:], shortcut)
    yield from branches(blocks[1:], F.relu(shortcut + blocks[0].residual(x)))


@torch.inference_mode()
def count(model, split, crop, workers=0):
    """Runs all policies on all images of a split. Sets eval mode.

    Returns name -> tensor, on the CPU. "correct": [N, 2^K] bool, in the order of `all_policies`.
    What a policy may be chosen by (`NEEDS`): [N]; the glimpsed class is the policy
    network's, if it has a classifier.
    Raises ValueError if there are more than MAX_BLOCKS blocks.
    """
    net = model.eval().resnet
    if net.num_blocks > MAX_BLOCKS:
        allowed = f"K can be at most {MAX_BLOCKS}"
        raise ValueError(f"K = {net.num_blocks} blocks have too many policies to count; {allowed}")
    parts = []
    for x, y in split.batches(BATCH, workers=workers):
        x = model.prepare(centre_crop(x, crop))
        correct = []
        for features in branches(net.blocks, net.stem(x)):
            logits = net.head(features)
            correct.append(logits.argmax(1) == y)
        confidence, predicted = logits.softmax(1).max(1)  # the last policy keeps all blocks
        part = {"correct": torch.stack(correct, 1), "one for all": torch.zeros_like(y)}
        part |= {"by confidence": confidence, "by predicted class": predicted, "by true class": y}
        if hasattr(model.policy, "classifier"):
            part["by glimpsed class"] = model.policy.classify(x).argmax(1)
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def best_by_group(correct, u, gamma, groups, others):
    """The policy with the highest mean reward in each group of images, for images like them.

    correct: [N, P] bool.
    u: [P, K], the policies.
    groups: [N], the group of each image.
    others: [N'], the groups of the images that get the policies.
    Returns [N'], indices into u: of equals the first; in a new group the best of all N images.
    """
    num_groups = int(torch.cat([groups, others]).max()) + 1
    member = F.one_hot(groups, num_groups).float()  # [N, G]
    member[:, member.sum(0) == 0] = 1
    right = (member.t() @ correct.float()).double()  # [G, P]
    wrong = member.sum(0)[:, None] - right
    R = right * (1 - u.double().mean(1).square()) - gamma * wrong  # as in `reward`, summed
    return R.argmax(1)[others]


def cross_fitted(correct, u, gamma, groups):
    """The mean reward by `best_by_group` if each half of the images gets the other's choice."""
    even = torch.arange(len(correct)) % 2 == 0
    R = []
    for fit, held in ((even, ~even), (~even, even)):
        chosen = best_by_group(correct[fit], u, gamma, groups[fit], groups[held])
        right = correct[held].gather(1, chosen[:, None])[:, 0]
        R.append(reward(u[chosen], right, gamma))
    return torch.cat(R).mean().item()


def put_into_bins(val, test, u, gamma):
    """Replaces confidences by their bins: quantiles of validation, as many as serve best there."""
    confidence = val["by confidence"]
    candidates = []
    for bins in BINS:
        edges = confidence.quantile(torch.arange(1, bins, dtype=confidence.dtype) / bins)
        groups = torch.bucketize(confidence, edges)
        candidates.append((cross_fitted(val["correct"], u, gamma, groups), edges))
    edges = max(candidates, key=lambda candidate: candidate[0])[1]
    for split in (val, test):
        split["by confidence"] = torch.bucketize(split["by confidence"], edges)
    return len(edges) + 1


def choose(val, test, u, gamma):
    """Every choice of a policy for each test image: (name -> [N], indices into u; name -> fit).

    The fit is how well a choice that looks at the image serves on validation, `cross_fitted`. A
    policy of the frontier has its digits for a name.
    """
    chosen = {}
    fit = {}
    for name in [name for name in NEEDS if name in val]:
        chosen[name] = best_by_group(val["correct"], u, gamma, val[name], test[name])
        if "net" in NEEDS[name]:
            fit[name] = cross_fitted(val["correct"], u, gamma, val[name])
    above = test["correct"] * (1 - u.mean(1).square() + gamma)  # [N, P], `reward` plus gamma
    chosen["each image's best"] = above.argmax(1)
    for keep in range(u.shape[1] + 1):
        same = (u.sum(1) == keep).nonzero()[:, 0]
        best = same[val["correct"][:, same].sum(0).argmax()]
        chosen["".join(str(int(kept)) for kept in u[best])] = best.expand(len(above))
    return chosen, fit


def enumerate_policies(model, data, gamma, learned=True, workers=0):
    """What each way to choose a policy achieves on the test set, as plain types, for JSON.

    Chosen on validation, but for two bounds, which know the label of a test image or its class.

    gamma: the penalty of a wrong prediction, in the reward.
    learned: whether the model's policy is a learned one, which is then compared with the others.
    Returns a dict. policies: what it is chosen by -> numbers. frontier: of each number of blocks
    the single policy with the best accuracy. regret_static, regret_informed: what the best single
    policy, and the best that looks, have more than the learned one; gain_informed: what the second
    has more than the first. These are paired differences in reward, (mean, standard error).
    """
    val = count(model, data.val, data.crop, workers)
    test = count(model, data.test, data.crop, workers)
    cost = resnet_cost(model.resnet, data.crop)
    u = all_policies(model.resnet.num_blocks)
    order = cost.of(u).argsort(stable=True)  # so that the first of equals is the cheapest
    u = u[order]
    for split in (val, test):
        split["correct"] = split["correct"][:, order]
    bins = put_into_bins(val, test, u, gamma)
    chosen, fit = choose(val, test, u, gamma)

    looks = {"full net": cost.full}
    if "by glimpsed class" in fit:
        looks["policy net"] = policy_cost(model.policy, data.crop)
    results = {}
    if learned:
        results["learned"] = run_policy(model, data.test, data.crop, workers=workers)
    for name, index in chosen.items():
        right = test["correct"].gather(1, index[:, None])[:, 0]
        flops = cost.of(u[index]) + looks.get(NEEDS.get(name), 0)
        results[name] = Result(right, u[index], flops, cost.full)
    return {"gamma": gamma, "bins": bins} | compare(results, gamma, max(fit, key=fit.get))


def compare(results, gamma, informed):
    """The numbers of `enumerate_policies`.

    results: name -> `Result`.
    informed: the name of the best choice that looks at the image.
    """
    R = {name: reward(result.u, result.correct, gamma) for name, result in results.items()}
    found = {"informed": informed, "policies": {}, "frontier": {}}
    for name, result in results.items():
        mean, error = mean_and_error(R[name])
        row = {"reward": mean, "reward_error": error, "needs": NEEDS.get(name, "nothing")}
        found["policies" if name in NEEDS else "frontier"][name] = row | result.row()
    found["best_static_reward"] = found["policies"]["one for all"]["reward"]
    found["informed_reward"] = found["policies"][informed]["reward"]
    found["gain_informed"] = mean_and_error(R[informed] - R["one for all"])
    if "learned" in results:
        found["learned_reward"] = found["policies"]["learned"]["reward"]
        found["regret_static"] = mean_and_error(R["one for all"] - R["learned"])
        found["regret_informed"] = mean_and_error(R[informed] - R["learned"])
    return found
