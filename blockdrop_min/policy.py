"""The policy: which blocks each image keeps (paper, section 3.2). Read after resnet.py.

    pi(u | x) = prod_k s_k^u_k (1 - s_k)^(1 - u_k)

First the network that gives s from the image, then pure functions of s and u.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .curriculum import force_on
from .resnet import BasicBlock, MaskedResNet


class PolicyNet(nn.Module):
    """Keep-probabilities of all K blocks from one look at the image: a small ResNet, one logit a block, a sigmoid."""

    def __init__(self, num_blocks, family, width, half):
        super().__init__()
        self.num_blocks, self.half = num_blocks, half
        segments = 3 if family == "cifar" else 4
        self.features = MaskedResNet(BasicBlock, (1,) * segments, [width << i for i in range(segments)], None, family)
        self.logit = nn.Linear(self.features.num_features, num_blocks)

    def forward(self, x):
        """[B, 3, H, W] -> s [B, K] in [0, 1]"""
        logits = self.logit(self.embed(x))
        return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))  # bfloat16 is too coarse for s

    def embed(self, x):
        """[B, 3, H, W] -> features [B, C], those of the image pooled to half its size if `half`."""
        return self.features(F.avg_pool2d(x, 2) if self.half else x)


def policy_net(num_blocks, family="cifar", width=None, half=None):
    """A `PolicyNet` for a ResNet of `num_blocks` blocks.

    family "cifar": a ResNet-8, one basic block a segment, 16 channels wide at first. "imagenet": a ResNet-10, 64 wide,
    on the half-size image. `width` and `half` (pool the image to half its size first) change that; both make it cheaper.
    Raises ValueError on another family, and if num_blocks or width is below 1.
    """
    if family not in ("cifar", "imagenet"):
        raise ValueError(f'family is {family!r}; it must be "cifar" or "imagenet"')
    width = (16 if family == "cifar" else 64) if width is None else width
    if num_blocks < 1 or width < 1:
        raise ValueError(f"num_blocks is {num_blocks} and width is {width}; both must be at least 1")
    return PolicyNet(num_blocks, family, width, family == "imagenet" if half is None else half)


def bound(s, alpha):
    """alpha s + (1 - alpha)(1 - s): keeps the probabilities that are sampled from within [1 - alpha, alpha] (paper, 3.3).

    s: [B, K] in [0, 1].    Returns [B, K].    Raises ValueError unless 0.5 < alpha <= 1.
    """
    if not 0.5 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie in (0.5, 1]")
    return alpha * s + (1 - alpha) * (1 - s)


def greedy(s, threshold=0.5):
    """The most likely policy: [B, K] float, 1 where s >= threshold, so that a tie keeps the block (authors' code)."""
    return (s >= threshold).to(s.dtype)


def sample(s_bounded, generator=None):
    """A policy u: [B, K] float 0/1, each entry from Bernoulli(s_bounded). No gradient.

    Raises FloatingPointError if a probability is not finite: the policy network has diverged.
    """
    if not s_bounded.isfinite().all():
        raise FloatingPointError("a keep-probability is not finite")
    return torch.bernoulli(s_bounded.detach(), generator=generator)


def policy_loss(s_bounded, u, advantage, free=None):
    """Loss whose gradient is the policy gradient: mean over images of -A x sum over free k of log pi_k(u_k).

    log pi_k(u_k) = log( s_k u_k + (1 - s_k)(1 - u_k) )    (paper, gradient of J; s bounded, as it was sampled from)

    s_bounded, u: [B, K].    advantage: [B], a constant: no gradient flows through it.    free: [K] bool, None = all.
    Returns a scalar.    Raises ValueError on other shapes; [B, 1] for the advantage would broadcast unseen.
    """
    check_shapes(s_bounded, u=(u, s_bounded.shape), advantage=(advantage, s_bounded.shape[:1]))
    u = u.to(s_bounded.dtype)
    pi = s_bounded * u + (1 - s_bounded) * (1 - u)  # [B, K]
    # What is not free gets probability 1, whose logarithm is 0. Behind the logarithm, a NaN there would pass back, as 0 x NaN.
    return -(advantage.detach() * log(force_on(pi, free)).sum(1)).mean()


def entropy(s_bounded, free=None):
    """Mean over images of the summed entropies of the free blocks' Bernoulli variables, both sides, in nats.

    H(p) = -p log p - (1 - p) log(1 - p).    s_bounded: [B, K].    free: [K] bool, None = all.    Returns a scalar.
    """
    check_shapes(s_bounded)
    p = force_on(s_bounded, free)
    return (-p * log(p) - (1 - p) * log(1 - p)).sum(1).mean()


def log(p):
    """The logarithm, finite at 0 with gradient 0: a policy that has probability 0 is never sampled."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def check_shapes(s, **tensors):
    """ValueError unless s is [B, K], and each named (tensor, shape) agrees."""
    if s.dim() != 2:
        raise ValueError(f"probabilities have shape {list(s.shape)}; they must be [B, K]")
    for name, (tensor, shape) in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")


def static_policy(kind, keep, segments, generator=None):
    """A policy that looks at no image (the paper's heuristics): [K] float 0/1 with exactly `keep` ones.

    kind: "first" keeps the first blocks, "random" random ones, "distribute" as many in each segment as in any other,
    the first of each, as far as the segments' sizes allow.    segments: blocks per segment, e.g. (5, 5, 5).
    Raises ValueError on another kind, or unless 0 <= keep <= K.
    """
    num_blocks = sum(segments)
    if not 0 <= keep <= num_blocks:
        raise ValueError(f"keep is {keep}; it must lie between 0 and the number of blocks, {num_blocks}")
    if kind == "first":
        order = torch.arange(num_blocks)
    elif kind == "random":
        order = torch.randperm(num_blocks, generator=generator)
    elif kind == "distribute":  # the first blocks of all segments come before the second ones of any
        rank = torch.cat([torch.arange(count) for count in segments])
        order = torch.sort(rank, stable=True).indices
    else:
        raise ValueError(f'kind is {kind!r}; it must be "first", "random" or "distribute"')
    return torch.zeros(num_blocks).index_fill(0, order[:keep], 1.0)
