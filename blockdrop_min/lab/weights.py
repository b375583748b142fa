"""Weights made elsewhere: torchvision's names, and the checkpoints of the BlockDrop authors."""

import re
from copy import deepcopy
from pathlib import Path

from ..blockdrop import BlockDrop
from ..policy_network import PolicyNet
from .files import read_file
from .program import shown

# An agent's unused value head, and what older ones left behind.
IGNORED = re.compile(r"vnet\.|features\.fc\.")


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


def fitting(network, state, what):
    """The network's own state_dict after a copy of it has loaded `state`, strictly.

    Only num_batches_tracked may be missing, as in files from PyTorch 0.3.
    Raises ValueError, one line that begins with `what`, if anything does not fit or is not finite.
    """
    network = deepcopy(network)
    try:
        network.load_state_dict(state)
    except RuntimeError as problem:
        reason = shown(" ".join(str(problem).split()), 250)
        raise ValueError(f"{what}: {reason}") from None
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise ValueError(f"{what} holds a number that is not finite")
    return network.state_dict()


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


def with_resnet(model, file):
    """A copy of a `BlockDrop`, its ResNet from this file; see `load_foreign`."""
    other = deepcopy(model)
    load_foreign(other.resnet, file)
    return other
