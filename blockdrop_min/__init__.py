"""blockdrop_min: BlockDrop (Wu et al., CVPR 2018) to read, run and teach from. Read resnet.py first."""

from .checkpoint import load
from .cost import Cost, policy_cost, resnet_cost
from .curriculum import force_on, free_blocks
from .fast import fast
from .model import BlockDrop, FixedPolicy
from .policy import PolicyNet, bound, entropy, greedy, policy_loss, policy_net, sample, static_policy
from .resnet import MaskedResNet, resnet
from .reward import reward
from .weights import load_foreign

__all__ = [
    "BlockDrop", "Cost", "FixedPolicy", "MaskedResNet", "PolicyNet", "bound", "entropy", "fast", "force_on", "free_blocks",
    "greedy", "load", "load_foreign", "policy_cost", "policy_loss", "policy_net", "resnet", "resnet_cost", "reward", "sample",
    "static_policy",
]  # fmt: skip
