"""Inference nearer to the speed that the FLOPs promise: `fast(model)`. Read resnet.py first; what is computed stays the same.

BatchNorm is folded into the convolution before it. A block adds and applies its ReLU in place, gathers its images once (where
the shortcut is the identity, `take` in resnet.py moves them twice) and puts them back in place. A batch passes in pieces whose
maps fit a CPU's cache. The full network gains from all of this but the gathers; NOTES.md, "Speed", has what each is worth.
"""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .model import BlockDrop
from .policy import PolicyNet
from .resnet import MaskedResNet, check_policy, take

PIECE = 32  # images that pass together on a CPU, for each of its threads


def piece_size(x):
    """Images of x [B, 3, H, W] that pass together."""
    return PIECE * torch.get_num_threads() if x.device.type == "cpu" else max(1, len(x))


def fold(module):
    """Each BatchNorm of a module in eval mode into the convolution before it, in place."""
    before = None
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, before, fuse_conv_bn_eval(getattr(module, before), child))
            setattr(module, name, nn.Identity())
        fold(child)
        before = name


def run_in_place(block, x, images):
    """The block on the images [n] that keep it; those that drop it pass their shortcut. Writes to x. As `run_sparse`."""
    shortcut = block.shortcut(x)
    if len(images) == 0:
        return shortcut
    if len(images) == len(x):
        return block.residual(x).add_(shortcut).relu_()
    part = take(x, images)
    kept = block.residual(part).add_(part if shortcut is x else take(shortcut, images)).relu_()
    shortcut.permute(0, 2, 3, 1).index_copy_(0, images, kept.permute(0, 2, 3, 1))
    return shortcut


class FastResNet(nn.Module):
    """A `MaskedResNet` as it is now, in eval mode and without gradients: `net(x, u)` gives the same logits."""

    def __init__(self, net):
        super().__init__()
        self.net, self.num_blocks = copy.deepcopy(net).eval().requires_grad_(False), net.num_blocks
        self.stem, self.head = self.net.stem, self.net.head
        fold(self.net)
        self.eval()

    @torch.no_grad()
    def forward(self, x, u=None, execute="sparse"):
        """x: [B, 3, H, W].    u: [B, K], [K] or None, as in `MaskedResNet.forward`.    Returns logits [B, C]."""
        keep = check_policy(u, len(x), self.num_blocks)  # [B, K]
        size = piece_size(x)
        return torch.cat(
            [self.head(self.run(self.stem(x), keep)) for x, keep in zip(x.split(size), keep.split(size), strict=True)]
        )

    def run(self, x, keep, first=0):
        """As `MaskedResNet.run`. Writes to x."""
        images = keep.t().nonzero()[:, 1].to(x.device).split(keep.sum(0).tolist())  # for each block those that keep it
        for block, index in zip(self.net.blocks[first:], images, strict=False):
            x = run_in_place(block, x, index)
        return x


def fast(model):
    """A snapshot of a `BlockDrop`, `MaskedResNet` or `PolicyNet` for inference: the same call, the same results to rounding.

        model = fast(load("runs/demo"))
        logits, u = model(images)

    Later changes of the model do not reach it. It is in eval mode and has no gradients.
    """
    if isinstance(model, MaskedResNet):
        return FastResNet(model)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(model, BlockDrop):
        model.resnet = fast(model.resnet)
    policy = getattr(model, "policy", model)
    if isinstance(policy, PolicyNet):
        policy.features = fast(policy.features)
    return model
