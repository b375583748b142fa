"""Saving and loading a run: one dict of plain types and tensors, from which all is rebuilt."""

import json
import os
import warnings
from dataclasses import fields
from pathlib import Path
from types import UnionType

import torch

from ..blockdrop import BlockDrop, FixedPolicy
from ..masked_resnet import resnet
from ..policy_net import policy_net
from .files import read_file, write_safely
from .settings import STAGES, Settings
from .weights import fitted, fitting

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"
FORMAT = "blockdrop_min 2"
MODELS = Path(__file__).parent.parent / "models"  # those that ship


COUNT = range(10**12)
ROW = {  # of the metrics
    "stage": STAGES,
    **dict.fromkeys(("epoch", "epochs", "free", "distinct_policies"), COUNT),
    **dict.fromkeys(("seconds", "loss", "train_accuracy", "accuracy"), float),
    **dict.fromkeys(("blocks_mean", "blocks_std"), float),
    **dict.fromkeys(("R", "A"), float | None),
}
SCHEMA = {  # what a checkpoint holds, see `fits`
    "format": (FORMAT,),
    "settings": {field.name: type(field.default) for field in fields(Settings)},
    "classes": [str],
    "mean": [float],
    "std": [float],
    "resnet": {...: torch.Tensor},
    "policy": {...: torch.Tensor},
    "stage": STAGES,
    "epoch": COUNT,
    "step": COUNT,
    "sums": {...: float},
    "seconds": float,
    "optimizer": dict | None,
    "metrics": [ROW],
}


def save(folder, state):
    """Writes a run's checkpoint, keeping the one before, and its rows to metrics.jsonl."""
    path = Path(folder) / NAME
    write_safely(path, {"format": FORMAT, **state}, path.with_name(PREVIOUS))
    save_metrics(folder, state["metrics"])


def save_metrics(folder, rows):
    """Writes metrics.jsonl anew, one JSON object a line: it never has half a row, or one twice."""
    lines = [json.dumps(row) + "\n" for row in rows]
    write_safely(Path(folder) / "metrics.jsonl", "".join(lines).encode())


def ship(folder, path):
    """Writes a run's model as a file to give away: in half precision, without the optimizer."""
    state, _ = read(folder)
    for part in ("resnet", "policy"):
        tensors = state[part].items()
        state[part] = {name: t.half() if t.is_floating_point() else t for name, t in tensors}
    write_safely(path, {**state, "optimizer": None})


def read(path):
    """The dict of a checkpoint, every field of it checked but for the weights (see `restore`).

    path: a run's folder, a checkpoint file, or the name of a model that ships, such as "demo",
        where nothing of that name exists.
    Returns (state, warning): of a folder whose newest checkpoint cannot be used, the one before,
        and a line that says so; otherwise warning is None. Nothing in the file can forge it.
    Raises ValueError, one line, if there is no checkpoint of ours, or none that is whole.
    """
    shipped = MODELS / f"{path}.pt"
    bare = Path(path).name == str(path) and not os.path.lexists(path)
    path = shipped if bare and shipped.exists() else Path(path)
    if not path.is_dir():
        return checked(read_file(path), path), None
    try:
        return checked(read_file(path / NAME), path / NAME), None
    except ValueError as problem:
        if not os.path.lexists(path / PREVIOUS):
            raise
        state = checked(read_file(path / PREVIOUS), path / PREVIOUS)
        return state, f"{problem}; taking the one before, {PREVIOUS}"


def checked(state, path):
    """A checkpoint's dict as it is, or ValueError: a field is missing or has a wrong type or range.

    Only the tensors are left to `restore` and `restore_optimizer`, which know their shapes.
    """
    if not isinstance(state, dict) or not fits(state.get("format"), SCHEMA["format"]):
        raise ValueError(f"{path} is not a checkpoint of blockdrop_min (format {FORMAT!r})")
    wrong = [name for name in SCHEMA if name not in state or not fits(state[name], SCHEMA[name])]
    if len(state) > len(SCHEMA):
        wrong.append("fields that none of ours has")
    try:
        if wrong or (wrong := out_of_range(state, Settings(**state["settings"]))):
            raise ValueError(f"wrong or missing: {', '.join(wrong)}")
    except ValueError as fault:
        problem = f"{path} is damaged or from another version of blockdrop_min"
        raise ValueError(f"{problem}: {str(fault)[:200]}") from None
    return state


def fits(value, kind):
    """Whether a value is of a kind of the schema.

    kind: a type (float: a finite number), `type | None`, the allowed values (tuple or range),
        [kind] of each part of a list, {name: kind}, or {...: kind} for any names.
    """
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in kind.__args__)
    if isinstance(kind, list):
        return isinstance(value, list | tuple) and all(fits(part, kind[0]) for part in value)
    if isinstance(kind, dict):
        if not isinstance(value, dict) or not (... in kind or value.keys() == kind.keys()):
            return False
        names = all(type(name) is str for name in value)
        return names and all(fits(value[name], kind.get(name, kind.get(...))) for name in value)
    if isinstance(kind, tuple | range):
        return type(value) is type(kind[0]) and value in kind
    if kind is float:
        return type(value) in (int, float) and -1e15 < value < 1e15
    return type(value) is kind


def out_of_range(state, settings):
    """Those fields of a checkpoint, all of the right types, that are not in their ranges."""
    epochs = {stage.name: stage.epochs for stage in settings.plan}
    sums = state["sums"]  # over the images of the epoch's steps
    begun = {"loss", "correct"} <= sums.keys() and sums.get("images", 0) > 0
    in_range = {
        "classes": 0 < len(state["classes"]) <= 100_000,
        "mean": len(state["mean"]) == 3,
        "std": len(state["std"]) == 3 and min(state["std"]) > 0,
        "epoch": state["epoch"] <= epochs.get(state["stage"], -1),
        "sums": begun or state["step"] == 0,
        "seconds": state["seconds"] >= 0,
    }
    return [name for name, right in in_range.items() if not right]


def build(settings, num_classes, mean, std):
    """An untrained `BlockDrop` as the settings say."""
    net = resnet(settings.depth, num_classes, settings.family)
    u = settings.fixed_policy(net.segments)
    if u is not None:
        return BlockDrop(net, FixedPolicy(u), mean, std)
    width, half_size = settings.policy_width, settings.policy_half_size
    policy = policy_net(net.num_blocks, settings.family, width, half_size, num_classes)
    return BlockDrop(net, policy, mean, std)


def restore(state, path):
    """The `BlockDrop` of a checkpoint's dict, in eval mode; `classes` in it names what it tells.

    Raises ValueError if a tensor is missing, left over or none that its place in a network takes.
    """
    settings = Settings(**state["settings"])
    model = build(settings, len(state["classes"]), state["mean"], state["std"])
    for part in ("resnet", "policy"):
        network = model.get_submodule(part)
        network.load_state_dict(fitting(network, state[part], f"{path}, {part}"))
    model.classes = tuple(state["classes"])
    return model.eval()


def restore_optimizer(optimizer, state, path):
    """Gives an optimizer the moments of a checkpoint; what it was made with stays as it is.

    Raises ValueError if they are not those of this optimizer's parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sgd = isinstance(optimizer, torch.optim.SGD)
    names = {"momentum_buffer"} if sgd else {"step", "exp_avg", "exp_avg_sq"}
    lowest = {"step": 1, "exp_avg_sq": 0}
    saved = state["optimizer"].get("state")
    for i, moments in saved.items() if isinstance(saved, dict) else [(None, None)]:
        known = type(i) is int and i in range(len(parameters)) and isinstance(moments, dict)
        if not known or moments.keys() != names:
            raise ValueError(f"{path} is damaged: its optimizer is not that of its stage")
        for name, tensor in moments.items():
            own = torch.ones(()) if name == "step" else parameters[i]
            fitted(tensor, own, f"{path}, optimizer, {name}", lowest.get(name, -torch.inf))
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
