"""BlockDrop: a ResNet and the policy that chooses its blocks. Read after finetuning.py."""

import torch
from torch import nn

from .policy_network import greedy


class BlockDrop(nn.Module):
    """The pair: `model(x)` returns logits [B, C] and the greedy policy u [B, K] behind them.

    In eval mode the ResNet runs sparsely: a dropped block is not computed.

    resnet: a `MaskedResNet`.
    policy: a `PolicyNet` or a `FixedPolicy`.
    mean, std: of pixel values in [0, 1], per channel; images are normalised by them first. Without
        them images are taken as they are, for callers that normalise.
    Raises ValueError if the two networks disagree in K.
    """

    def __init__(self, resnet, policy, mean=(0.0,) * 3, std=(1.0,) * 3):
        super().__init__()
        if resnet.num_blocks != policy.num_blocks:
            theirs = f"the policy network decides on {policy.num_blocks}"
            raise ValueError(f"the ResNet has {resnet.num_blocks} blocks but {theirs}")
        self.resnet = resnet
        self.policy = policy
        self.normalises = (tuple(mean), tuple(std)) != ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def prepare(self, x):
        """Images as the networks want them: [B, 3, H, W] -> float, normalised, channels_last.

        x: uint8, or float in [0, 1].
        """
        high = 255 if x.dtype == torch.uint8 else 1
        x = x.to(self.resnet.conv1.weight.dtype) / high
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, x):
        """[B, 3, H, W], integers to 255 or floats to 1 -> logits [B, C], greedy policy [B, K]."""
        x = self.prepare(check_images(x, self.normalises).to(self.mean.device))
        u = greedy(self.policy(x))
        return self.resnet(x, u, execute="masked" if self.training else "sparse"), u


def check_images(x, raw):
    """Images as [B, 3, H, W], uint8 or float, or ValueError. What they may mean is not guessed.

    x: a tensor or array [B, 3, H, W], or [B, 1, H, W] of grey images, of numbers.
    raw: whether they are pixels: integers in 0..255, or floats in [0, 1].
    """
    x = torch.as_tensor(x)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        allowed = "[B, 3, H, W], or [B, 1, H, W] if they are grey; add the batch with x[None]"
        raise ValueError(f"images have shape {list(x.shape)}; it must be {allowed}")
    if x.dtype is torch.bool or x.is_complex():
        raise ValueError(f"images are {x.dtype}; they must be integers or floats")
    high = 1 if x.is_floating_point() else 255
    checked = raw or not x.is_floating_point()
    if checked and x.dtype is not torch.uint8 and not ((x >= 0) & (x <= high)).all():
        allowed = "integers must lie in 0..255, and floats in [0, 1], not normalised"
        raise ValueError(f"images of {x.dtype} are out of range; {allowed}")
    x = x if x.is_floating_point() else x.to(torch.uint8)
    return x.expand(-1, 3, -1, -1)


class FixedPolicy(nn.Module):
    """The same policy u [K] for every image, in the place of a `PolicyNet`. It costs nothing."""

    def __init__(self, u):
        super().__init__()
        self.num_blocks = len(u)
        self.register_buffer("u", u.float())

    def forward(self, x):
        """[B, 3, H, W] -> s [B, K], each 0 or 1"""
        return self.u.expand(len(x), -1)


def static_policy(kind, keep, segments, generator=None):
    """One policy for all images, the paper's heuristics: [K] float 0/1 with exactly `keep` ones.

    kind: "first" keeps the first blocks, "random" random ones, "distribute" the first ones of each
        segment, as many in each as the segments' sizes allow.
    keep: the number of blocks to keep, between 0 and K.
    segments: blocks per segment, e.g. (5, 5, 5).
    generator: for "random".
    Raises ValueError on another kind or number.
    """
    num_blocks = sum(segments)
    if not 0 <= keep <= num_blocks:
        raise ValueError(f"keep is {keep}; it must lie between 0 and K = {num_blocks}")
    if kind == "first":
        order = torch.arange(num_blocks)
    elif kind == "random":
        order = torch.randperm(num_blocks, generator=generator)
    elif kind == "distribute":  # the first blocks of all segments before the second ones of any
        rank = torch.cat([torch.arange(count) for count in segments])
        order = torch.sort(rank, stable=True).indices
    else:
        raise ValueError(f'kind is {kind!r}; it must be "first", "random" or "distribute"')
    return torch.zeros(num_blocks).index_fill(0, order[:keep], 1.0)
