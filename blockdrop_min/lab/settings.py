"""Every setting, with its default, its range and its help; and the presets.

The defaults are the preset `demo`. A flag of train.py exists for each field, made from this table.
"""

import argparse
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from ..blockdrop import static_policy
from ..masked_resnet import segments_of
from ..policy_net import bound
from .data import DATA, seeded

STAGES = ("pretrain", "curriculum", "finetune")


def option(default, text, low=None, high=None, choices=None):
    """A setting: its default, its help, its range or its choices."""
    return field(
        default=default, metadata={"help": text, "low": low, "high": high, "choices": choices}
    )


@dataclass(frozen=True)
class Settings:
    """What a run does. Checked when made: ValueError names the setting, the value and what is allowed."""

    preset: str = option("demo", "the preset that the other settings start from")
    # Data
    data: str = option("shapes", "data set", choices=DATA)
    data_dir: str = option("data", "folder with the files of cifar10, cifar100, folder or imagenet")
    image_size: int = option(
        0,
        "side of shapes; images are resized, cropped to it; 0 = 32, as they are (imagenet 224)",
        0,
        4096,
    )
    train_images: int = option(
        0, "training images to use, validation included; 0 = all (shapes: 8,000)", 0
    )
    val_images: int = option(1000, "images cut from the training set for validation", 1)
    # Networks
    family: str = option("cifar", "kind of ResNet", choices=("cifar", "imagenet"))
    depth: int = option(20, "layers of the ResNet (cifar: 6n + 2; imagenet: 18, 34, 50, 101, 152)")
    resnet: str = option(
        "",
        "start the ResNet from this file: a run's resnet.pt, or torchvision-named or the authors' weights",
    )
    policy_start: str = option(
        "", "start the policy network from this torchvision ResNet-18 file (imagenet)"
    )
    policy_width: int = option(
        8, "channels of the policy network's first segment (paper: 16; imagenet: 64)", 1, 512
    )
    policy_half: bool = option(
        True, "show the policy network the image at half its size (paper: only on ImageNet)"
    )
    policy: str = option(
        "learned",
        "learned, or one for all images: first:K, random:K, distribute:K, or K digits 0/1",
    )
    keep_bias: float = option(
        1.0, "initial bias of the policy's logits; above 0 it starts by keeping blocks", -20, 20
    )
    # Stages
    stages: str = option("pretrain,curriculum,finetune", "stages to run, in order")
    pretrain_epochs: int = option(5, "epochs of pretraining", 0)
    pretrain_batch: int = option(64, "images a step in pretraining", 2)
    pretrain_lr: float = option(
        0.05, "peak learning rate of pretraining (SGD, Nesterov momentum 0.9, weight decay 5e-4)", 0
    )
    drop: float = option(
        0.75, "share of the images that drop random blocks in pretraining; 0 = plain", 0, 1
    )
    curriculum_epochs: int = option(5, "epochs of the curriculum, its warm start included", 0)
    warm_epochs: int = option(
        1,
        "epochs at its begin in which the policy network's features learn to classify (paper: 0)",
        0,
    )
    curriculum_batch: int = option(64, "images a step in the curriculum", 2)
    curriculum_lr: float = option(2e-3, "learning rate of the curriculum (Adam)", 0)
    curriculum_gamma: float = option(
        4.0, "penalty of a wrong prediction in the curriculum's reward", 0
    )
    free_by: float = option(
        0.5,
        "share of the curriculum less its warm start to free all blocks; 0 = one an epoch (paper)",
        0,
        1,
    )
    finetune_epochs: int = option(5, "epochs of finetuning, joint until --settle-by", 0)
    finetune_batch: int = option(64, "images a step in finetuning", 2)
    finetune_lr: float = option(1e-3, "learning rate of finetuning (Adam)", 0)
    finetune_gamma: float = option(5.0, "penalty of a wrong prediction in finetuning's reward", 0)
    full_share: float = option(
        0.125,
        "share of a batch that joint finetuning also trains with all blocks on (paper: 0)",
        0,
        1,
    )
    schedule: str = option(
        "cosine",
        "learning rate: cosine to 0 after a warm-up, or step (finetuning: x 0.1 at 80 %; pretraining: cosine)",
        choices=("cosine", "step"),
    )
    # Policy gradient
    alpha: float = option(0.8, "bounding: sample from alpha s + (1 - alpha)(1 - s)")
    beta: float = option(0.1, "weight of the entropy bonus in the curriculum (authors: 0.1)", 0)
    finetune_beta: float = option(0.05, "weight of the entropy bonus in finetuning (authors: 0)", 0)
    settle_by: float = option(
        0.5, "share of finetuning to raise alpha to 1; then only the ResNet learns; 0 = never", 0, 1
    )
    # The run
    seed: int = option(0, "seed of all randomness", 0, 2**63 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    epochs_per_checkpoint: int = option(
        1, "save every so many epochs, and at the end of a stage", 1
    )
    deterministic: bool = option(
        False, "only use operations that repeat bit for bit on a GPU, too; slower"
    )
    workers: int = option(4, "processes that read images (imagenet)", 0, 256)
    profile: bool = option(
        False, "train nothing: take a few steps of each stage and print where their time goes"
    )
    amp: bool = option(False, "bfloat16 autocast in training")

    def __post_init__(self):
        for f in fields(self):
            value, low, high, choices = (
                getattr(self, f.name),
                *(f.metadata[key] for key in ("low", "high", "choices")),
            )
            if choices and value not in choices:
                raise ValueError(f"--{flag(f.name)} is {value!r}; choose from {', '.join(choices)}")
            if low is not None and not (
                low <= value <= (math.inf if high is None else high) and value < math.inf
            ):
                limit = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ValueError(f"--{flag(f.name)} is {value}; it must be {limit}")
        bound(0.5, self.alpha)
        unknown = [stage for stage in self.stage_list if stage not in STAGES]
        if (
            unknown
            or self.stage_list != [stage for stage in STAGES if stage in self.stage_list]
            or not self.stage_list
        ):
            raise ValueError(
                f"--stages is {self.stages!r}; it must name some of {','.join(STAGES)}, in this order"
            )
        self.fixed_policy(segments_of(self.depth, self.family))
        if 0 < self.epochs("curriculum") <= self.warm_epochs:
            raise ValueError(f"--warm-epochs is {self.warm_epochs}; it must be less than --curriculum-epochs, "
                             f"{self.curriculum_epochs}")  # fmt: skip
        if not any(self.epochs(stage) for stage in STAGES):
            raise ValueError(f"--stages is {self.stages!r}, and none of them has an epoch to run")
        if self.image_size and self.image_size < 8:
            raise ValueError(f"--image-size is {self.image_size}; it must be 0 or at least 8")

    @property
    def stage_list(self):
        """The stages to run, as a list."""
        return [stage.strip() for stage in self.stages.split(",") if stage.strip()]

    def epochs(self, stage):
        """Epochs of a stage; none if it is not to run, and no curriculum for a policy that does not learn."""
        runs = stage in self.stage_list and not (stage == "curriculum" and self.policy != "learned")
        return getattr(self, f"{stage}_epochs") if runs else 0

    def fixed_policy(self, segments):
        """The policy [K] that `--policy` fixes for all images, or None if it is learned. ValueError if it says neither."""
        num_blocks, kind = sum(segments), self.policy.partition(":")
        if self.policy == "learned":
            return None
        if len(self.policy) == num_blocks and set(self.policy) <= {"0", "1"}:
            return torch.tensor([float(digit) for digit in self.policy])
        if (
            kind[0] not in ("first", "random", "distribute")
            or not kind[2].isdecimal()
            or not 1 <= int(kind[2]) <= num_blocks
        ):
            raise ValueError(
                f"--policy is {self.policy!r}; it must be learned, first:K, random:K or distribute:K with K blocks to keep "
                f"between 1 and {num_blocks}, or {num_blocks} digits 0 or 1"
            )
        return static_policy(kind[0], int(kind[2]), segments, seeded(self.seed, "policy"))


PAPER = dict(
    policy_width=16, policy_half=False, keep_bias=0.0, drop=0.0, curriculum_batch=2048, curriculum_epochs=5000,
    curriculum_lr=1e-3, curriculum_gamma=1.0, warm_epochs=0, free_by=0.0, finetune_batch=256, finetune_epochs=2000,
    finetune_lr=1e-4, finetune_gamma=10.0, full_share=0.0, schedule="step", beta=0.1, finetune_beta=0.0, settle_by=0.0,
)  # fmt: skip
CIFAR10 = dict(
    data="cifar10", val_images=5000, policy_width=16, pretrain_epochs=30, pretrain_batch=128, pretrain_lr=0.1,
    curriculum_epochs=12, curriculum_gamma=2.0, warm_epochs=3, finetune_epochs=20, finetune_gamma=3.0, finetune_beta=0.0,
    full_share=0.0, settle_by=0.33,
)  # fmt: skip
IMAGENET = PAPER | dict(
    data="imagenet", family="imagenet", depth=101, val_images=10_000, policy_width=64, policy_half=True, pretrain_epochs=0,
    curriculum_epochs=45, finetune_batch=320, finetune_epochs=10, finetune_gamma=5.0, workers=16,
)  # fmt: skip

# What each preset changes of the defaults. `-paper` is the paper's and the authors' own recipe.
PRESETS = {
    "demo": {},
    "smoke": dict(
        depth=8,
        train_images=600,
        val_images=100,
        pretrain_epochs=2,
        curriculum_epochs=2,
        finetune_epochs=1,
    ),
    "cifar10-resnet32": CIFAR10 | dict(depth=32),
    "cifar10-resnet110": CIFAR10 | dict(depth=110),
    "cifar100-resnet32": CIFAR10 | dict(depth=32, data="cifar100"),
    "cifar100-resnet110": CIFAR10 | dict(depth=110, data="cifar100"),
    "cifar10-resnet32-paper": CIFAR10 | PAPER | dict(depth=32),
    "cifar10-resnet110-paper": CIFAR10 | PAPER | dict(depth=110),
    "imagenet-resnet101": IMAGENET,
}


def flag(name):
    """The name of a setting's flag, without the dashes."""
    return name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """One that answers a bad argument with one line and exit code 2, not with its usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def make_parser():
    """The parser of train.py, a flag for each setting."""
    parser = Parser(prog="train.py", description="Train BlockDrop.", allow_abbrev=False)
    parser.add_argument("--out", help="the run's folder; default: runs/<preset>")
    for f in fields(Settings):
        text = (
            f"one of {', '.join(PRESETS)}"
            if f.name == "preset"
            else f.metadata["help"].replace("%", "%%")
        )
        kind = dict(type=type(f.default), metavar=type(f.default).__name__.upper())
        kind = dict(action=argparse.BooleanOptionalAction) if isinstance(f.default, bool) else kind
        parser.add_argument(
            f"--{flag(f.name)}",
            help=f"{text} (demo: {f.default})",
            default=argparse.SUPPRESS,
            **kind,
        )
    return parser


def parse(arguments=None):
    """(settings, output folder, what differs from the preset) of a command line. A bad one exits with code 2."""
    parser = make_parser()
    given = vars(parser.parse_args(arguments))
    out, preset = given.pop("out"), given.pop("preset", "demo")
    if preset not in PRESETS:
        parser.error(f"--preset is {preset!r}; choose from {', '.join(PRESETS)}")
    try:
        settings = Settings(preset=preset, **(PRESETS[preset] | given))
    except ValueError as problem:
        parser.error(str(problem))
    before = Settings(preset=preset, **PRESETS[preset])
    changed = {name: value for name, value in given.items() if getattr(before, name) != value}
    return settings, Path(out or f"runs/{preset}"), changed


def choose_device(name):
    """The device by name; auto is the GPU where there is one."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as problem:
        raise ValueError(
            f"--device is {name!r}, which cannot be used: {str(problem).splitlines()[0]}"
        ) from None
