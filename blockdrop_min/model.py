"""BlockDrop: a ResNet and the policy that chooses its blocks. Read after policy.py."""

import torch
from torch import nn

from .policy import greedy


class FixedPolicy(nn.Module):
    """The same policy u [K] for every image, in the place of a `PolicyNet`: the paper's heuristics. It costs nothing."""

    def __init__(self, u):
        super().__init__()
        self.num_blocks = len(u)
        self.register_buffer("u", u.float())

    def forward(self, x):
        """[B, 3, H, W] -> s [B, K], each 0 or 1"""
        return self.u.expand(len(x), -1)


class BlockDrop(nn.Module):
    """The pair: `model(x)` gives the logits [B, C] and the greedy policy u [B, K] under which they were computed.

    mean, std: per channel, of pixel values in [0, 1]; images are normalised by them first. uint8 images are scaled to
    [0, 1] before that. In eval mode the ResNet runs sparsely: a dropped block is not computed.
    Raises ValueError if the two networks disagree in K.
    """

    def __init__(self, resnet, policy, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), threshold=0.5):
        super().__init__()
        if resnet.num_blocks != policy.num_blocks:
            raise ValueError(f"the ResNet has {resnet.num_blocks} blocks but the policy network decides on {policy.num_blocks}")
        self.resnet, self.policy, self.threshold = resnet, policy, threshold
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def prepare(self, x):
        """Images as the networks want them: float, normalised, channels_last. [B, 3, H, W] -> [B, 3, H, W]"""
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, x):
        """Images [B, 3, H, W], uint8 or float in [0, 1] -> logits [B, C] under the greedy policy, and this policy u [B, K]."""
        x = self.prepare(x)
        u = greedy(self.policy(x), self.threshold)
        return self.resnet(x, u, execute="masked" if self.training else "sparse"), u
