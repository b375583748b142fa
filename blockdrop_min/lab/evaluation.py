"""What a policy achieves, measured. Read before rivals.py and enumeration.py."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..policy_network import force_on, greedy
from .cost import policy_cost, resnet_cost
from .data import centre_crop

BATCH = 250


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
        """What JSON has of every policy that is compared; of one for all images its digits, too."""
        row = {"accuracy": self.accuracy, "blocks": self.blocks_mean, "flops": self.flops_mean}
        return row | ({"policy": digits(self.u[0])} if self.distinct_policies == 1 else {})


def digits(u):
    """A policy u [K] as a text: "101" keeps blocks 0 and 2 of three."""
    return "".join(str(int(kept)) for kept in u)


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
    return flops + (policy_cost(model.policy, image_size) if own else 0), cost.full


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
