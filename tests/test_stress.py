"""Kills runs again and again, also in the middle of writes, and compares what they leave.

`python -m pytest tests/test_stress.py --kills 20 --seeds 5` does it to the preset `smoke`; without
--kills, to a short run.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from disks import disk, fork, kill, together, wait
from runs import SHORT, contents, differences, short_run

import train
from blockdrop_min.lab.checkpoint import NAME, read

OPERATIONS = 20  # on the disk: six at the begin of a run, and two saves


def start(out, flags, save_every=600, die_at=None):
    """A process that runs train.py, and kills itself in place of its operation `die_at`."""

    def act():
        with pytest.MonkeyPatch.context() as patch, disk(die_at, kill(signal.SIGKILL)):
            patch.setattr(train, "SAVE_EVERY", save_every)
            return train.main([*flags, "--out", str(out)])

    return fork(act)


def disturbed(out, flags, seconds, chance):
    """Runs train.py to its end, killing it as often as it takes.

    It dies by the clock, within some `seconds`, or during a write, and saves now and then only or
    after each step.
    Returns the stages in which it was killed.
    """
    stages = []
    while True:
        stages.append(read(out)[0]["stage"] if (out / NAME).exists() else "pretrain")
        save_every = chance.choice([-1, 600])
        if chance.random() < 0.4:
            process = start(out, flags, save_every, chance.randrange(OPERATIONS))
        else:
            process = start(out, flags, save_every)
            time.sleep(chance.uniform(0, seconds))
            kill(signal.SIGKILL, process)()
        code = wait(process)
        if code == 0:
            return stages[:-1]
        assert code == -signal.SIGKILL, "a run ended by itself"


def leftovers(folder):
    """What a finished run leaves but its checkpoints, settings and metrics: pictures, resnet.pt."""
    return {p: d for p, d in contents(folder).items() if p.suffix == ".png" or p.stem == "resnet"}


def compare(folder, flags, kills, seed):
    """Runs of one seed, killed so many times in all. AssertionError if a bit differs.

    Returns the stages of the kills.
    """
    flags = [*flags, "--seed", str(seed)]
    whole, killed = folder / "whole", folder / "killed"
    chance = random.Random(seed)
    stages = []
    assert wait(start(whole, flags)) == 0, "the undisturbed run failed"
    seconds = max(1, *(1.3 * row["seconds"] for row in read(whole)[0]["metrics"]))
    while len(stages) < kills:
        shutil.rmtree(killed, ignore_errors=True)
        stages += disturbed(killed, flags, seconds, chance)
        assert differences(whole, killed) == []
        assert leftovers(whole) == leftovers(killed)
    return stages


LAUNCH = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
MEMBER = """
import os, sys, disks, runs, pytest
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    disks.at_step(pytest.MonkeyPatch(), 8, disks.kill(9))
sys.exit(runs.short_run(sys.argv[1]))
"""


def test_torchrun_goes_on_with_the_same_bits_after_a_process_was_killed(tmp_path, pytestconfig):
    if not pytestconfig.getoption("kills"):
        pytest.skip("half a minute; run with --kills. test_process.py does it without torchrun")
    assert together(2, lambda rank: short_run(tmp_path / "whole")) == [0, 0]
    command = [sys.executable, "-m", *LAUNCH, "--no-python", sys.executable, "-c", MEMBER]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([*command, str(tmp_path / "killed")], env=environment).returncode == 0
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


def test_a_run_that_is_killed_again_and_again_leaves_the_same_bits(tmp_path, pytestconfig, capsys):
    kills = pytestconfig.getoption("kills")
    flags = ["--preset=smoke", "--device=cpu"] if kills else SHORT
    for seed in range(pytestconfig.getoption("seeds")):
        stages = compare(tmp_path / str(seed), flags, kills or 2, seed)
        counts = [f"{stages.count(stage)} in {stage}" for stage in dict.fromkeys(stages)]
        if kills:
            with capsys.disabled():
                said = f"seed {seed}: killed {len(stages)} times ({', '.join(counts)})"
                print(f"\n{said}, no bit differs", end="", flush=True)
