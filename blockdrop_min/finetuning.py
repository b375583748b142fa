"""Stage 3: the policy network and the ResNet learn together (paper, section 3.3).

Read after curriculum.py. All blocks are free.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .curriculum import portion
from .policy_gradient import entropy, policy_loss
from .policy_network import bound, greedy, sample
from .rewards import correct_under, reward
from .stage import Stage, fading, option, sgd


def finetune_step(model, x, y, alpha, beta, gamma, generator, full_fraction=0.0):
    """The policy gradient, and the cross-entropy of the sampled pass. Both networks learn.

    The policy loss trains the policy network, the cross-entropy the ResNet: none flows through u.

    The greedy pass comes first, in eval mode, and changes nothing; the sampled one is in training
    mode, where it moves BatchNorm's statistics.

    x: [B, 3, H, W], prepared images.
    y: [B], labels.
    alpha: bounding of the probabilities.
    beta: weight of the entropy bonus.
    gamma: penalty of a wrong prediction.
    full_fraction: this fraction of the batch, its first images, also passes with all blocks on, in
        the same call; the cross-entropy is a mean over all passes. It keeps the full network good
        until the policy settles (paper: 0).
    Returns the loss, a mean over images, and for the log what the sampled policy gave each image:
        {"correct": [B] bool, "R": [B], "A": [B]}.
    """
    s = model.policy(x)  # [B, K]
    s_bounded = bound(s, alpha)
    u = sample(s_bounded, generator)
    u_greedy = greedy(s)

    (correct_greedy,) = correct_under(model.resnet, x, y, u_greedy)
    full = portion(full_fraction, len(x))  # images that pass twice
    policies = torch.cat([u, torch.ones_like(u[:full])])
    logits = model.resnet(torch.cat([x, x[:full]]), policies, execute="sparse")
    correct = logits[: len(x)].argmax(1) == y
    R = reward(u, correct, gamma)
    R_greedy = reward(u_greedy, correct_greedy, gamma)
    A = R - R_greedy  # as in the curriculum

    loss = policy_loss(s_bounded, u, A) - beta * entropy(s_bounded)
    loss = loss + F.cross_entropy(logits, torch.cat([y, y[:full]]))
    return loss, {"correct": correct, "R": R, "A": A}


def settled_step(model, x, y, gamma):
    """Cross-entropy under the greedy policies, which no longer change. Only `model.resnet` learns.

    Also the step under a fixed policy, the paper's heuristics.

    x: [B, 3, H, W], prepared images.
    y: [B], labels.
    gamma: only for the R of the log.
    Returns the loss, a mean over images, and for the log {"correct": [B] bool, "R": [B], "A": [B]},
        A all 0.
    """
    model.policy.eval()
    with torch.no_grad():
        u = greedy(model.policy(x))  # [B, K]
    logits = model.resnet(x, u, execute="sparse")
    correct = logits.argmax(1) == y
    R = reward(u, correct, gamma)
    return F.cross_entropy(logits, y), {"correct": correct, "R": R, "A": torch.zeros_like(R)}


@dataclass(frozen=True)
class Finetuning(Stage):
    """Stage 3 with its schedule: both networks learn, then the policy settles."""

    lr: float = option(1e-3, "learning rate, at its peak (Adam)", 0, 1000)
    gamma: float = option(5.0, "a wrong answer's penalty; smaller drops more (authors: 10)", 0, 1e6)
    beta: float = option(0.05, "weight of the entropy bonus (authors: 0)", 0, 1e6)
    alpha: float = option(0.8, "sample from alpha s + (1 - alpha)(1 - s); 1: from s", 0.51, 1)
    full_fraction: float = option(0.125, "of a batch also passes with all blocks (paper: 0)", 0, 1)
    settle_by: float = option(0.5, "fraction after which only the ResNet learns; 0: never", 0, 1)
    sgd: bool = option(False, "SGD, as in pretraining; otherwise Adam (authors)")

    def optimizer(self, model):
        """SGD or Adam, for both networks."""
        return sgd(model, self.lr) if self.sgd else super().optimizer(model)

    def free(self, epoch, num_blocks):
        """All blocks. [K] bool"""
        return torch.ones(num_blocks, dtype=torch.bool)

    def step(self, model, x, y, epoch, progress, generator):
        """See `Stage.step`."""
        fade = fading(progress, self.settle_by)
        fixed = next(model.policy.parameters(), None) is None  # a `FixedPolicy`
        if fixed or fade == 1:
            return settled_step(model, x, y, self.gamma)
        alpha = self.alpha + (1 - self.alpha) * fade
        beta = self.beta * (1 - fade)
        full = self.full_fraction
        return finetune_step(model, x, y, alpha, beta, self.gamma, generator, full)
