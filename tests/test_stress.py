"""Kills runs again and again, also in the middle of writes, and compares what they leave with an undisturbed run's.

`python -m pytest tests/test_stress.py --kills 20 --seeds 5` does it to the preset `smoke`; without --kills, a short run.
"""

import random
import shutil
import signal
import time

from runs import SHORT, contents, differences, disk, fork, kill, rows, wait

import evaluate
import train
from blockdrop_min.checkpoint import NAME, read

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
    evaluate.main([str(folder), "--json", str(folder / "found.json")])
    apart = ("checkpoint", "settings", "metrics", ".lock")
    return {path.name: found for path, found in contents(folder).items() if not path.name.startswith(apart)}


def compare(folder, flags, kills, seed):
    """Runs of one seed, killed so many times in all. Returns the stages of the kills; AssertionError if a bit differs."""
    flags, whole, killed, stages = [*flags, "--seed", str(seed)], folder / "whole", folder / "killed", []
    if wait(start(whole, flags)) != 0:
        raise AssertionError("the undisturbed run failed")
    seconds, chance = 1.3 * max(row["seconds"] for row in read(whole)["metrics"]), random.Random(seed)
    while len(stages) < kills:
        shutil.rmtree(killed, ignore_errors=True)
        stages += disturbed(killed, flags, seconds, chance)
        if found := differences(whole, killed):
            raise AssertionError(f"these differ: {found}")
        if rows(whole) != rows(killed) or wait(fork(lambda: leftovers(whole) != leftovers(killed))) != 0:
            raise AssertionError("metrics, pictures, results or resnet.pt differ")
    return stages


def test_a_run_that_is_killed_again_and_again_leaves_the_same_bits(tmp_path, pytestconfig, capsys):
    kills = pytestconfig.getoption("kills")
    flags = ["--preset=smoke", "--device=cpu"] if kills else SHORT
    for seed in range(pytestconfig.getoption("seeds")):
        stages = compare(tmp_path / str(seed), flags, kills or 4, seed)
        counts = ", ".join(f"{stages.count(stage)} in {stage}" for stage in dict.fromkeys(stages))
        if kills:
            with capsys.disabled():
                print(f"\nseed {seed}: killed {len(stages)} times ({counts}), no bit differs", end="", flush=True)
