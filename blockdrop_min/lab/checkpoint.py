"""Saving and loading a run. A checkpoint is one dict of plain types and tensors, which rebuilds everything it needs."""

import io
import json
import os
import warnings
from pathlib import Path

import torch

from ..blockdrop import BlockDrop, FixedPolicy
from ..masked_resnet import resnet
from ..policy_net import policy_net
from .settings import Settings
from .weights import fitting, read_file

NAME, PREVIOUS, DAMAGED = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.damaged.pt"
FORMAT = "blockdrop_min 1"


def write_safely(path, content, previous=None):
    """Writes bytes, or what torch.save makes of anything else, to a temporary file beside `path`, and renames it.

    What stood at `path` before is renamed to `previous`, if that is given. Raises OSError, and leaves `path` as it was.
    """
    if not isinstance(content, bytes):
        buffer = (
            io.BytesIO()
        )  # torch.save reports a full disk as a RuntimeError about something else
        torch.save(content, buffer)
        content = buffer.getbuffer()
    temporary = path.with_name(f".{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(folder, state):
    """Writes a run's checkpoint, keeping the one before, and its rows to metrics.jsonl."""
    path = Path(folder) / NAME
    write_safely(path, {"format": FORMAT, **state}, path.with_name(PREVIOUS))
    save_metrics(folder, state["metrics"])


def save_metrics(folder, rows):
    """Writes metrics.jsonl anew, one JSON object a line: it never holds a row twice or half a row."""
    write_safely(
        Path(folder) / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()
    )


def read(path):
    """A checkpoint's dict, from a run folder or a file; ValueError, one line, if it is none of ours.

    Of a folder whose newest checkpoint cannot be read, the one before is taken, and `note` in the dict says so.
    """
    path = Path(path)
    if path.is_dir():
        try:
            return read(path / NAME)[0], None
        except ValueError as problem:
            if not (path / PREVIOUS).exists():
                raise
            return read(path / PREVIOUS)[0], f"{problem}; taking the one before, {PREVIOUS}"
    state = read_file(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of blockdrop_min (format {FORMAT!r})")
    if not isinstance(state.get("settings"), dict) or not isinstance(
        state.get("classes"), (list, tuple)
    ):
        raise ValueError(
            f"{path} is damaged or from another version of blockdrop_min: settings or classes are missing"
        )
    return state, None


def build(settings, num_classes, mean, std):
    """An untrained `BlockDrop` as the settings say."""
    net = resnet(settings.depth, num_classes, settings.family)
    u = settings.fixed_policy(net.segments)
    shape = (
        net.num_blocks,
        settings.family,
        settings.policy_width,
        settings.policy_half_size,
        num_classes,
    )
    return BlockDrop(net, policy_net(*shape) if u is None else FixedPolicy(u), mean, std)


def restore(state, path):
    """The `BlockDrop` that a checkpoint holds, in eval mode. ValueError if its parts do not fit together."""
    try:
        settings, classes = Settings(**state["settings"]), state["classes"]
        model = build(settings, len(classes), state["mean"], state["std"])
        for part in ("resnet", "policy"):
            getattr(model, part).load_state_dict(
                fitting(getattr(model, part), state[part], f"{path}, {part}")
            )
    except (KeyError, TypeError, AttributeError, RuntimeError) as problem:
        raise ValueError(
            f"{path} is damaged or from another version of blockdrop_min: {type(problem).__name__} {problem}"
        ) from None
    return model.eval()


def load(path, device="cpu"):
    """A trained `BlockDrop` in eval mode, from a run folder or a checkpoint file; nothing else is needed.

    It takes images [B, 3, H, W], uint8 or float in [0, 1], and normalises them itself:
    `logits, u = load("runs/demo")(images)`.    Raises ValueError if the file is missing, damaged or not a checkpoint, and
    warns if it is damaged and the one before it is taken.
    """
    state, warning = read(path)
    if warning:
        warnings.warn(warning, stacklevel=2)
    return restore(state, path).to(device, memory_format=torch.channels_last)
