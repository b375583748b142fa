"""Weights made elsewhere: torchvision's names, and the checkpoints of the BlockDrop authors."""

import re
from pathlib import Path

import torch

from ..blockdrop import BlockDrop
from ..policy_network import PolicyNet
from .files import read_file
from .program import shown

# An agent's unused value head, and what older ones left behind.
IGNORED = re.compile(r"vnet\.|features\.fc\.")
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# The lowest numbers of a buffer, by the end of its name; a deviation is divided by.
LOWEST = {"running_var": 0, "num_batches_tracked": 0, "std": torch.finfo(torch.float32).tiny}


def translate(state, what, is_agent):
    """A state_dict with our names: no `module.`, no names of the authors, nothing to be ignored."""
    translated = {}
    for name, tensor in state.items():
        # Ours are torchvision's. The authors' segments count from 0.
        name = str(name).removeprefix("module.")
        name = re.sub(r"\bblocks\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.", name)
        name = re.sub(r"\bds\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.0.downsample.", name)
        if name in translated:
            raise ValueError(f"{what}: {shown(name)!r} is there twice, under two names")
        if not (is_agent and IGNORED.match(name)):
            translated[name] = tensor
    return translated


def fitted(tensor, own, what, low=-torch.inf):
    """A tensor of a file as one like `own`: its shape and type, and finite numbers from `low` on.

    Raises ValueError, which names `what`, if it is not dense (sparse, meta, ...), of
    another shape, or of numbers of another kind.
    """
    dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    if not dense or tensor.is_nested or tensor.is_meta:
        raise ValueError(f"{what} is no dense tensor")
    alike = tensor.dtype == own.dtype or {tensor.dtype, own.dtype} <= FLOATS
    if not alike or tensor.shape != own.shape:
        given = f"{tensor.dtype} {list(tensor.shape)}"
        raise ValueError(f"{what} is {given}; this network needs {own.dtype} {list(own.shape)}")
    tensor = tensor.to(own.dtype)  # in which a large double may be infinite, and a small one 0
    if not torch.isfinite(tensor).all() or (tensor < low).any():
        raise ValueError(f"{what} holds a number that is not finite, or too low")
    return tensor


def fitting(network, state, what):
    """The state_dict as the network takes it, in its types.

    Strictly, but for num_batches_tracked, which files from PyTorch 0.3 lack.
    Raises ValueError if a key is missing or left over, or a tensor does not fit.
    """
    own = network.state_dict()
    state = {name: t for name, t in own.items() if name.endswith("num_batches_tracked")} | state
    missing = sorted(own.keys() - state.keys())
    left = [shown(name, 40) for name in state.keys() - own.keys()]
    if missing or left:
        lacks = f"{len(missing)} tensors missing {missing[:3]}"
        raise ValueError(f"{what}: {lacks}, {len(left)} left over {sorted(left)[:3]}")
    lowest = {name: LOWEST.get(name.rpartition(".")[2], -torch.inf) for name in own}
    return {n: fitted(t, own[n], f"{what}: {n}", lowest[n]) for n, t in state.items()}


def start_policy(policy, path):
    """Starts a `PolicyNet` from a torchvision ResNet-18: its stem, each segment's first block.

    path: of the file.
    Raises ValueError, and changes nothing, if one of their tensors is missing or does not fit.
    """
    own = policy.features.state_dict()
    theirs = translate(content_of(path, path), path, is_agent=False)
    theirs = {name: tensor for name, tensor in theirs.items() if name in own}
    policy.features.load_state_dict(fitting(policy.features, theirs, path))


def content_of(checkpoint, what):
    """The dict of a file, or the dict itself; the `state_dict` or `model` in it, if it has one."""
    content = read_file(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    if not isinstance(content, dict):
        raise ValueError(f"{what} holds a {type(content).__name__}; it must hold a dict of tensors")
    inner = [content.get(name) for name in ("state_dict", "model")]
    return next((part for part in inner if isinstance(part, dict)), content)


def load_foreign(model, checkpoint):
    """Loads foreign weights into a `MaskedResNet`, a `PolicyNet` or a `BlockDrop`.

    checkpoint: a file or the dict it holds: a state_dict with torchvision's names (`module.` may
        stand before each; it may lie in `state_dict` or `model`), or a checkpoint of the authors,
        with `resnet` and `agent` (older: `net`). A `BlockDrop` needs both, so not the authors'
        curriculum checkpoints, which hold the agent only: load those into `model.policy`.
    Returns the model.
    Raises ValueError, and changes nothing, if a key is missing or left over, those that are to be
    ignored excepted, or if a tensor does not fit.
    """
    what = checkpoint if isinstance(checkpoint, str | Path) else "checkpoint"
    content = content_of(checkpoint, what)
    parts = {"resnet": content.get("resnet"), "agent": content.get("agent", content.get("net"))}
    networks = {"agent" if isinstance(model, PolicyNet) else "resnet": model}
    if isinstance(model, BlockDrop):
        networks = {"resnet": model.resnet, "agent": model.policy}
    elif not any(isinstance(part, dict) for part in parts.values()):
        parts = dict.fromkeys(parts, content)  # it is the weights of one network
    states = {}
    for name, network in networks.items():
        if not isinstance(parts[name], dict):
            has = [shown(key, 40) for key in list(content)[:5]]
            raise ValueError(f"{what} holds no `{name}`; it has {has}")
        state = translate(parts[name], f"{what}, {name}", name == "agent")
        states[name] = fitting(network, state, f"{what}, {name}")
    for name, network in networks.items():  # all fit, so that either both change or none
        network.load_state_dict(states[name])
    return model
