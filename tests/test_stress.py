"""Kills runs again and again, also in the middle of writes, and compares what they leave.

`python -m pytest tests/test_stress.py --kills 20 --seeds 5` does it to the preset `smoke`; without
--kills, to a short run.
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

BEGIN = 6  # operations on the disk of the begin of a run
SAVE = 7  # of one save


def start(out, flags, die_at=None):
    """A process that runs train.py, and kills itself in place of its operation `die_at`."""

    def act():
        with disk(die_at, kill(signal.SIGKILL)):
            return train.main([*flags, "--out", str(out)])

    return fork(act)


def disturbed(out, flags, seconds, chance):
    """Runs train.py to its end, killing it as often as it takes.

    It dies by the clock, within some `seconds`, or during a write.
    Returns the stages in which it was killed.
    """
    stages = []
    while True:
        stages.append(read(out)[0]["stage"] if (out / NAME).exists() else "pretrain")
        if chance.random() < 0.4:
            process = start(out, flags, die_at=chance.randrange(BEGIN + SAVE))
        else:
            process = start(out, flags)
            time.sleep(chance.uniform(0, seconds))
            kill(signal.SIGKILL, process)()
        code = wait(process)
        if code == 0:
            return stages[:-1]
        assert code == -signal.SIGKILL, "a run ended by itself"


def leftovers(folder):
    """What a finished run leaves but its checkpoints, settings and metrics.

    Returns name -> digest of pictures, results and resnet.pt.
    """
    code = evaluate.main([str(folder), "--json", str(folder / "found.json")])
    assert code == 0, "what the run left cannot be evaluated"
    apart = ("checkpoint", "settings", "metrics", ".lock")
    found = contents(folder)
    return {path.name: found[path] for path in found if not path.name.startswith(apart)}


def compare(folder, flags, kills, seed):
    """Runs of one seed, killed so many times in all. AssertionError if a bit differs.

    Returns the stages of the kills.
    """
    flags = [*flags, "--seed", str(seed)]
    whole = folder / "whole"
    killed = folder / "killed"
    chance = random.Random(seed)
    stages = []
    assert wait(start(whole, flags)) == 0, "the undisturbed run failed"
    seconds = max(1, *(1.3 * row["seconds"] for row in read(whole)[0]["metrics"]))
    while len(stages) < kills:
        shutil.rmtree(killed, ignore_errors=True)
        stages += disturbed(killed, flags, seconds, chance)
        assert differences(whole, killed) == []
        assert rows(whole) == rows(killed)
        same = wait(fork(lambda: leftovers(whole) != leftovers(killed)))
        assert same == 0, "pictures, results or resnet.pt differ"
    return stages


def children(number):
    """The processes that a process has started."""
    found = Path(f"/proc/{number}/task/{number}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def torchrun(out, *flags):
    """train.py under torchrun, on two processes; one is killed after the first checkpoint.

    Returns the exit code and what was said.
    """
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    command = [sys.executable, "-m", *launch, "train.py", *flags, "--out", str(out)]
    root = Path(__file__).parents[1]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=root, text=True, **streams) as process:
        while process.poll() is None:
            workers = children(process.pid)
            if (out / NAME).exists() and len(workers) == 2:
                kill(signal.SIGKILL, workers[1])()
                break
            time.sleep(0.01)
        said = process.communicate(timeout=300)[0]
    return process.returncode, said


def test_torchrun_goes_on_with_the_same_bits_after_a_worker_was_killed(tmp_path, pytestconfig):
    if not pytestconfig.getoption("kills"):
        pytest.skip("half a minute; run with --kills. test_process.py does it without torchrun")
    assert together(2, lambda rank: short_run(tmp_path / "whole")) == [0, 0]
    code, said = torchrun(tmp_path / "killed", *SHORT)
    assert code == 0, said
    assert said.count("going on: ") == 1, said
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


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
