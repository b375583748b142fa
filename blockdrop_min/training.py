"""One training step of each stage (paper, section 3.3). Read after model.py; the loop around it is in train.py.

pretrain     the ResNet alone, cross-entropy, images drop random blocks so that it learns to do without some
curriculum   the policy alone, ResNet frozen: policy gradient, blocks freed from the last to the first
finetune     both: the policy loss plus the cross-entropy of the sampled pass; or the ResNet alone, the policy settled or fixed

Every step takes the prepared images x [B, 3, H, W] and the labels y [B] and gives its loss, a mean over images, and what
it saw of each image, without gradient, for the log.
"""

import math

import torch
import torch.nn.functional as F
from torch.profiler import record_function  # names a part for `train.py --profile`

from .curriculum import force_on
from .policy import bound, entropy, greedy, policy_loss, sample
from .resnet import check_policy, take
from .reward import reward


def set_mode(model, stage):
    """Training mode and gradients for what the stage learns, eval mode and none for what it leaves as it is."""
    learns = {"pretrain": (True, False), "curriculum": (False, True), "finetune": (True, True)}[stage]
    for network, learning in zip((model.resnet, model.policy), learns, strict=True):
        network.train(learning).requires_grad_(learning)


def random_policies(num_images, num_blocks, share, generator):
    """Policies for pretraining: a `share` of the images draws a keep rate from U(0.15, 1), and each block by that rate.

    Returns [B, K]; the other images keep all.
    """
    draws = torch.rand(num_images, num_blocks + 2, generator=generator, device=generator.device)
    rate, drops = 0.15 + 0.85 * draws[:, :1], draws[:, 1:2] < share
    return ((draws[:, 2:] < rate) | ~drops).float()


def pretrain_step(model, x, y, share, generator):
    """Cross-entropy of the ResNet under random policies (`random_policies`); share 0 is plain training."""
    u = random_policies(len(x), model.resnet.num_blocks, share, generator) if share > 0 else None
    with record_function("ResNet, sampled"):
        logits = model.resnet(x, u, execute="sparse")
    return F.cross_entropy(logits, y), {"correct": logits.argmax(1) == y}


def warm_step(model, x, y):
    """Warm start of the policy network: its features learn to classify, through `model.classifier`, before they decide."""
    logits = model.classifier(model.policy.embed(x))
    return F.cross_entropy(logits, y), {"correct": logits.argmax(1) == y}


def correct_under(resnet, x, y, u):
    """Which predictions are right under the policies u [B, K]: [B] bool. Leaves no trace: eval mode, no gradient."""
    return correct_under_both(resnet, x, y, u, u)[0]


@torch.no_grad()
def correct_under_both(resnet, x, y, u, v):
    """`correct_under` two policies u and v [B, K], in one pass that runs once what they share.

    That is the blocks before the first one in which any image's policies differ (in the curriculum, those that are forced
    on), and all blocks for images whose policies agree.    Returns two [B] bool.
    """
    training = resnet.training
    resnet.eval()
    u, v = (check_policy(policy, len(x), resnet.num_blocks) for policy in (u, v))
    first = int((u == v).all(0).long().cumprod(0).sum())  # blocks before the first difference
    twice = (u != v).any(1).nonzero()[:, 0]  # images
    x = resnet.run(resnet.stem(x), u[:, :first])
    x = torch.cat([x, take(x, twice.to(x.device))])
    x = resnet.run(x, torch.cat([u, v[twice]])[:, first:], first)
    correct_u, differs = (resnet.head(x).argmax(1) == torch.cat([y, y[twice]])).split([len(y), len(twice)])
    resnet.train(training)
    return correct_u, correct_u.index_copy(0, twice.to(x.device), differs)


def policy_step(model, x, y, free, alpha, beta, gamma, generator, joint=False, full_share=0.0, frozen=None):
    """The policy gradient step of the curriculum and, with `joint`, of finetuning.

    loss = policy_loss - beta x entropy, and if `joint` + the cross-entropy of the sampled pass.

    free: [K] bool, the blocks that the policy decides on; the others are forced on.    full_share: this share of the
    batch also passes the ResNet with all blocks on and adds to the cross-entropy, which keeps the full network good.
    frozen: without `joint`, what passes for the ResNet: a faster snapshot of it (`fast`).
    """
    with record_function("policy network"):
        s = model.policy(x)  # [B, K]
    s_bounded = bound(s, alpha)
    u = force_on(sample(s_bounded, generator), free)
    u_greedy = force_on(greedy(s.detach()), free)

    if joint:
        with record_function("ResNet, greedy"):
            correct_greedy = correct_under(model.resnet, x, y, u_greedy)  # [B]
        full = math.ceil(full_share * len(x))  # images that pass a second time, with all blocks on
        targets, policies = torch.cat([y, y[:full]]), torch.cat([u, torch.ones_like(u[:full])])
        with record_function("ResNet, sampled"):
            logits = model.resnet(torch.cat([x, x[:full]]), policies, execute="sparse")
        correct = logits[: len(x)].detach().argmax(1) == y
    else:
        with record_function("ResNet, sampled and greedy"):
            correct, correct_greedy = correct_under_both(frozen or model.resnet, x, y, u, u_greedy)
    R, R_greedy = reward(u, correct, gamma), reward(u_greedy, correct_greedy, gamma)
    A = R - R_greedy  # self-critical: is it better than what the policy does by itself?

    loss = policy_loss(s_bounded, u, A, free) - beta * entropy(s_bounded, free)
    if joint:
        loss = loss + F.cross_entropy(logits, targets)
    return loss, {"correct": correct, "R": R, "A": A}


def settled_step(model, x, y, gamma):
    """Cross-entropy of the ResNet under the greedy policies of a frozen policy network (set to eval mode) or a `FixedPolicy`.

    gamma: only for the R of the log.
    """
    with torch.no_grad(), record_function("policy network"):
        u = greedy(model.policy.eval()(x))  # [B, K]
    with record_function("ResNet, settled"):
        logits = model.resnet(x, u, execute="sparse")
    correct = logits.argmax(1) == y
    R = reward(u, correct, gamma)
    return F.cross_entropy(logits, y), {"correct": correct, "R": R, "A": torch.zeros_like(R)}
