"""Going on where a run stopped: what its folder holds, and whether these settings may go on."""

import os
import subprocess
from pathlib import Path

import torch
import torchvision

from .checkpoint import DAMAGED, NAME, PREVIOUS, read, using
from .files import claim
from .process import rank
from .settings import STAGES, flag, flat, unflat

MAY_CHANGE = {"stages", "device", "workers", "data_dir", "rivals"}
MAY_CHANGE |= {f"{stage}_epochs" for stage in STAGES}


def open_folder(out, settings):
    """The checkpoint that the run's folder holds to go on from, and a warning, each None if none.

    A damaged checkpoint is put aside. Raises ValueError if the folder holds a run that cannot go on
    with these settings, or somebody else's files.
    """
    claim(out)
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
        begun = state["epoch"] + (state["step"] > 0)
        order = list(STAGES)
        past = order[: order.index(reached)]
    for name in past:
        trained = rows.count(name)
        if name in now and now[name].epochs != trained:
            given = f"{name} is over in {out}, after {trained} epochs"
            raise ValueError(f"{given}; --{name}-epochs {now[name].epochs} needs another --out")
    if reached not in now and reached in before and state["epoch"] < before[reached].epochs:
        at = f"epoch {state['epoch'] + 1} of {before[reached].epochs}"
        raise ValueError(f"{out} stopped in {reached}, {at}; name this stage in --stages, too")
    if reached in now and now[reached].epochs < begun:
        given = f"{out} has trained {begun} epochs of {reached}"
        raise ValueError(f"{given}; --{reached}-epochs {now[reached].epochs} is less")


def versions():
    """The versions of the code and of what it runs on, as one line."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10)
        commit = found.stdout.strip() or "none"
    except (OSError, subprocess.TimeoutExpired):
        commit = "none"
    return f"commit {commit}, torch {torch.__version__}, torchvision {torchvision.__version__}"
