"""The reward of a policy (paper, section 3.2). Read after policy.py."""

import torch


def reward(u, correct, gamma):
    """R(u) = 1 - (|u|_0 / K)^2 if the prediction under u is right, -gamma if it is wrong (paper, reward equation).

    u: [B, K] of 0/1.    correct: [B] bool.    gamma: the penalty, a magnitude >= 0.
    Returns R: [B], each in [0, 1] or equal to -gamma.    Raises ValueError if gamma < 0 or the shapes disagree.
    """
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma is {gamma}; it must be at least 0 (the reward subtracts it), and finite")
    if u.dim() != 2 or correct.shape != u.shape[:1] or correct.dtype != torch.bool:
        raise ValueError(f"u is {list(u.shape)} and correct {correct.dtype} {list(correct.shape)}; they must be [B, K], bool [B]")
    u = u if u.is_floating_point() else u.float()
    return torch.where(correct, 1 - u.mean(1).square(), -gamma)
