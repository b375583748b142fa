"""A stage of training: its settings, what learns, its optimizer, its schedule and its step.

Read after policy_gradient.py. The three stages are in pretraining.py, curriculum.py and
finetuning.py; train.py goes through them. A new one is a class like these in a file of its own and
a field of `Settings` in lab/settings.py, in the place where it runs; its name, without underscores,
begins no other setting's.
"""

import math
from dataclasses import dataclass, field

import torch

WARM_UP = 0.2  # the fraction of a stage in which the learning rate rises


def option(default, text, low=None, high=None, choices=None):
    """A setting: its default, its help, its lowest and highest value, or its choices.

    lab/settings.py makes a flag of it and checks it.
    """
    limits = {"help": text, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=limits)


def sgd(network, lr):
    """SGD with momentum and weight decay, for the network's parameters."""
    how = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    return torch.optim.SGD(network.parameters(), lr, **how)


@dataclass(frozen=True)
class Stage:
    """A stage. Its fields are its settings: field `lr` of `pretrain` is the flag --pretrain-lr."""

    epochs: int = option(5, "epochs; 0 leaves the stage out", 0, 1_000_000)
    batch: int = option(64, "images a step", 2, 1_000_000)
    lr: float = option(1e-3, "learning rate, at its peak", 0, 1000)
    schedule: str = option("cosine", "of the learning rate", choices=("cosine", "constant", "step"))
    learns = ("resnet", "policy")  # of the pair; without an annotation it is no setting

    def begin(self, model):
        """Training mode and gradients for the networks that learn, eval mode for the others."""
        for name in ("resnet", "policy"):
            learns = name in self.learns
            model.get_submodule(name).train(learns).requires_grad_(learns)

    def optimizer(self, model):
        """Adam without weight decay (authors). It leaves alone whatever gets no gradient."""
        return torch.optim.Adam(model.parameters(), self.lr)

    def rate(self, progress):
        """The factor on the learning rate when this fraction of the stage is done, in [0, 1).

        "cosine": to 0, after a warm-up. "step": times 0.1 at 80 % (authors, finetuning).
        """
        if self.schedule != "cosine":
            return 0.1 if self.schedule == "step" and progress >= 0.8 else 1.0
        if progress < WARM_UP:
            return progress / WARM_UP
        return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))

    def free(self, epoch, num_blocks):
        """The blocks that the policy decides on in this epoch, [K] bool; here none."""
        return torch.zeros(num_blocks, dtype=torch.bool)

    def step(self, model, x, y, epoch, progress, generator):
        """The loss of one batch.

        x: [B, 3, H, W], prepared images.
        y: [B], labels.
        epoch: 0-based, in this stage.
        progress: the fraction of the stage that is done, in [0, 1).
        generator: where the random numbers of the step come from.
        Returns the loss, a mean over images, and for the log a dict of [B] tensors: "correct", and
        where the policy decides "R" and "A".
        """
        raise NotImplementedError


def fading(progress, until):
    """How far bounding and entropy bonus have faded, 0 to 1: alpha rises to 1, beta falls to 0.

    Why: with alpha = 0.8 even a policy network that is certain has one block in five flipped. A
    sampled bit is then judged among flips that never happen in use.

    progress: the fraction of a stage that is done, in [0, 1].
    until: the fraction at which they are gone, and u is sampled from s itself; 0: never (paper).
    """
    return min(1.0, progress / until) if until else 0.0
