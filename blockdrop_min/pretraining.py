"""Stage 1: pretrain the ResNet so that it tolerates dropped blocks. Read after stage.py.

The paper starts from a plainly trained ResNet. One that has met dropped blocks gives up its blocks
in a few epochs of curriculum instead of thousands (NOTES.md).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .stage import Stage, option, sgd

LEAST_RATE = 0.15  # images that drop blocks keep each one with a rate from U(LEAST_RATE, 1)


def drop_fraction(progress, drop, begin=0.2):
    """The fraction of images that drop blocks at this point of the stage.

    Plain training at first, so that blocks learn something; then dropping sets in, over a fifth of
    the stage.

    progress: the fraction of the stage that is done, in [0, 1].
    drop: the fraction that it reaches.
    begin: the progress at which dropping begins.
    """
    return drop * min(1.0, max(0.0, (progress - begin) / 0.2))


def random_policies(num_images, num_blocks, fraction, generator):
    """Random policies u [B, K]: a `fraction` of the images drops blocks, the others keep all.

    An image that drops blocks draws a rate from U(LEAST_RATE, 1) and keeps each block with it.
    """
    shape = (num_images, num_blocks + 2)
    numbers = torch.rand(shape, generator=generator, device=generator.device)
    rate = LEAST_RATE + (1 - LEAST_RATE) * numbers[:, :1]  # [B, 1]
    drops = numbers[:, 1:2] < fraction  # [B, 1]
    return ((numbers[:, 2:] < rate) | ~drops).float()


def pretrain_step(model, x, y, fraction, generator):
    """Cross-entropy of the ResNet under random policies. Only `model.resnet` learns.

    x: [B, 3, H, W], prepared images.
    y: [B], labels.
    fraction: of the images that drop blocks; 0 is plain training.
    Returns the loss, a mean over images, and for the log {"correct": [B] bool}.
    """
    u = None
    if fraction > 0:
        u = random_policies(len(x), model.resnet.num_blocks, fraction, generator)
    logits = model.resnet(x, u, execute="sparse")
    return F.cross_entropy(logits, y), {"correct": logits.argmax(1) == y}


@dataclass(frozen=True)
class Pretraining(Stage):
    """Stage 1 with its schedule: first plain training, then dropping sets in."""

    lr: float = option(0.05, "learning rate, at its peak (SGD)", 0, 1000)
    drop: float = option(0.75, "fraction of the images that drop random blocks; 0: plain", 0, 1)
    drop_from: float = option(0.2, "fraction of the stage after which dropping begins", 0, 1)
    learns = ("resnet",)

    def optimizer(self, model):
        return sgd(model.resnet, self.lr)

    def step(self, model, x, y, epoch, progress, generator):
        """See `Stage.step`."""
        fraction = drop_fraction(progress, self.drop, self.drop_from)
        return pretrain_step(model, x, y, fraction, generator)
