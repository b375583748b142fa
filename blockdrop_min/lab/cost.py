"""What a network costs, exactly: FLOPs = 2 x multiply-adds of convolutions and linear layers, for one image.

This convention reproduces the paper's numbers and is that of torch.utils.flop_counter. Pooling, BatchNorm, ReLU and
additions count nothing.
"""

from typing import NamedTuple

import torch
from torch import nn


class Cost(NamedTuple):
    """FLOPs of one image: `fixed` is always paid (stem, shortcuts, classifier); `blocks[k]` only if block k is kept."""

    fixed: int
    blocks: tuple[int, ...]

    def of(self, u):
        """FLOPs under the policies u [B, K]. Returns [B] float64, exact to the integer."""
        return self.fixed + u.double() @ torch.tensor(
            self.blocks, dtype=torch.float64, device=u.device
        )

    @property
    def full(self):
        """FLOPs with all blocks on."""
        return self.fixed + sum(self.blocks)


def layer_cost(layer, size):
    """FLOPs of one layer on an image of this (height, width), and the size that it gives."""
    if isinstance(layer, nn.Linear):
        return 2 * layer.in_features * layer.out_features, size
    if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
        kernel, stride, padding = (
            v if isinstance(v, int) else v[0]
            for v in (layer.kernel_size, layer.stride, layer.padding)
        )
        size = tuple((side + 2 * padding - kernel) // stride + 1 for side in size)
        if isinstance(layer, nn.Conv2d):
            return 2 * kernel * kernel * layer.in_channels * layer.out_channels * size[0] * size[
                1
            ], size
    return 0, size


def chain_cost(layers, size):
    """FLOPs of layers in a row, and the size that the last one gives."""
    total = 0
    for layer in layers:
        flops, size = layer_cost(layer, size)
        total += flops
    return total, size


def resnet_cost(net, image_size):
    """`Cost` of a `MaskedResNet` for images of this size, an int or (height, width)."""
    fixed, size = chain_cost([net.conv1, net.maxpool], as_pair(image_size))
    blocks = []
    for block in net.blocks:
        if (
            block.downsample is not None
        ):  # the shortcut is computed whether or not the block is kept
            fixed += chain_cost(block.downsample.children(), size)[0]
        convs = [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]
        flops, size = chain_cost(convs, size)
        blocks.append(flops)
    return Cost(fixed + layer_cost(net.fc, size)[0], tuple(blocks))


def policy_cost(policy, image_size):
    """FLOPs of a `PolicyNet` for one image of this size, an int or (height, width)."""
    size = tuple(side // 2 if policy.half_size else side for side in as_pair(image_size))
    return resnet_cost(policy.features, size).full + layer_cost(policy.logit, size)[0]


def as_pair(image_size):
    """(height, width) of a size that may be one side."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"image_size is {image_size}; it must be a side of at least 1 pixel, or (height, width)"
        )
    return size
