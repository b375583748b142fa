"""Saving and loading a run: one dict of plain types and tensors, from which all is rebuilt."""

import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from ..blockdrop import BlockDrop, FixedPolicy
from ..masked_resnet import resnet
from ..policy_network import policy_net
from .files import read_file, write_safely
from .settings import STAGES, Settings
from .weights import fitted, fitting

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"
FORMAT = "blockdrop_min 2"
MODELS = Path(__file__).parent.parent / "models"  # those that ship


# What a checkpoint holds: each name, and the function that says whether a value may stand there.


def is_count(value):
    return type(value) is int and 0 <= value < 10**12


def is_number(value):
    return type(value) in (int, float) and abs(value) < 1e15  # of NaN, False


def is_text(value):
    return isinstance(value, str)


def is_list(value, check):
    return isinstance(value, list | tuple) and all(check(part) for part in value)


def is_dict(value, checks):
    """Whether it is a dict with these names and nothing else, each value right."""
    named = isinstance(value, dict) and value.keys() == checks.keys()
    return named and all(check(value[name]) for name, check in checks.items())


def has_moments(value):
    return isinstance(value, dict) and isinstance(value.get("state"), dict)


def are_settings(value):
    """Whether settings can be made of it; those that came later have their defaults."""
    try:
        ours = isinstance(value, dict) and "preset" in value
        return ours and value.items() <= asdict(Settings(**value)).items()
    except (TypeError, ValueError):
        return False


COUNTS = ("epoch", "epochs", "free", "distinct_policies")
MEASURED = ("seconds", "loss", "train_accuracy", "accuracy", "blocks_mean", "blocks_std")
ROW = {  # of the metrics
    "stage": lambda value: value in STAGES,
    **dict.fromkeys(COUNTS, is_count),
    **dict.fromkeys(MEASURED, is_number),
    **dict.fromkeys(("R", "A"), lambda value: value is None or is_number(value)),
}
CHECKPOINT = {
    "format": lambda value: value == FORMAT,
    "settings": are_settings,
    "classes": lambda value: is_list(value, is_text) and 0 < len(value) <= 100_000,
    "mean": lambda value: is_list(value, is_number) and len(value) == 3,
    "std": lambda value: is_list(value, is_number) and len(value) == 3 and min(value) > 0,
    "resnet": lambda value: isinstance(value, dict),  # the tensors: see `restore`
    "policy": lambda value: isinstance(value, dict),
    "stage": lambda value: value in STAGES,
    "epoch": is_count,
    "step": is_count,
    "sums": lambda value: isinstance(value, dict) and is_list([*value.values()], is_number),
    "seconds": lambda value: is_number(value) and value >= 0,
    "optimizer": lambda value: value is None or has_moments(value),
    "metrics": lambda value: is_list(value, lambda row: is_dict(row, ROW)),
}


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
        return read_whole(path), None
    try:
        return read_whole(path / NAME), None
    except ValueError as problem:
        if not os.path.lexists(path / PREVIOUS):
            raise
        return read_whole(path / PREVIOUS), f"{problem}; taking the one before, {PREVIOUS}"


def read_whole(path):
    """A checkpoint file's dict, or ValueError: a field is missing or has a wrong type or range.

    Only the tensors are left to `restore` and `restore_optimizer`, which know their shapes.
    """
    state = read_file(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of blockdrop_min (format {FORMAT!r})")
    wrong = [name for name, check in CHECKPOINT.items() if not check(state.get(name, ...))]
    if wrong or len(state) > len(CHECKPOINT) or not is_position(state):
        names = ", ".join(wrong) or "its stage, epoch, step or sums, or a field too many"
        raise ValueError(f"{path} is damaged or from another version of blockdrop_min: {names}")
    return state


def is_position(state):
    """Whether a run of these settings may stand at this step, with these sums over its epoch."""
    epochs = {stage.name: stage.epochs for stage in Settings(**state["settings"]).plan}
    sums = state["sums"]
    begun = {"loss", "correct"} <= sums.keys() and sums.get("images", 0) > 0
    in_plan = state["epoch"] <= epochs.get(state["stage"], -1)
    return in_plan and (begun if state["step"] else not sums)


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
    lowest = {"step": 1, "exp_avg": -torch.inf, "exp_avg_sq": 0}
    if isinstance(optimizer, torch.optim.SGD):
        lowest = {"momentum_buffer": -torch.inf}
    saved = state["optimizer"]["state"]
    for i, moments in saved.items():
        known = type(i) is int and 0 <= i < len(parameters) and isinstance(moments, dict)
        if not known or moments.keys() != lowest.keys():
            raise ValueError(f"{path} is damaged: its optimizer is not that of its stage")
        for name, tensor in moments.items():
            own = torch.ones(()) if name == "step" else parameters[i]
            fitted(tensor, own, f"{path}, optimizer, {name}", lowest[name])
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
