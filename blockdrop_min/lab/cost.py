"""What a network costs for one image: FLOPs = 2 x multiply-adds of convolutions, linear layers.

Counted by torch.utils.flop_counter, in the convention of the paper's numbers: pooling, BatchNorm,
ReLU and additions count nothing.
"""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode


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


@torch.no_grad()
def resnet_cost(net, image_size):
    """`Cost` of a `MaskedResNet` for images of this size, an int or (height, width).

    Raises ValueError if there are not one or two sides, or if one is below 1.
    """
    net = without_numbers(net)
    x, fixed = counted(net.stem, an_image(image_size))
    blocks = []
    for block in net.blocks:
        fixed += counted(block.shortcut, x)[1]  # computed whether or not the block is kept
        x, flops = counted(block.residual, x)
        blocks.append(flops)
    return Cost(fixed + counted(net.head, x)[1], tuple(blocks))


@torch.no_grad()
def policy_cost(policy, image_size):
    """FLOPs of a `PolicyNet` for one image of this size, an int or (height, width)."""
    return counted(without_numbers(policy), an_image(image_size))[1]


def counted(function, x):
    """The output of function(x), and what it costs."""
    with FlopCounterMode(display=False) as counter:
        return function(x), counter.get_total_flops()


def without_numbers(network):
    """A copy in eval mode whose tensors are shapes alone, on PyTorch's device "meta"."""
    return deepcopy(network).eval().to("meta", torch.float32)


def an_image(image_size):
    """An image [1, 3, height, width] of this size, its shape alone."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        allowed = "a side of at least 1 pixel, or (height, width)"
        raise ValueError(f"image_size is {image_size}; it must be {allowed}")
    return torch.empty(1, 3, *size, device="meta")
