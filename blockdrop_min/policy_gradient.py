"""The policy gradient: the loss that the policy network learns by (paper, section 3.2).

Read after rewards.py. tests/test_policy_gradient.py proves that the loss is right: it sums over all
2^K policies and finds the gradient of the expected reward.
"""

import torch

from .policy_network import force_on


def policy_loss(s_bounded, u, advantage, free=None):
    """The loss whose gradient is the policy gradient, a mean over images.

    grad J = E[ A sum_k grad log pi_k(u_k) ],    pi_k(u_k) = s_k u_k + (1 - s_k)(1 - u_k)
    (paper, gradient of J; s is bounded, as it was sampled from)

    s_bounded: [B, K], the probabilities that u was sampled from.
    u: [B, K] of 0/1, the sampled policies.
    advantage: [B], a constant: no gradient flows through it.
    free: [K] bool, the blocks that count; None counts all.
    Returns a scalar.
    Raises ValueError on other shapes: an advantage [B, 1] would broadcast to [B, B] unseen.
    """
    check_shapes(s_bounded, u=(u, s_bounded.shape), advantage=(advantage, s_bounded.shape[:1]))
    u = u.to(s_bounded.dtype)
    pi = s_bounded * u + (1 - s_bounded) * (1 - u)  # [B, K]
    # A block that is not free gets probability 1, whose logarithm is 0. Done behind the logarithm,
    # a NaN there would pass back, as 0 x NaN.
    log_pi = safe_log(force_on(pi, free)).sum(1)  # [B]
    return -(advantage.detach() * log_pi).mean()


def entropy(s_bounded, free=None):
    """The entropy of the policies, both sides, summed over blocks: a mean over images, in nats.

    H(p) = -p log p - (1 - p) log(1 - p)

    s_bounded: [B, K].
    free: [K] bool, the blocks that count; None counts all.
    Returns a scalar.
    """
    check_shapes(s_bounded)
    p = force_on(s_bounded, free)
    return (-p * safe_log(p) - (1 - p) * safe_log(1 - p)).sum(1).mean()


def fading(progress, until):
    """How far bounding and entropy bonus have faded, 0 to 1: alpha rises to 1, beta falls to 0.

    Why: with alpha 0.8 every fifth block around the one that a sample tries out is noise. What
    looks good under noise is not what is good alone, and alone is how the policy is used.

    progress: the fraction of a stage that is done, in [0, 1].
    until: the fraction at which they are gone, and u is sampled from s itself; 0: never (paper).
    """
    return min(1.0, progress / until) if until else 0.0


def safe_log(p):
    """The logarithm, finite at 0 with gradient 0: what has probability 0 is never sampled."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def check_shapes(s, **tensors):
    """ValueError unless s is [B, K], and each named (tensor, shape) agrees."""
    if s.dim() != 2:
        raise ValueError(f"probabilities have shape {list(s.shape)}; they must be [B, K]")
    for name, (tensor, shape) in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")
