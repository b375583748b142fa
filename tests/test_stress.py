"""Kills runs again and again, also in the middle of writes, and compares what they leave with an undisturbed run's.

`python -m pytest tests/test_stress.py --kills 20 --seeds 5` does it to the preset `smoke`; without --kills, a short run.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import SHORT, contents, differences, disk, fork, kill, rows, short_run, together, wait

import evaluate
import train
from blockdrop_min.lab.checkpoint import NAME, read

SAVE = 7  # operations on the disk of one save; the begin of a run takes 6, the end of pretraining 3


def start(out, flags, die_at=None):
    """A process that runs train.py, and kills itself in place of its operation `die_at` on the disk."""

    def act():
        with disk(die_at, kill(signal.SIGKILL)):
            return train.main([*flags, "--out", str(out)])

    return fork(act)


def disturbed(out, flags, seconds, chance):
    """Runs train.py to its end, killing it by the clock, within some `seconds`, or during a write, as often as it takes.

    Returns the stages in which it was killed.
    """
    stages = []
    while True:
        stages.append(read(out)["stage"] if (out / NAME).exists() else "pretrain")
        if chance.random() < 0.4:
            process = start(out, flags, die_at=chance.randrange(6 + SAVE))
        else:
            process = start(out, flags)
            time.sleep(chance.uniform(0, seconds))
            kill(signal.SIGKILL, process)()
        code = wait(process)
        if code == 0:
            return stages[:-1]
        if code != -signal.SIGKILL:
            raise AssertionError(f"a run ended by itself, with exit code {code}")


def leftovers(folder):
    """What a finished run leaves but its checkpoints, settings and metrics, by name: pictures, results, resnet.pt."""
    if evaluate.main([str(folder), "--json", str(folder / "found.json")]) != 0:
        raise AssertionError("what the run left cannot be evaluated")
    apart = ("checkpoint", "settings", "metrics", ".lock")
    return {path.name: found for path, found in contents(folder).items() if not path.name.startswith(apart)}


def compare(folder, flags, kills, seed):
    """Runs of one seed, killed so many times in all. Returns the stages of the kills; AssertionError if a bit differs."""
    flags, whole, killed, stages = [*flags, "--seed", str(seed)], folder / "whole", folder / "killed", []
    if wait(start(whole, flags)) != 0:
        raise AssertionError("the undisturbed run failed")
    seconds, chance = max(1, *(1.3 * row["seconds"] for row in read(whole)["metrics"])), random.Random(seed)
    while len(stages) < kills:
        shutil.rmtree(killed, ignore_errors=True)
        stages += disturbed(killed, flags, seconds, chance)
        if found := differences(whole, killed):
            raise AssertionError(f"these differ: {found}")
        if rows(whole) != rows(killed) or wait(fork(lambda: leftovers(whole) != leftovers(killed))) != 0:
            raise AssertionError("metrics, pictures, results or resnet.pt differ")
    return stages


def children(number):
    """The processes that a process has started."""
    found = Path(f"/proc/{number}/task/{number}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def torchrun(out, *flags, kill_a_worker=False):
    """train.py under torchrun, on two processes; one of them is killed once, after the first checkpoint, if so asked."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1", "train.py"]
    command = [sys.executable, "-m", *launch, *flags, "--out", str(out)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while kill_a_worker and process.poll() is None:
            if (out / NAME).exists() and len(workers := children(process.pid)) == 2:
                kill(signal.SIGKILL, workers[1])()
                break
            time.sleep(0.01)
        said = process.communicate(timeout=300)[0]
    return process.returncode, said


def test_torchrun_goes_on_with_the_same_bits_after_a_worker_was_killed(tmp_path, pytestconfig):
    if not pytestconfig.getoption("kills"):
        pytest.skip("half a minute; run with --kills. tests/test_process.py has the same without torchrun")
    assert together(2, lambda rank: short_run(tmp_path / "whole")) == [0, 0]
    code, said = torchrun(tmp_path / "killed", *SHORT, kill_a_worker=True)
    assert code == 0 and said.count("going on: ") == 1, said
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


def test_a_run_that_is_killed_again_and_again_leaves_the_same_bits(tmp_path, pytestconfig, capsys):
    kills = pytestconfig.getoption("kills")
    flags = ["--preset=smoke", "--device=cpu"] if kills else SHORT
    for seed in range(pytestconfig.getoption("seeds")):
        stages = compare(tmp_path / str(seed), flags, kills or 2, seed)
        counts = ", ".join(f"{stages.count(stage)} in {stage}" for stage in dict.fromkeys(stages))
        if kills:
            with capsys.disabled():
                print(f"\nseed {seed}: killed {len(stages)} times ({counts}), no bit differs", end="", flush=True)
