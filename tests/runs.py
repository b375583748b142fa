"""Builders for the tests of what a run needs: small files, data sets, checkpoints and runs."""

import hashlib
import json
import os
import socket
import traceback
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers import batch, pair, randomise, rng  # noqa: F401  (builders that tests take from here)
from PIL import Image

from blockdrop_min.lab.checkpoint import build, read
from blockdrop_min.lab.data import Data, Split
from blockdrop_min.lab.log import Log
from blockdrop_min.lab.settings import PRESETS, Settings

# Every stage in a second, the last step under a settled policy: 72 images to learn from, in steps
# of 32, 32 and 8; 24 to validate on and 24 to test on.
SHORT = [
    "--preset=smoke",
    "--device=cpu",
    "--image-size=16",
    "--train-images=96",
    "--val-images=24",
    "--pretrain-batch=32",
    "--curriculum-batch=32",
    "--finetune-batch=32",
    "--pretrain-epochs=2",
    "--curriculum-epochs=3",
    "--warm-epochs=1",
    "--finetune-epochs=1",
]
IMAGES = 72  # that such a run learns from
EPOCHS = [  # (stage, epoch) of such a run
    ("pretrain", 0),
    ("pretrain", 1),
    ("curriculum", 0),
    ("curriculum", 1),
    ("curriculum", 2),
    ("finetune", 0),
]
STEPS = 3 * len(EPOCHS)
STEP_FUNCTIONS = (
    "pretrain_step",
    "warm_start_step",
    "curriculum_step",
    "finetune_step",
    "settled_step",
)


# ------------------------------------------------------------------------------------------- files
def solid(value, size=(8, 8)):
    """An image of one colour; `value` in red, its double in green, its triple in blue."""
    return Image.new("RGB", size, tuple(n * value % 256 for n in (1, 2, 3)))


def write_tree(
    root, parts=("train", "test"), classes=("apple", "bee"), each=6, size=(8, 8), suffix=".png"
):
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
    return {
        path: digest(path.read_bytes())
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def digest(data):
    return hashlib.sha256(data).hexdigest()[:12]


# --------------------------------------------------------------------------------- models and data
def split(count=12, seed=0, classes=5, size=9):
    """A Split of random uint8 images."""
    images = torch.randint(256, (count, 3, size, size), generator=rng(seed), dtype=torch.uint8)
    return Split(images, torch.arange(count) % classes, torch.rand(count, generator=rng(seed + 2)))


def small_data(count=40, classes=5, size=9):
    names = tuple("abcdefghij"[:classes])
    parts = (split(count, seed, classes, size) for seed in (10, 20, 30))
    return Data(*parts, names, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), size, 1)


def same(one, other):
    """Whether two `Result`s are equal, image by image."""
    parts = ("correct", "u", "flops")
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


def state_of(**changes):
    """A checkpoint's dict, as train.py makes it, of a small random model; and the model.

    changes: of the preset `smoke`.
    """
    named = {"preset": "smoke", "policy_width": 2}
    settings = Settings(**(PRESETS["smoke"] | named | changes))
    model = randomise(build(settings, 10, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), seed=3).eval()
    state = {
        "settings": asdict(settings),
        "classes": tuple("abcdefghij"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "stage": "finetune",
        "epoch": 1,
        "step": 0,
        "sums": {},
        "seconds": 0.0,
        "optimizer": None,
        "metrics": [],
        "resnet": model.resnet.state_dict(),
        "policy": model.policy.state_dict(),
    }
    return state, model


# -------------------------------------------------------------------------------------------- runs
def short_run(out, *flags):
    """train.py in this process, without its evaluation: the exit code.

    The last of several equal flags counts.
    """
    import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.evaluate, "main", lambda arguments: 0)
        return train.main([*SHORT, "--out", str(out), *flags])


def rows(folder):
    """The rows of a run's metrics.jsonl, without what depends on the clock."""
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    for row in found:
        del row["seconds"]
    return found


def bits(folder):
    """A run's newest checkpoint, flat.

    Without what depends on the clock, and the optimizer's rates, which each step sets anew.

    Returns path in the checkpoint's dict -> digest of a tensor, or the value.
    """
    found = {}

    def walk(value, path):
        if isinstance(value, dict):
            for key, part in value.items():
                walk(part, (*path, key))
        elif isinstance(value, (list, tuple)):
            for i, part in enumerate(value):
                walk(part, (*path, i))
        elif path[-1] != "seconds" and "param_groups" not in path:
            is_tensor = isinstance(value, torch.Tensor)
            found[path] = digest(value.numpy().tobytes()) if is_tensor else value

    walk(read(folder)[0], ())
    return found


def differences(one, other):
    """Where the newest checkpoints of two runs differ."""
    one = bits(one)
    other = bits(other)
    return sorted(
        str(path) for path in one.keys() | other.keys() if one.get(path) != other.get(path)
    )


def folder_flags(tree):
    """Flags that make a short run one on the images of a folder from `write_tree`."""
    return [
        "--data=folder",
        f"--data-dir={tree}",
        "--image-size=0",
        "--train-images=0",
        "--val-images=4",
    ]


def watch_steps(patch, see):
    """Calls see(name, model, x, y, ...) before each training step from now on."""
    import train

    def watched(name, step):
        def act(*arguments):
            see(name, *arguments)
            return step(*arguments)

        return act

    for name in STEP_FUNCTIONS:
        patch.setattr(train, name, watched(name, getattr(train, name)))


def at_step(patch, count, act):
    """Calls act() when the `count`-th training step from now on has been taken."""
    left = [count]
    step = Log.step

    def counting(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            act()
        step(self, *arguments)

    patch.setattr(Log, "step", counting)


# ---------------------------------------------------------------------------- things that go wrong
def fork(act):
    """A process that does act(), whose result is its exit code, and prints nothing.

    Returns its number.
    """
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
    """Does act(rank) in so many processes, started as torchrun starts them.

    Returns their exit codes, or -signals.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def member(rank):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_RUN_ID="test",
        )
        return act(rank)

    return [wait(process) for process in [fork(lambda r=r: member(r)) for r in range(count)]]


def wait(number):
    """The exit code of a process, or -signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def kill(number, process=None):
    """Sends this signal to a process, by default to the one that does it."""
    return lambda: os.kill(process or os.getpid(), number)
