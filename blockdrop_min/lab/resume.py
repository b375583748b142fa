"""Going on where a run stopped: what its folder holds, and whether these settings may go on."""

import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision

from .checkpoint import DAMAGED, NAME, PREVIOUS, read
from .files import claim
from .process import rank
from .settings import STAGES, Settings, flag

MAY_CHANGE = {
    "stages",
    "pretrain_epochs",
    "curriculum_epochs",
    "finetune_epochs",
    "epochs_per_checkpoint",
    "device",
    "workers",
    "data_dir",
}


def open_folder(out, settings):
    """The checkpoint that the run's folder holds to go on from, and a warning, each None if none.

    A damaged checkpoint is put aside. Raises ValueError if the folder holds a run that cannot go on
    with these settings, or somebody else's files.
    """
    if not (out / NAME).exists() and not (out / PREVIOUS).exists():
        claim(out)
        return None, None
    state, warning = read(out)
    theirs = asdict(Settings(**state["settings"]))
    differences = [
        f"{flag(name)} {theirs[name]!r} there, {value} here"
        for name, value in asdict(settings).items()
        if theirs[name] != value and name not in MAY_CHANGE
    ]
    if differences:
        given = f"{out} holds a run with other settings ({'; '.join(differences)})"
        raise ValueError(f"{given}; use them, or another --out")
    check_position(state, settings, out)
    if warning and rank() == 0 and (out / NAME).exists():
        os.replace(out / NAME, out / DAMAGED)  # or the next save would keep it as the previous one
    return state, warning


def check_position(state, settings, out):
    """ValueError if the settings change a stage that is over, or leave one in its middle."""
    reached = state["stage"]
    rows = [row["stage"] for row in state["metrics"]]
    for stage in settings.plan:
        trained = rows.count(stage.name)
        if STAGES.index(stage.name) < STAGES.index(reached) and stage.epochs != trained:
            given = f"{stage.name} is over in {out}, after {trained} epochs"
            raise ValueError(f"{given}; --{stage.name}-epochs {stage.epochs} needs another --out")
    before = {stage.name: stage.epochs for stage in Settings(**state["settings"]).plan}
    now = {stage.name: stage.epochs for stage in settings.plan}
    begun = state["epoch"] + (state["step"] > 0)
    if reached not in now and state["epoch"] < before.get(reached, 0):
        at = f"epoch {state['epoch'] + 1} of {before[reached]}"
        raise ValueError(f"{out} stopped in {reached}, {at}; name this stage in --stages, too")
    if reached in now and now[reached] < begun:
        given = f"{out} has trained {begun} epochs of {reached}"
        raise ValueError(f"{given}; --{reached}-epochs {now[reached]} is less")


def versions():
    """The versions of the code and of what it runs on, as one line."""
    folder = Path(__file__).parent
    try:
        git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=7"]
        found = subprocess.run(git, capture_output=True, text=True, timeout=10)
        commit = found.stdout.strip() or "none"
    except (OSError, subprocess.TimeoutExpired):
        commit = "none"
    return f"commit {commit}, torch {torch.__version__}, torchvision {torchvision.__version__}"
