"""Going on where a run stopped: what its folder holds, and whether these settings may go on."""

import os
import subprocess
from pathlib import Path

import torch
import torchvision

from .checkpoint import DAMAGED, NAME, PREVIOUS, read
from .files import using
from .process import rank
from .settings import STAGES, flag, flat, unflat

MAY_CHANGE = {"stages", "device", "workers", "data_dir", "rivals"}
MAY_CHANGE |= {f"{stage}_epochs" for stage in STAGES}


def open_folder(out, settings):
    """The checkpoint that the run's folder holds to go on from, and a warning, each None if none.

    A damaged checkpoint is put aside. Raises ValueError if the folder holds a run that cannot go on
    with these settings, or somebody else's files.
    """
    if not (out / NAME).exists() and not (out / PREVIOUS).exists():
        return None, None
    state, warning = read(out)
    with using(out):
        before = unflat(state["settings"])
        theirs = flat(before)
        differences = [
            f"{flag(name)} {theirs[name]!r} there, {value!r} here"
            for name, value in flat(settings).items()
            if theirs[name] != value and name not in MAY_CHANGE
        ]
    if differences:
        given = f"{out} holds a run with other settings ({'; '.join(differences)})"
        raise ValueError(f"{given}; use them, or another --out")
    check_position(state, before.plan, settings.plan, out)
    if warning and rank() == 0 and (out / NAME).exists():
        os.replace(out / NAME, out / DAMAGED)  # or the next save would keep it as the previous one
    return state, warning


def check_position(state, before, now, out):
    """ValueError if the settings change a stage that is over, or leave one in its middle.

    before, now: the plans of the checkpoint's settings and of those to go on with.
    """
    with using(out):
        reached = state["stage"]
        rows = [row["stage"] for row in state["metrics"]]
        past = list(STAGES)[: list(STAGES).index(reached)]
        begun = {name: rows.count(name) for name in past}
        begun[reached] = state["epoch"] + (state["step"] > 0)
    for name, count in begun.items():
        epochs = now[name].epochs if name in now else count
        if epochs < count or (name in past and epochs > count):
            given = f"{out} has trained {count} epochs of {name}"
            raise ValueError(f"{given}; --{name}-epochs {epochs} needs another --out")
    if reached not in now and reached in before and state["epoch"] < before[reached].epochs:
        at = f"epoch {state['epoch'] + 1} of {before[reached].epochs}"
        raise ValueError(f"{out} stopped in {reached}, {at}; name this stage in --stages, too")


def versions():
    """The versions of the code and of what it runs on, as one line."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    packages = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    return f"commit {found or 'none'}, {packages}"
