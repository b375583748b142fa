"""blockdrop_min: BlockDrop (Wu et al., CVPR 2018) to read, run and teach from.

The method, in reading order: masked_resnet, policy_network, rewards, policy_gradient, pretraining,
curriculum, finetuning, blockdrop. What a run needs besides is in lab/.
"""

from .blockdrop import BlockDrop, FixedPolicy, static_policy
from .curriculum import free_blocks
from .lab.checkpoint import load
from .lab.cost import Cost, policy_cost, resnet_cost
from .lab.folding import fast
from .lab.weights import load_foreign
from .masked_resnet import MaskedResNet, resnet
from .policy_gradient import entropy, policy_loss
from .policy_network import PolicyNet, bound, force_on, greedy, policy_net, sample
from .rewards import reward
