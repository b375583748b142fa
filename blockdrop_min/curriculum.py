"""Stage 2: the policy network learns, the ResNet is frozen (paper, section 3.3).

Blocks come under the policy's control from the last to the first. Why a few at a time: with all K
free at once, most samples of an untrained policy predict wrongly and earn -gamma, whatever they
kept, which tells little. With few free blocks most predictions stay right, and the reward says
which block was missed. Why the last first: they then see the features of the full network. (A
ResNet that was pretrained with dropping learns as well with all free at once, NOTES.md.) Read
after pretraining.py.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .policy_gradient import entropy, policy_loss
from .policy_network import bound, force_on, greedy, sample
from .rewards import correct_under, reward
from .stage import Stage, fading, option


def free_blocks(epoch, num_blocks, epochs=None):
    """Which blocks the policy decides on in this epoch; the others are forced on.

    The last min(epoch + 1, K) blocks are free (paper). With `epochs`, the length of the curriculum,
    they are freed evenly over it: the last ceil(K (epoch + 1) / epochs), at most K.

    epoch: 0-based.
    num_blocks: K.
    Returns [K] bool.
    Raises ValueError if epoch < 0, num_blocks < 1 or epochs < 1.
    """
    if epoch < 0 or num_blocks < 1 or (epochs is not None and epochs < 1):
        given = f"epoch {epoch}, num_blocks {num_blocks}, epochs {epochs}"
        raise ValueError(f"{given}; they must be at least 0, 1 and 1")
    freed = epoch + 1 if epochs is None else -(-num_blocks * (epoch + 1) // epochs)  # rounded up
    return torch.arange(num_blocks) >= num_blocks - min(freed, num_blocks)


def portion(fraction, count):
    """`fraction` x `count`, rounded up; 0.07 x 100 is 7, not 8 as in floating point."""
    return math.ceil(round(fraction * count, 9))


def warm_start_step(model, x, y):
    """The warm start: the policy network learns to classify, for features that tell images apart.

    x: [B, 3, H, W], prepared images.
    y: [B], labels.
    Returns the loss, a mean over images, and for the log {"correct": [B] bool}.
    """
    logits = model.policy.classify(x)
    return F.cross_entropy(logits, y), {"correct": logits.argmax(1) == y}


def curriculum_step(model, x, y, free, alpha, beta, gamma, generator, classify=0.0):
    """Policy gradient with a self-critical baseline. Only `model.policy` learns.

    x: [B, 3, H, W], prepared images.
    y: [B], labels.
    free: [K] bool, the blocks that the policy decides on; the others come first and are forced on.
    alpha: bounding of the probabilities.
    beta: weight of the entropy bonus.
    gamma: penalty of a wrong prediction.
    classify: weight of the warm start's loss, so that the features do not forget the classes.
    Returns the loss, a mean over images, and for the log what the sampled policy gave each image:
        {"correct": [B] bool, "R": [B], "A": [B]}.
    """
    forced = int((~free).sum())
    free = free.to(x.device)  # once: `force_on` uses it twice
    features = model.policy.embed(x)
    s = model.policy.keep_probabilities(features)  # [B, K]
    s_bounded = force_on(bound(s, alpha), free)
    u = sample(s_bounded, generator)
    u_greedy = force_on(greedy(s), free)

    correct, correct_greedy = correct_under(model.resnet, x, y, u, u_greedy, shared=forced)
    R = reward(u, correct, gamma)
    R_greedy = reward(u_greedy, correct_greedy, gamma)  # self-critical: what will be used
    A = R - R_greedy  # only a sample that beats it is made likelier

    # A forced block has probability 1, so that no term needs the mask again.
    loss = policy_loss(s_bounded, u, A) - beta * entropy(s_bounded)
    if classify:
        loss = loss + classify * F.cross_entropy(model.policy.classifier(features), y)
    return loss, {"correct": correct, "R": R, "A": A}


@dataclass(frozen=True)
class Curriculum(Stage):
    """Stage 2 with its schedule: a warm start, then blocks come free and exploration fades."""

    lr: float = option(2e-3, "learning rate, at its peak (Adam)", 0, 1000)
    gamma: float = option(4.0, "a wrong answer's penalty; smaller drops more (authors: 1)", 0, 1e6)
    beta: float = option(0.02, "weight of the entropy bonus (authors: 0.1)", 0, 1e6)
    alpha: float = option(0.8, "sample from alpha s + (1 - alpha)(1 - s); 1: from s", 0.51, 1)
    fade_by: float = option(0.5, "fraction after which alpha is 1, beta 0; 0: never", 0, 1)
    classify: float = option(0.3, "weight of the warm start's loss after it (paper: 0)", 0, 1e6)
    warm_epochs: int = option(1, "first epochs, to learn to classify (paper: 0)", 0, 1_000_000)
    free_by: float = option(0.5, "fraction of the rest that frees all; 0: one an epoch", 0, 1)
    learns = ("policy",)

    def free(self, epoch, num_blocks):
        """The blocks that the policy decides on in this epoch; none in the warm start. [K] bool"""
        if epoch < self.warm_epochs:
            return super().free(epoch, num_blocks)
        opening = portion(self.free_by, self.epochs - self.warm_epochs)
        return free_blocks(epoch - self.warm_epochs, num_blocks, opening or None)

    def step(self, model, x, y, epoch, progress, generator):
        """See `Stage.step`."""
        if epoch < self.warm_epochs:
            return warm_start_step(model, x, y)
        fade = fading(progress, self.fade_by)  # of the whole stage, the warm start included
        alpha = self.alpha + (1 - self.alpha) * fade
        beta = self.beta * (1 - fade)
        free = self.free(epoch, model.resnet.num_blocks)
        return curriculum_step(model, x, y, free, alpha, beta, self.gamma, generator, self.classify)
