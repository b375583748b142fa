"""blockdrop_min: BlockDrop (Wu et al., CVPR 2018) to read, run and teach from.

The method, in reading order: masked_resnet, policy_network, rewards, policy_gradient, stage,
pretraining, curriculum, finetuning, blockdrop. What a run needs besides is in lab/.
"""

import importlib

from .blockdrop import BlockDrop, FixedPolicy
from .curriculum import free_blocks
from .masked_resnet import MaskedResNet, resnet
from .policy_gradient import entropy, policy_loss
from .policy_network import PolicyNet, bound, force_on, greedy, policy_net, sample
from .rewards import reward

LAB = {  # name -> module of lab/, imported when the name is first asked for
    "load": "checkpoint", "Cost": "cost", "policy_cost": "cost", "resnet_cost": "cost",
    "fast": "folding", "static_policy": "heuristics", "load_foreign": "weights",
}  # fmt: skip


def __getattr__(name):
    if name not in LAB:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".lab.{LAB[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *LAB})
