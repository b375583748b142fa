"""What a network costs for one image: FLOPs = 2 x multiply-adds of convolutions, linear layers.

This convention gives the paper's numbers and is that of torch.utils.flop_counter. Pooling,
BatchNorm, ReLU and additions count nothing.
"""

from typing import NamedTuple

import torch
from torch import nn


class Cost(NamedTuple):
    """FLOPs of one image.

    fixed: always paid: stem, shortcuts, classifier.
    blocks: blocks[k] is paid only if block k is kept.
    """

    fixed: int
    blocks: tuple[int, ...]

    def of(self, u):
        """FLOPs under the policies u [B, K]. Returns [B] float64, exact to the integer."""
        blocks = torch.tensor(self.blocks, dtype=torch.float64, device=u.device)
        return self.fixed + u.double() @ blocks

    @property
    def full(self):
        """FLOPs with all blocks on."""
        return self.fixed + sum(self.blocks)


def layer_cost(layer, size):
    """FLOPs of one layer on an image of this (height, width), and the size that it gives.

    Pooling costs nothing, but changes the size; of other layers the size stays and nothing counts.
    """
    if isinstance(layer, nn.Linear):
        return 2 * layer.in_features * layer.out_features, size
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
        return 0, size
    kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
    if isinstance(kernel, tuple):  # a convolution's; all windows here are square
        kernel, stride, padding = kernel[0], stride[0], padding[0]
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    if isinstance(layer, nn.MaxPool2d):
        return 0, (height, width)
    return 2 * layer.weight.numel() * height * width, (height, width)


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
        if block.downsample is not None:  # computed whether or not the block is kept
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
        allowed = "a side of at least 1 pixel, or (height, width)"
        raise ValueError(f"image_size is {image_size}; it must be {allowed}")
    return size
