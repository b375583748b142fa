"""Weights made elsewhere: torchvision's names, and the checkpoints of the BlockDrop authors."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..blockdrop import BlockDrop
from ..policy_net import PolicyNet

# The authors' names of a ResNet's parts, and ours (torchvision's). Segments count from 0 there and from 1 here.
AUTHORS = [
    (re.compile(r"\bblocks\.(\d+)\.(\d+)\."), lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (re.compile(r"\bds\.(\d+)\."), lambda m: f"layer{int(m[1]) + 1}.0.downsample."),
]
IGNORED = re.compile(
    r"vnet\.|features\.fc\."
)  # an agent's unused value head, and what older ones left behind


def read_file(path):
    """What a file of torch.save holds, plain types and tensors only. ValueError, one line, if it cannot be read so."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (
        Exception
    ) as problem:  # torch.load fails in many ways; its own texts advise to load the file unsafely
        kind = type(problem).__name__
        raise ValueError(f"{path} cannot be read ({kind}): it is truncated, not a file of torch.save, or holds more than "
                         "tensors and plain types") from None  # fmt: skip


def translate(state, what, is_agent):
    """A state_dict with our names: no `module.`, the authors' names replaced, what an agent need not have left out."""
    translated = {}
    for name, tensor in state.items():
        name = str(name).removeprefix("module.")
        for pattern, ours in AUTHORS:
            name = pattern.sub(ours, name)
        if name in translated:
            raise ValueError(f"{what}: {name} is there twice, under two names")
        if not (is_agent and IGNORED.match(name)):
            translated[name] = tensor
    return translated


def fitting(network, state, what):
    """The state_dict as the network takes it: strictly, but for num_batches_tracked, which files from PyTorch 0.3 lack.

    Raises ValueError if a key is missing or left over, a shape differs, or a number is not finite.
    """
    own = network.state_dict()
    state = {name: t for name, t in own.items() if name.endswith("num_batches_tracked")} | state
    missing, left = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or left:
        raise ValueError(
            f"{what}: {len(missing)} tensors missing {missing[:3]}, {len(left)} left over {left[:3]}"
        )
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.shape != own[name].shape:
            raise ValueError(
                f"{what}: {name} is {list(getattr(tensor, 'shape', []))}; this network needs {list(own[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{what}: {name} holds a number that is not finite")
    return state


def start_policy(policy, path):
    """Starts a `PolicyNet` from a torchvision ResNet-18's file: its stem and the first block of each segment.

    Raises ValueError, and changes nothing, if the file lacks a tensor of them, or has it in another shape.
    """
    own, theirs = policy.features.state_dict(), read_file(path)
    theirs = (
        {name: t for name, t in theirs.items() if name in own}
        if isinstance(theirs, Mapping)
        else {}
    )
    policy.features.load_state_dict(fitting(policy.features, theirs, path))


def load_foreign(model, checkpoint):
    """Loads foreign weights into a `MaskedResNet`, a `PolicyNet` or a `BlockDrop`.

    checkpoint: a file or the dict it holds: a state_dict with torchvision's names (`module.` may stand before each), or a
    checkpoint of the authors, with `resnet` and `agent` (older: `net`). A `BlockDrop` needs both, so not the authors'
    curriculum checkpoints, which hold the agent only: load those into `model.policy`.
    Returns the model.    Raises ValueError if a key is missing or left over, those that are to be ignored excepted.
    """
    what = str(checkpoint) if isinstance(checkpoint, (str, Path)) else "checkpoint"
    content = read_file(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} holds a {type(content).__name__}; it must hold a dict of tensors")
    parts = {"resnet": content.get("resnet"), "agent": content.get("agent", content.get("net"))}
    if not any(isinstance(part, Mapping) for part in parts.values()):
        parts = {"resnet": content, "agent": content}
        if isinstance(model, BlockDrop):
            raise ValueError(f"{what} holds one network; a BlockDrop needs `resnet` and `agent`")
    networks = {"resnet": model.resnet, "agent": model.policy} if isinstance(model, BlockDrop) else (
        {"agent": model} if isinstance(model, PolicyNet) else {"resnet": model})  # fmt: skip
    for name in networks:
        if not isinstance(parts[name], Mapping):
            raise ValueError(f"{what} holds no `{name}`; it has {', '.join(map(str, content))}")
    states = {name: fitting(network, translate(parts[name], f"{what}, {name}", name == "agent"), f"{what}, {name}")
              for name, network in networks.items()}  # fmt: skip
    for name, network in networks.items():  # all fit, so that either both change or none
        network.load_state_dict(states[name])
    return model
