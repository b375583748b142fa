"""Builders for the tests of what a run needs: small files, data sets, checkpoints and runs."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import assert_equal, batch, pair, randomise, rng, state  # noqa: F401  (for tests)
from PIL import Image

import train
from blockdrop_min.lab.checkpoint import build, read
from blockdrop_min.lab.data import Data, Split
from blockdrop_min.lab.program import guarded
from blockdrop_min.lab.settings import PRESETS, flat, unflat

# Every stage in a second, the last step under a settled policy: 72 images to learn from, in steps
# of 32, 32 and 8; 24 to validate on and 24 to test on.
SHORT = ["--preset=smoke", "--device=cpu", "--amp=off", "--rivals=0", "--image-size=16"]
SHORT += ["--train-images=96", "--val-images=24", "--pretrain-epochs=2", "--curriculum-epochs=3"]
SHORT += ["--finetune-epochs=1", "--curriculum-warm-epochs=1"]
SHORT += [f"--{stage}-batch=32" for stage in ("pretrain", "curriculum", "finetune")]
IMAGES = 72  # that such a run learns from
EPOCHS = [("pretrain", 0), ("pretrain", 1)]  # (stage, epoch) of such a run
EPOCHS += [("curriculum", 0), ("curriculum", 1), ("curriculum", 2), ("finetune", 0)]
STEPS = 3 * len(EPOCHS)
ROW = {  # of metrics.jsonl
    "stage": "pretrain", "epoch": 0, "epochs": 2, "seconds": 1.5, "free": 0, "loss": 0.5,
    "train_accuracy": 0.25, "R": None, "A": None, "accuracy": 0.5, "blocks_mean": 3.0,
    "blocks_std": 0.0, "distinct_policies": 1,
}  # fmt: skip


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
    """Path, seen from the folder -> bytes, of every file in it."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


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

    changes: of the settings of the preset `smoke`, by their names in `flat`.
    """
    settings = unflat({"preset": "smoke"} | PRESETS["smoke"] | {"policy_width": 2} | changes)
    model = randomise(build(settings, 10, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), seed=3).eval()
    state = {"settings": flat(settings), "classes": tuple("abcdefghij"), "bfloat16": False}
    state |= {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "optimizer": None, "metrics": []}
    state |= {"stage": "finetune", "epoch": 1, "step": 0, "sums": {}, "seconds": 0.0}
    return state | {name: getattr(model, name).state_dict() for name in ("resnet", "policy")}, model


OLD_NAMES = {  # of settings of format 2 -> today's
    "drop": "pretrain_drop",
    "alpha": "curriculum_alpha",
    "full_fraction": "finetune_full_fraction",
    "settle_by": "finetune_settle_by",
}
OLD_NAMES |= {n: f"curriculum_{n}" for n in ("fade_by", "classify", "warm_epochs", "free_by")}
NEW_NAMES = {*OLD_NAMES.values(), "finetune_alpha", "rivals", "width", "amp"}


def old(state, **changes):
    """The dict of a checkpoint as it was in format 2."""
    now = state["settings"]
    settings = {n: v for n, v in now.items() if n not in NEW_NAMES and "schedule" not in n}
    settings |= {before: now[name] for before, name in OLD_NAMES.items()}
    settings |= {"schedule": "cosine", "epochs_per_checkpoint": 1, "amp": False} | changes
    state = {name: value for name, value in state.items() if name != "bfloat16"}
    return state | {"format": "blockdrop_min 2", "settings": settings}


@contextmanager
def refused(match, network=None, kind=ValueError):
    """What is done is refused in one line, and leaves the network as it was."""
    before = network and state(network)
    with pytest.raises(kind, match=match) as raised:
        yield
    assert str(raised.value).isprintable() and len(str(raised.value)) < 400
    if network:
        assert_equal(state(network), before)


# -------------------------------------------------------------------------------------------- runs
def short_run(out, *flags):
    """train.py in this process, without the report at its end: the exit code.

    The last of several equal flags counts.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.report, "main", lambda *_, **__: 0)
        return guarded("train.py", lambda: train.main([*SHORT, "--out", str(out), *flags]))


def rows(folder):
    """The rows of a run's metrics.jsonl, without what depends on the clock."""
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    for row in found:
        del row["seconds"]
    return found


def bits(folder):
    """A run's newest checkpoint, flat: path in its dict -> the bytes of a tensor, or the value.

    Without what depends on the clock, and the optimizer's rates, which each step sets anew.
    """
    found = {}

    def walk(value, path):
        if isinstance(value, dict | list | tuple):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            for key, part in parts:
                walk(part, (*path, key))
        elif path[-1] != "seconds" and "param_groups" not in path:
            is_tensor = isinstance(value, torch.Tensor)
            found[path] = value.numpy().tobytes() if is_tensor else value

    walk(read(folder)[0], ())
    return found


def differences(one, other):
    """Where the newest checkpoints of two runs, or the rows of their metrics, differ."""
    one, other = ((rows(folder), bits(folder)) for folder in (one, other))
    found = sorted(str(path) for path, _ in one[1].items() ^ other[1].items())
    return found + ["metrics.jsonl"] * (one[0] != other[0])


def workers_asked(patch):
    """The list of how many processes are asked to read images, from now on; none is begun."""
    asked = []
    batches = Split.batches

    def noted(self, batch_size, order=None, workers=0, part=slice):
        asked.append(workers)
        return batches(self, batch_size, order, 0, part)

    patch.setattr(Split, "batches", noted)
    return asked


def folder_flags(tree):
    """Flags that make a short run one on the images of a folder from `write_tree`."""
    folder = ["--data=folder", f"--data-dir={tree}", "--image-size=0"]
    return [*folder, "--train-images=0", "--val-images=4"]
