"""Builders for the tests of data, stages, checkpoints, reports and programs: small files, data sets, models and runs."""

import hashlib
import json
import os
import socket
import traceback
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers import batch, pair, randomise, rng  # noqa: F401  (builders that tests take from here)
from PIL import Image

from blockdrop_min.lab import checkpoint
from blockdrop_min.lab.checkpoint import build, read
from blockdrop_min.lab.data import Data, Split
from blockdrop_min.lab.settings import PRESETS, Settings

# Every stage in a second, the last step under a settled policy: 72 images to learn from, in steps of 32, 32 and 8; 24 to
# validate on and 24 to test on.
SHORT = [
    "--preset=smoke", "--device=cpu", "--image-size=16", "--train-images=96", "--val-images=24", "--pretrain-batch=32",
    "--curriculum-batch=32", "--finetune-batch=32", "--pretrain-epochs=2", "--curriculum-epochs=3", "--warm-epochs=1",
    "--finetune-epochs=1",
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- files
def solid(value, size=(8, 8)):
    """An image of one colour; `value` in red, its double in green, its triple in blue."""
    return Image.new("RGB", size, tuple(n * value % 256 for n in (1, 2, 3)))


def write_tree(root, parts=("train", "test"), classes=("apple", "bee"), each=6, size=(8, 8), suffix=".png"):
    """root/<part>/<class>/<i>.png, the images of a part each brighter than the one before."""
    for part in parts:
        for c, name in enumerate(classes):
            folder = Path(root) / part / name
            folder.mkdir(parents=True)
            for i in range(each):
                solid(10 * (1 + c * each + i) % 256, size).save(folder / f"{i}{suffix}")
    return Path(root)


def contents(folder):
    """Path -> digest of every file under a folder."""
    return {path: digest(path.read_bytes()) for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def digest(data):
    return hashlib.sha256(data).hexdigest()[:12]


# ----------------------------------------------------------------------------------------------- models and data
def split(count=12, seed=0, classes=5, size=9):
    """A Split of random uint8 images."""
    images = torch.randint(256, (count, 3, size, size), generator=rng(seed), dtype=torch.uint8)
    return Split(images, torch.arange(count) % classes, torch.rand(count, generator=rng(seed + 2)))


def small_data(count=40, classes=5, size=9):
    names = tuple("abcdefghij"[:classes])
    parts = (split(count, seed, classes, size) for seed in (10, 20, 30))
    return Data(*parts, names, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), size, 1)


def state_of(**changes):
    """A checkpoint's dict, as train.py makes it, of a random ResNet-8 with a small policy network; and the model."""
    settings = Settings(**{**PRESETS["smoke"], "preset": "smoke", "policy_width": 2, **changes})
    model = randomise(build(settings, 10, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), seed=3).eval()
    state = {
        "settings": asdict(settings), "classes": tuple("abcdefghij"), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2),
        "stage": "finetune", "epoch": 1, "step": 0, "sums": {}, "optimizer": None, "metrics": [],
        "resnet": model.resnet.state_dict(), "policy": model.policy.state_dict(),
    }  # fmt: skip
    return state, model


# ----------------------------------------------------------------------------------------------------------- runs
def short_run(out, *flags):
    """train.py in this process, without its evaluation: the exit code. The last of several equal flags counts."""
    import train

    before, train.evaluate.main = train.evaluate.main, lambda arguments: 0
    try:
        return train.main([*SHORT, "--out", str(out), *flags])
    finally:
        train.evaluate.main = before


def rows(folder):
    """The rows of a run's metrics.jsonl, without what depends on the clock."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def bits(folder):
    """A run's newest checkpoint without what depends on the clock, as a flat dict: path in the dict -> digest or value."""
    found = {}

    def walk(value, path):
        if isinstance(value, (dict, list, tuple)):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                walk(part, (*path, key))
        elif path[-1] != "seconds":
            found[path] = digest(value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value

    walk(read(folder), ())
    return found


def differences(one, other):
    """Where the newest checkpoints of two runs differ."""
    one, other = bits(one), bits(other)
    return sorted(str(path) for path in one.keys() | other.keys() if one.get(path) != other.get(path))


# --------------------------------------------------------------------------------------- things that go wrong
def fork(act):
    """A process that does act(), whose result is its exit code, and prints nothing. Returns its number."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = act() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def together(count, act):
    """Does act(rank) in so many processes, started as torchrun starts them. Returns their exit codes, or -signals."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def member(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")  # fmt: skip
        return act(rank)

    return [wait(process) for process in [fork(lambda rank=rank: member(rank)) for rank in range(count)]]


def wait(number):
    """The exit code of a process, or -signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def kill(number, process=None):
    """Sends this signal to a process, by default to the one that does it."""
    return lambda: os.kill(process or os.getpid(), number)


def fail(error):
    """Raises the OSError of this number, as a full or a broken disk does."""

    def act():
        raise OSError(error, os.strerror(error))

    return act


@contextmanager
def disk(at=None, act=None):
    """Gives the list of what the checkpoint module does to the disk; does act() in place of operation `at`, mid-write."""
    done, fsync, replace = [], os.fsync, os.replace

    def operation(name, proceed):
        done.append(name)
        return act() if len(done) - 1 == at else proceed()

    class File:
        def __init__(self, *arguments):
            self.file = open(*arguments)  # noqa: SIM115
            self.flush, self.fileno = self.file.flush, self.file.fileno

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            operation("write", lambda: self.file.write(content[len(content) // 2 :]))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "open", File, raising=False)
        patch.setattr(os, "fsync", lambda file: operation("fsync", lambda: fsync(file)))
        patch.setattr(os, "replace", lambda *paths: operation("replace", lambda: replace(*paths)))
        yield done
