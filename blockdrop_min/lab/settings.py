"""Every setting, with its default, its range and its help; and the presets.

The defaults are the preset `demo`. train.py has a flag for each field.
"""

import argparse
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch

from ..masked_resnet import segments_of
from ..policy_network import bound
from .data import DATA, seeded
from .heuristics import static_policy

STAGES = ("pretrain", "curriculum", "finetune")
MAX_DEPTH = 1202  # the deepest ResNet that anybody has trained on CIFAR


class Stage(NamedTuple):
    """A stage of a run: its name, its epochs, the images a step, and its learning rate."""

    name: str
    epochs: int
    batch: int
    lr: float


def option(default, text, low=None, high=None, choices=None):
    """A setting: its default, its help, its range or its choices."""
    limits = {"help": text, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Settings:
    """What a run does. ValueError when made names the setting, the value and what is allowed."""

    preset: str = option("demo", "the preset that the other settings start from")
    # Data
    data: str = option("shapes", "data set", choices=DATA)
    data_dir: str = option("data", "folder with the files of cifar10, cifar100, folder or imagenet")
    image_size: int = option(0, "side to resize and crop to; 0: as they are", 0, 4096)
    train_images: int = option(0, "training images, validation included; 0: all", 0)
    val_images: int = option(1000, "images cut from the training set for validation", 1)
    # Networks
    family: str = option("cifar", "kind of ResNet", choices=("cifar", "imagenet"))
    depth: int = option(20, "layers: cifar 6n + 2; imagenet 18, 34, 50, 101, 152", 8, MAX_DEPTH)
    resnet: str = option("", "start the ResNet from this file (a run's resnet.pt, torchvision's)")
    policy_start: str = option("", "start the policy network from torchvision's ResNet-18 file")
    policy_width: int = option(
        8, "channels of the policy network (paper: 16; imagenet: 64)", 1, 512
    )
    policy_half_size: bool = option(True, "show the policy network the image at half its size")
    policy: str = option("learned", "or one for all: first:K, random:K, distribute:K, digits 0/1")
    # Stage 1
    stages: str = option("pretrain,curriculum,finetune", "stages to run, in order")
    pretrain_epochs: int = option(5, "epochs of pretraining", 0)
    pretrain_batch: int = option(64, "images a step", 2)
    pretrain_lr: float = option(0.05, "peak learning rate (SGD)", 0)
    drop: float = option(0.75, "fraction of the images that drop random blocks; 0: plain", 0, 1)
    # Stage 2
    curriculum_epochs: int = option(5, "epochs of the curriculum, its warm start included", 0)
    curriculum_batch: int = option(64, "images a step", 2)
    curriculum_lr: float = option(2e-3, "learning rate (Adam)", 0)
    curriculum_gamma: float = option(4.0, "penalty of a wrong prediction", 0)
    curriculum_beta: float = option(0.02, "weight of the entropy bonus (authors: 0.1)", 0)
    fade_by: float = option(0.5, "fraction, all in, by which alpha is 1, beta 0; 0: never", 0, 1)
    classify: float = option(0.3, "weight of the warm start's loss after it (paper: 0)", 0)
    alpha: float = option(0.8, "bounding: sample from alpha s + (1 - alpha)(1 - s)")
    warm_epochs: int = option(1, "first epochs, to learn to classify (paper: 0)", 0)
    free_by: float = option(0.5, "fraction after it that frees all blocks; 0: one an epoch", 0, 1)
    # Stage 3
    finetune_epochs: int = option(5, "epochs of finetuning", 0)
    finetune_batch: int = option(64, "images a step", 2)
    finetune_lr: float = option(1e-3, "learning rate (Adam)", 0)
    finetune_gamma: float = option(5.0, "penalty of a wrong prediction", 0)
    finetune_beta: float = option(0.05, "weight of the entropy bonus (authors: 0)", 0)
    full_fraction: float = option(0.125, "of a batch also passes with all blocks (paper: 0)", 0, 1)
    settle_by: float = option(0.5, "fraction after which the policy is settled; 0: never", 0, 1)
    # The run
    schedule: str = option("cosine", "of the learning rate", choices=("cosine", "step"))
    seed: int = option(0, "seed of all randomness", 0, 2**63 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    epochs_per_checkpoint: int = option(1, "save every so many epochs", 1)
    deterministic: bool = option(False, "repeat bit for bit on a GPU, too; slower")
    workers: int = option(4, "processes that read images (imagenet)", 0, 256)
    amp: bool = option(False, "bfloat16 autocast in training")

    def __post_init__(self):
        for f in fields(self):
            check_range(f, getattr(self, f.name))
        bound(0.5, self.alpha)
        named = self.stage_names
        if not named or named != [stage for stage in STAGES if stage in named]:
            allowed = f"it must name some of {','.join(STAGES)}, in this order"
            raise ValueError(f"--stages is {self.stages!r}; {allowed}")
        self.fixed_policy(segments_of(self.depth, self.family))
        if 0 < self.curriculum_epochs <= self.warm_epochs:
            allowed = f"it must be less than --curriculum-epochs, {self.curriculum_epochs}"
            raise ValueError(f"--warm-epochs is {self.warm_epochs}; {allowed}")
        if not self.plan:
            raise ValueError(f"--stages is {self.stages!r}, and none of them has an epoch to run")
        if 0 < self.image_size < 8:
            raise ValueError(f"--image-size is {self.image_size}; it must be 0 or at least 8")
        if self.family == "imagenet" and self.policy_width < 8:
            allowed = "for imagenet it must be at least 8 (oneDNN computes less wrongly)"
            raise ValueError(f"--policy-width is {self.policy_width}; {allowed}")

    @property
    def stage_names(self):
        """The names that --stages lists."""
        return [name.strip() for name in self.stages.split(",") if name.strip()]

    @property
    def plan(self):
        """The stages that this run goes through, in order. A fixed policy has no curriculum."""
        curriculum_epochs = self.curriculum_epochs if self.policy == "learned" else 0
        stages = [
            Stage("pretrain", self.pretrain_epochs, self.pretrain_batch, self.pretrain_lr),
            Stage("curriculum", curriculum_epochs, self.curriculum_batch, self.curriculum_lr),
            Stage("finetune", self.finetune_epochs, self.finetune_batch, self.finetune_lr),
        ]
        return [stage for stage in stages if stage.name in self.stage_names and stage.epochs]

    def fixed_policy(self, segments):
        """The policy [K] that `--policy` fixes for all images, or None if it is learned."""
        num_blocks = sum(segments)
        if self.policy == "learned":
            return None
        if len(self.policy) == num_blocks and set(self.policy) <= {"0", "1"}:
            return torch.tensor([float(digit) for digit in self.policy])
        kind, _, keep = self.policy.partition(":")
        known = kind in ("first", "random", "distribute")
        if not known or not keep.isdecimal() or not 1 <= int(keep) <= num_blocks:
            raise ValueError(
                f"--policy is {self.policy!r}; it must be learned, first:K, random:K or "
                f"distribute:K with K from 1 to {num_blocks}, or {num_blocks} digits 0 or 1"
            )
        return static_policy(kind, int(keep), segments, seeded(self.seed, "policy"))


def check_range(option, value):
    """ValueError unless the value is of the type of a field of `Settings` and in its range."""
    name = f"--{flag(option.name)}"
    allowed_types = (int, float) if option.type is float else (option.type,)
    if not isinstance(value, allowed_types) or (option.type is not bool and value is True):
        raise ValueError(f"{name} is {value!r}; it must be of type {option.type.__name__}")
    choices = option.metadata["choices"]
    if choices and value not in choices:
        raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")
    low = option.metadata["low"]
    high = option.metadata["high"]
    if low is None or (low <= value < math.inf and (high is None or value <= high)):
        return
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    raise ValueError(f"{name} is {value}; it must be {allowed}")


# What each preset changes of the defaults. `-paper` is the paper's and the authors' own recipe.
PAPER = dict(
    policy_width=16, policy_half_size=False, drop=0.0, schedule="step", curriculum_batch=2048,
    curriculum_epochs=5000, curriculum_lr=1e-3, curriculum_gamma=1.0, curriculum_beta=0.1,
    fade_by=0.0, classify=0.0, warm_epochs=0, free_by=0.0, finetune_batch=256, finetune_epochs=2000,
    finetune_lr=1e-4, finetune_gamma=10.0, finetune_beta=0.0, full_fraction=0.0, settle_by=0.0,
)  # fmt: skip
CIFAR10 = dict(  # batches and learning rates for a GPU
    data="cifar10", val_images=5000, policy_width=16, pretrain_epochs=24, pretrain_batch=512,
    pretrain_lr=0.3, curriculum_epochs=10, curriculum_batch=512, curriculum_lr=5e-3,
    curriculum_gamma=5.0, warm_epochs=3, finetune_epochs=12, finetune_batch=512, finetune_lr=2e-3,
    finetune_gamma=5.0, finetune_beta=0.0, full_fraction=0.0, settle_by=0.33,
)  # fmt: skip
IMAGENET = PAPER | dict(
    data="imagenet", family="imagenet", depth=101, val_images=10_000, policy_width=64,
    policy_half_size=True, pretrain_epochs=0, curriculum_epochs=45, finetune_batch=320,
    finetune_epochs=10, finetune_gamma=5.0, workers=16,
)  # fmt: skip
SMOKE = dict(
    depth=8, train_images=600, val_images=100, pretrain_epochs=2, curriculum_epochs=2,
    finetune_epochs=1,
)  # fmt: skip
PRESETS = {
    "demo": {},
    "smoke": SMOKE,
    "cifar10-resnet32": CIFAR10 | {"depth": 32},
    "cifar10-resnet110": CIFAR10 | {"depth": 110},
    "cifar100-resnet32": CIFAR10 | {"depth": 32, "data": "cifar100"},
    "cifar100-resnet110": CIFAR10 | {"depth": 110, "data": "cifar100"},
    "cifar10-resnet32-paper": CIFAR10 | PAPER | {"depth": 32},
    "cifar10-resnet110-paper": CIFAR10 | PAPER | {"depth": 110},
    "imagenet-resnet101": IMAGENET,
}


def flag(name):
    """The name of a setting's flag, without the dashes."""
    return name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """One that answers a bad argument with one line and exit code 2, not with its usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see --help\n")


def make_parser():
    """The parser of train.py, a flag for each setting."""
    parser = Parser(prog="train.py", description="Train BlockDrop.", allow_abbrev=False)
    parser.add_argument("--out", help="the run's folder; default: runs/<preset>")
    for f in fields(Settings):
        text = f.metadata["help"].replace("%", "%%")
        if f.name == "preset":
            text = f"one of {', '.join(PRESETS)}"
        choices = f.metadata["choices"]
        if choices:
            text = f"{text}: {', '.join(choices)}"
        how = {"type": f.type, "metavar": f.type.__name__.upper()}
        if f.type is bool:
            how = {"action": argparse.BooleanOptionalAction}
        text = f"{text} (demo: {f.default})"
        parser.add_argument(f"--{flag(f.name)}", help=text, default=argparse.SUPPRESS, **how)
    return parser


def parse(arguments=None):
    """(settings, the run's folder, what differs from the preset). Bad ones exit with code 2."""
    parser = make_parser()
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    preset = given.pop("preset", "demo")
    if preset not in PRESETS:
        parser.error(f"--preset is {preset!r}; choose from {', '.join(PRESETS)}")
    if out == "":
        parser.error("--out is empty; name a folder")
    try:
        settings = Settings(preset=preset, **(PRESETS[preset] | given))
    except ValueError as problem:
        parser.error(str(problem))
    standard = Settings(preset=preset, **PRESETS[preset])
    changed = {name: value for name, value in given.items() if getattr(standard, name) != value}
    return settings, Path(out or f"runs/{preset}"), changed
