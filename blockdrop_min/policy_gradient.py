"""The policy gradient: the loss that the policy network learns by (paper, section 3.2).

This docstring says why it works; read the code after rewards.py. tests/test_policy_gradient.py
proves the loss right where all 2^K policies can be summed.

*Why no gradient flows through u.* A prediction depends on s through the bits of u alone. A small
step of s changes no bit, so no prediction and no reward R(u): the derivative is 0. What changes is
how often each u is drawn, pi(u), and with it the expected reward J:

    J      = sum_u pi(u) R(u)                      over all 2^K policies
    grad J = sum_u R(u) grad pi(u)                 s is not in R(u)
           = sum_u pi(u) R(u) grad log pi(u)       since grad log pi = grad pi / pi
           = E[ R(u) grad log pi(u) ]              samples estimate it
           = E[ R(u) sum_k grad log pi_k(u_k) ]    blocks are drawn independently

*Why a baseline b.* b may depend on the image and on s, but it is one number whatever is drawn, and
no gradient flows through it. So E[ b grad log pi(u) ] = b sum_u grad pi(u) = b grad 1 = 0: R - b
has the mean gradient of R. Where b is near R, samples are less noisy.

*Why b = R(u_greedy)*, the self-critical baseline: the critic is the policy's own greedy choice, not
a second network. That choice is what will be used: a sample that beats it becomes more likely, one
that does worse less likely. The better the policy, the fewer samples beat it: a good policy's
A = R(u) - R(u_greedy) is negative on average, and 0 once samples no longer differ from it.

*Why s is bounded.* At s near 0 or 1 the other bit is never drawn, and nobody finds out that it
would earn more. Bounded by alpha = 0.8, it is drawn at least one time in five.

*What gamma prices.* A right prediction earns 0 with 9 of 9 blocks and 1 - (7/9)^2 = 0.40 with 7; a
wrong one earns -gamma, whatever was kept. Dropping two blocks pays if at most 0.40 / (0.40 + gamma)
of the right predictions turn wrong: 16.5 % at gamma = 2, 3.8 % at gamma = 10.
"""

import torch

from .policy_network import force_on


def policy_loss(s_bounded, u, advantage, free=None):
    """The loss whose gradient is minus the policy gradient, so that descent raises the reward.

    A mean over images.

    grad J = E[ A sum_k grad log pi_k(u_k) ],    pi_k(u_k) = s_k u_k + (1 - s_k)(1 - u_k)
    (paper, gradient of J; u was sampled from the bounded s)

    s_bounded: [B, K], the probabilities that u was sampled from.
    u: [B, K] of 0/1, the sampled policies; any dtype.
    advantage: [B], a constant: no gradient flows through it.
    free: [K] bool, the blocks that count; None counts all. (The stages need none: their s_bounded
        is 1 for forced blocks, whose logarithm and entropy are 0.)
    Returns a scalar.
    Raises ValueError on other shapes: an advantage [B, 1] would broadcast to [B, B] unseen.
    """
    check_shapes(s_bounded, u=(u, s_bounded.shape), advantage=(advantage, s_bounded.shape[:1]))
    u = u.to(s_bounded.dtype)
    pi = s_bounded * u + (1 - s_bounded) * (1 - u)  # [B, K]
    # A block that is not free gets probability 1, whose logarithm is 0. Masking after the logarithm
    # would let a NaN into the gradient (0 x NaN).
    log_pi = safe_log(force_on(pi, free)).sum(1)  # [B]
    return -(advantage.detach() * log_pi).mean()


def entropy(s_bounded, free=None):
    """The entropy of the policies, both sides, summed over blocks: a mean over images, in nats.

    H(p) = -p log p - (1 - p) log(1 - p)

    s_bounded: [B, K].
    free: [K] bool, the blocks that count; None counts all.
    Returns a scalar.
    Raises ValueError on other shapes.
    """
    check_shapes(s_bounded)
    p = force_on(s_bounded, free)
    return (-p * safe_log(p) - (1 - p) * safe_log(1 - p)).sum(1).mean()


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
