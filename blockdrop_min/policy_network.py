"""The policy: which blocks each image keeps (paper, section 3.2).

    pi(u | x) = prod_k s_k^u_k (1 - s_k)^(1 - u_k)

Read after masked_resnet.py. First the network that computes s from the image, then pure functions
of s and u.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .masked_resnet import WIDTHS, BasicBlock, MaskedResNet


class PolicyNet(nn.Module):
    """Keep-probabilities of all K blocks from one look at the image: a small ResNet and a sigmoid.

    num_blocks: K, at least 1.
    family: "cifar": a ResNet-8, one basic block a segment. "imagenet": a ResNet-10.
    width: channels of the first segment; None: 16 (cifar) or 64 (imagenet).
    half_size: average-pool the image to half its size first; None: only for imagenet.
    num_classes: of a classifier on the same features, for the warm start; None: no classifier.
    Raises ValueError on another family, and if num_blocks or width is below 1.
    """

    def __init__(self, num_blocks, family="cifar", width=None, half_size=None, num_classes=None):
        super().__init__()
        if family not in WIDTHS:
            raise ValueError(f'family is {family!r}; it must be "cifar" or "imagenet"')
        width = WIDTHS[family] if width is None else width
        if num_blocks < 1 or width < 1:
            given = f"num_blocks is {num_blocks}, width is {width}"
            raise ValueError(f"{given}; both must be at least 1")
        self.num_blocks = num_blocks
        self.half_size = family == "imagenet" if half_size is None else half_size
        segments = (1, 1, 1) if family == "cifar" else (1, 1, 1, 1)
        widths = [width * 2**i for i in range(len(segments))]
        self.features = MaskedResNet(BasicBlock, segments, widths, None, family)
        self.logit = nn.Linear(self.features.num_features, num_blocks)
        nn.init.zeros_(self.logit.bias)
        if num_classes is not None:
            self.classifier = nn.Linear(self.features.num_features, num_classes)

    def forward(self, x):
        """[B, 3, H, W] -> s [B, K] in [0, 1]."""
        return self.keep_probabilities(self.embed(x))

    def embed(self, x):
        """[B, 3, H, W] -> features [B, num_features]"""
        x = F.avg_pool2d(x, 2) if self.half_size else x
        return self.features(x)

    def keep_probabilities(self, features):
        """[B, num_features] -> s [B, K], in the features' dtype, at least float32."""
        logits = self.logit(features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is coarse
        return torch.sigmoid(logits)

    def classify(self, x):
        """[B, 3, H, W] -> logits [B, C] of the classifier, which has no part in the policy."""
        return self.classifier(self.embed(x))


policy_net = PolicyNet  # as a function, beside `resnet`


def bound(s, alpha):
    """s_bounded = alpha s + (1 - alpha)(1 - s): both choices stay possible (paper, section 3.3).

    s: [B, K] in [0, 1].
    alpha: in (0.5, 1]; 1 leaves s as it is.
    Returns [B, K], in [1 - alpha, alpha]; the gradient flows to s.
    Raises ValueError on another alpha.
    """
    if not 0.5 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie in (0.5, 1]")
    return alpha * s + (1 - alpha) * (1 - s)


def greedy(s):
    """The most likely policy, [B, K] of 0/1 in s's dtype: 1 where s >= 0.5, so a tie keeps."""
    return (s >= 0.5).to(s.dtype)


def sample(s_bounded, generator=None):
    """A policy u ~ Bernoulli(s_bounded), each image and block on its own. No gradient.

    s_bounded: [B, K].
    generator: where the random numbers come from; None: PyTorch's global one.
    Returns u: [B, K] of 0/1, in s_bounded's dtype.
    """
    numbers = torch.rand(
        s_bounded.shape, generator=generator, dtype=s_bounded.dtype, device=s_bounded.device
    )
    return (numbers < s_bounded).to(s_bounded.dtype)


def force_on(u, free):
    """u with 1 in every column that is not free.

    u: [B, K], a policy of any dtype, or probabilities, whose gradient stays in free columns.
    free: [K] bool; None leaves u as it is.
    Returns [B, K], in u's dtype; u stays as it is.
    Raises ValueError on another mask.
    """
    if free is not None and (free.shape != u.shape[1:] or free.dtype != torch.bool):
        given = f"{free.dtype} {list(free.shape)}"
        raise ValueError(f"free is {given}; it must be bool [{u.shape[-1]}]")
    return u if free is None else torch.where(free.to(u.device), u, torch.ones_like(u))
