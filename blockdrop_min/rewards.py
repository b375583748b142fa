"""The reward of a policy (paper, section 3.2). Read after policy_network.py."""

import torch

from .masked_resnet import check_policy


def reward(u, correct, gamma):
    """The reward of each image's policy: the fewer blocks the better, if the prediction is right.

    R(u) = 1 - (|u|_0 / K)^2 if it is right, -gamma if it is wrong (paper, reward equation)

    u: [B, K] of 0/1; any dtype.
    correct: [B] bool, whether the prediction under u is right.
    gamma: the penalty, a magnitude >= 0.
    Returns R: [B], each in [0, 1] or equal to -gamma; in u's dtype, or float32 if that is no float.
    Raises ValueError if gamma is negative or infinite, and on other shapes or another `correct`.
    """
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma is {gamma}; it must be finite and at least 0: it is subtracted")
    if u.dim() != 2 or correct.shape != u.shape[:1] or correct.dtype != torch.bool:
        given = f"u is {list(u.shape)} and correct {correct.dtype} {list(correct.shape)}"
        raise ValueError(f"{given}; they must be [B, K] and bool [B]")
    u = u if u.is_floating_point() else u.float()
    return torch.where(correct, 1 - u.mean(1).square(), -gamma)


@torch.no_grad()
def correct_under(resnet, x, y, *policies, shared=0):
    """Whether the predictions under each of n policies are right. In eval mode, no gradient.

    x: [B, 3, H, W], prepared images.
    y: [B], labels.
    policies: n tensors [B, K] of 0/1. One pass runs them all, each image once per policy.
    shared: the number of first blocks in which all policies agree; these run once.
    Returns n tensors [B] of bool.
    """
    training = resnet.training
    resnet.eval()
    n = len(policies)
    keep = check_policy(torch.cat(policies), n * len(x), resnet.num_blocks)
    x = resnet.run(resnet.stem(x), keep[: len(x), :shared])
    x = resnet.run(torch.cat([x] * n), keep[:, shared:], first=shared)
    predictions = resnet.head(x).argmax(1)  # [n B]
    resnet.train(training)
    return (predictions == y.repeat(n)).chunk(n)
