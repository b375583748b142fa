"""Saving and loading a run: one dict of plain types and tensors, from which all is rebuilt."""

import json
import os
import warnings
from pathlib import Path

import torch

from ..blockdrop import BlockDrop, FixedPolicy
from ..masked_resnet import resnet
from ..policy_network import policy_net
from .files import FORMAT, read_file, using, write_safely
from .program import shown
from .settings import unflat
from .weights import fitting

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"
MODELS = Path(__file__).parent.parent / "models"  # those that ship
FORMAT_2 = "blockdrop_min 2"  # until November 2026: no digest, other names of settings
STAGE_OF = {"drop": "pretrain", "full_fraction": "finetune", "settle_by": "finetune"}  # in it
STAGE_OF |= dict.fromkeys(("alpha", "fade_by", "classify", "free_by", "warm_epochs"), "curriculum")


def save(folder, state):
    """Writes a run's checkpoint, keeping the one before, and its rows to metrics.jsonl."""
    path = Path(folder) / NAME
    write_safely(path, {"format": FORMAT, **state}, path.with_name(PREVIOUS))
    save_metrics(folder, state["metrics"])


def save_metrics(folder, rows):
    """Writes metrics.jsonl anew, one JSON object a line: it never has half a row, or one twice."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_safely(Path(folder) / "metrics.jsonl", lines.encode())


def ship(folder, path):
    """Writes a run's model as a file to give away: in half precision, without the optimizer."""
    state, _ = read(folder)
    for part in ("resnet", "policy"):
        tensors = state[part].items()
        state[part] = {name: t.half() if t.is_floating_point() else t for name, t in tensors}
    write_safely(path, {**state, "optimizer": None})


def read(path):
    """The dict of a checkpoint; its settings are those of today, as `flat` gives them.

    path: a run's folder, a checkpoint file, or the name of a model that ships, such as "demo",
        where nothing of that name exists.
    Returns (state, warning): of a folder whose newest checkpoint is damaged, the one before, and a
        line that says so; otherwise warning is None.
    Raises ValueError, one line, if there is no checkpoint of ours, or none that is whole, and
    OSError or MemoryError if it cannot be read now.
    """
    shipped = MODELS / f"{path}.pt"
    if len(str(path)) < 100 and Path(path).name == str(path) and not os.path.lexists(path):
        path = shipped if shipped.exists() else path
    path = Path(path)
    if len(path.name) > 255:
        raise ValueError(f"{shown(path)} is too long for the name of a file")
    if not path.is_dir():
        return read_whole(path), None
    try:
        return read_whole(path / NAME), None
    except ValueError as problem:
        if not os.path.lexists(path / PREVIOUS):
            raise
        return read_whole(path / PREVIOUS), f"{problem}; taking the one before, {PREVIOUS}"


def read_whole(path):
    """A checkpoint file's dict, or ValueError."""
    state = read_file(path)
    found = state.get("format") if isinstance(state, dict) else None
    if found not in (FORMAT, FORMAT_2):
        raise ValueError(f"{path} is not a checkpoint of blockdrop_min (format {FORMAT!r})")
    if found == FORMAT_2:
        with using(path):
            state |= {"format": FORMAT, "settings": modern(state["settings"])}
            state["bfloat16"] = state["settings"]["amp"] == "on"
    return state


def modern(settings):
    """The settings of a checkpoint of format 2 as they are called now."""
    settings = {"alpha": 0.8, "schedule": "cosine", "amp": False} | settings
    settings["finetune_alpha"] = settings["alpha"]
    if settings.pop("schedule") == "step":
        settings |= {"curriculum_schedule": "constant", "finetune_schedule": "step"}
    settings.pop("epochs_per_checkpoint", None)
    settings |= {"amp": "on" if settings["amp"] else "off", "rivals": 0}
    return {"_".join([STAGE_OF[n], n] if n in STAGE_OF else [n]): v for n, v in settings.items()}


def build(settings, num_classes, mean, std):
    """An untrained `BlockDrop` as the settings say."""
    net = resnet(settings.depth, num_classes, settings.family, settings.width or None)
    u = settings.fixed_policy(net.segments)
    if u is not None:
        return BlockDrop(net, FixedPolicy(u), mean, std)
    width, half_size = settings.policy_width, settings.policy_half_size
    policy = policy_net(net.num_blocks, settings.family, width, half_size, num_classes)
    return BlockDrop(net, policy, mean, std)


def restore(state, path):
    """The `BlockDrop` of a checkpoint's dict, in eval mode; `classes` in it names what it tells.

    Raises ValueError, one line, if something in the dict is missing or wrong.
    """
    with using(path):
        classes = tuple(name + "" for name in state["classes"])  # texts
        model = build(unflat(state["settings"]), len(classes), state["mean"], state["std"])
        for part in ("resnet", "policy"):
            network = model.get_submodule(part)
            network.load_state_dict(fitting(network, state[part], part))
        pixels = torch.cat([model.mean, model.std - 1e-6])  # of [0, 1], in float32
        if not ((pixels >= 0) & (pixels <= 1)).all():
            raise ValueError("mean and std must be those of pixels in [0, 1]")
    model.classes = classes
    return model.eval()


def restore_optimizer(optimizer, state, path):
    """Gives an optimizer the moments of a checkpoint; what it was made with stays as it is."""
    with using(path):
        saved = state["optimizer"]["state"]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})


def load(path, device="cpu"):
    """A trained `BlockDrop` in eval mode, from whatever `read` takes; nothing else is needed.

    It takes images [B, 3, H, W], uint8 or float in [0, 1], and normalises them itself; `classes`
    names its classes: `logits, u = load("runs/demo")(images)`.
    Raises ValueError if `path` is missing, damaged or no checkpoint; warns if it is damaged and the
    one before is taken.
    """
    state, warning = read(path)
    if warning:
        warnings.warn(warning, stacklevel=2)
    return restore(state, path).to(device, memory_format=torch.channels_last)
