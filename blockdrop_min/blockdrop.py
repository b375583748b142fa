"""BlockDrop: a ResNet and the policy that chooses its blocks. Read after finetuning.py."""

import torch
from torch import nn

from .masked_resnet import being_recorded
from .policy_network import greedy

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class BlockDrop(nn.Module):
    """The pair: `model(x)` returns logits [B, C] and the greedy policy u [B, K] behind them.

    In eval mode the ResNet runs sparsely: a dropped block is not computed. While torch.export or
    torch.jit.trace records the model, it runs masked, with the same results, and checks no image.

    resnet: a `MaskedResNet`.
    policy: a `PolicyNet` or a `FixedPolicy`.
    mean, std: of pixel values in [0, 1], per channel; images are normalised by them first. Without
        them images are taken as they are, for callers that normalise. They are in the state_dict;
        an older one without them loads, too, and leaves them as they are.
    Raises ValueError if the two networks disagree in K.
    """

    def __init__(self, resnet, policy, mean=(0.0,) * 3, std=(1.0,) * 3):
        super().__init__()
        if resnet.num_blocks != policy.num_blocks:
            theirs = f"the policy network decides on {policy.num_blocks}"
            raise ValueError(f"the ResNet has {resnet.num_blocks} blocks but {theirs}")
        self.resnet = resnet
        self.policy = policy
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))

    def _load_from_state_dict(self, state, prefix, *how):
        for name in ("mean", "std"):
            state.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state, prefix, *how)

    def prepare(self, x):
        """Images as the networks want them: [B, 3, H, W] -> float, normalised, channels_last.

        x: uint8, or float in [0, 1].
        """
        high = 255 if x.dtype == torch.uint8 else 1
        x = x.to(self.resnet.conv1.weight.dtype) / high
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, x):
        """Logits [B, C] and greedy policies [B, K] of images.

        x: tensor or array [B, 3, H, W], or [B, 1, H, W] if grey, on any device: integers in 0..255,
            or floats in [0, 1]; if the model does not normalise, any floats.
        Raises ValueError on anything else, and on images that are too small to be halved.
        """
        x = self.prepare(self.check(x).to(self.mean.device))
        u = greedy(self.policy(x))
        # In training mode by the definition; the stages call the two networks themselves, sparsely.
        return self.resnet(x, u, execute="masked" if self.training else "sparse"), u

    def check(self, x):
        """Images as a tensor [B, 3, H, W], uint8 or float. What they may mean is not guessed."""
        least = 2 if getattr(self.policy, "half_size", False) else 1
        allowed = (
            f"they must be [B, 3, H, W], or [B, 1, H, W] if grey, of {least} x {least} pixels or "
            "more, uint8 (or int16, int32, int64 in 0..255) or floats in [0, 1], not normalised; "
            "from a file: load_image(path, size)[None] of blockdrop_min.lab.images"
        )
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"images are of type {type(x).__name__}; {allowed}") from None
        fits = x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= least
        if not fits or x.dtype not in INTEGERS + FLOATS:
            raise ValueError(f"images are {x.dtype} {list(x.shape)}; {allowed}")
        high = 255 if x.dtype in INTEGERS else 1
        free = x.dtype in FLOATS and not (self.mean.any() or (self.std != 1).any())
        if not (being_recorded() or free or ((x >= 0) & (x <= high)).all()):
            raise ValueError(f"images of {x.dtype} are out of range; {allowed}")
        x = x.to(torch.uint8) if x.dtype in INTEGERS else x
        return x.expand(-1, 3, -1, -1)


class FixedPolicy(nn.Module):
    """The same policy u [K] for every image, in the place of a `PolicyNet`. It costs nothing."""

    def __init__(self, u):
        super().__init__()
        self.num_blocks = len(u)
        self.register_buffer("u", u.float())

    def forward(self, x):
        """[B, 3, H, W] -> s [B, K], each 0 or 1"""
        return self.u.expand(x.shape[0], -1)
