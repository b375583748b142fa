"""Every setting, with its default, its range and its help; and the presets.

train.py has a flag for each setting; those of a stage stand in the stage's own file. Without a
flag, `python train.py` trains the preset `demo`.
"""

import argparse
from dataclasses import dataclass, field, fields
from os.path import expanduser
from pathlib import Path

import torch

from ..curriculum import Curriculum
from ..finetuning import Finetuning
from ..masked_resnet import segments_of
from ..pretraining import Pretraining
from ..stage import Stage, option
from .data import DATA, seeded
from .heuristics import static_policy
from .program import Parser

MAX_DEPTH = 1202  # the deepest ResNet that anybody has trained on CIFAR
ARITHMETIC = ("auto", "on", "off")


@dataclass(frozen=True)
class Settings:
    """What a run does. ValueError when made names the setting, the value and what is allowed."""

    preset: str = option("demo", "what the other settings start from")
    stages: str = option("all", "stages to run, in order, such as pretrain,curriculum")
    seed: int = option(0, "seed of all randomness", 0, 2**63 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    amp: str = option("auto", "bfloat16 where the machine is made for it", choices=ARITHMETIC)
    deterministic: bool = option(False, "repeat bit for bit on a GPU, too; slower")
    workers: int = option(4, "processes that read images (imagenet)", 0, 256)
    rivals: int = option(2, "fixed policies to train as long, as rivals; 5: FirstK, ...", 0, 5)
    # Data
    data: str = option("shapes", "data set", choices=DATA)
    data_dir: str = option("data", "folder with the files of cifar10, cifar100, folder or imagenet")
    image_size: int = option(0, "side to resize and crop to; 0: as they are", 0, 4096)
    train_images: int = option(0, "training images, validation included; 0: all", 0, 10**9)
    val_images: int = option(1000, "images cut from the training set for validation", 1, 10**9)
    # Networks
    family: str = option("cifar", "kind of ResNet", choices=("cifar", "imagenet"))
    depth: int = option(20, "layers: cifar 6n + 2; imagenet 18, 34, 50, 101, 152", 8, MAX_DEPTH)
    width: int = option(0, "channels of the ResNet's first segment; 0: the paper's", 0, 512)
    resnet: str = option("", "start the ResNet from this file (a run's resnet.pt, torchvision's)")
    policy_start: str = option("", "start the policy network from torchvision's ResNet-18 file")
    policy_width: int = option(8, "channels of the policy network's first segment", 1, 512)
    policy_half_size: bool = option(True, "show the policy network the image at half its size")
    policy: str = option("learned", "or one for all: first:K, random:K, distribute:K, digits 0/1")
    # The stages, in order
    pretrain: Pretraining = field(default_factory=Pretraining)
    curriculum: Curriculum = field(default_factory=Curriculum)
    finetune: Finetuning = field(default_factory=Finetuning)

    def __post_init__(self):
        values = flat(self)
        for name, (_, f) in OPTIONS.items():
            value, low, high = values[name], f.metadata["low"], f.metadata["high"]
            if low is not None and not low <= value <= high:
                raise ValueError(f"--{flag(name)} is {value}; it must be between {low} and {high}")
        if self.stage_names != [name for name in STAGES if name in self.stage_names]:
            allowed = f"it must be all, or name some of {','.join(STAGES)}, in this order"
            raise ValueError(f"--stages is {self.stages!r}; {allowed}")
        if not self.plan:
            raise ValueError(f"--stages is {self.stages!r}, and none of them has an epoch to run")
        self.fixed_policy(segments_of(self.depth, self.family))
        warm, epochs = self.curriculum.warm_epochs, self.curriculum.epochs
        if 0 < epochs <= warm:
            raise ValueError(f"--curriculum-warm-epochs is {warm}; it must be less than {epochs}")

    @property
    def stage_names(self):
        """The names that --stages lists."""
        if self.stages == "all":
            return list(STAGES)
        return [name.strip() for name in self.stages.split(",") if name.strip()]

    @property
    def plan(self):
        """The stages of this run, name -> `Stage`, in order. A fixed policy has no curriculum."""
        plan = {name: getattr(self, name) for name in self.stage_names}
        if self.policy != "learned":
            plan.pop("curriculum", None)
        return {name: stage for name, stage in plan.items() if stage.epochs}

    def fixed_policy(self, segments):
        """The policy [K] that `--policy` fixes for all images, or None if it is learned."""
        num_blocks = sum(segments)
        if self.policy == "learned":
            return None
        if len(self.policy) == num_blocks and set(self.policy) <= {"0", "1"}:
            return torch.tensor([float(digit) for digit in self.policy])
        kind, _, keep = self.policy.partition(":")
        try:
            return static_policy(kind, int(keep), segments, seeded(self.seed, "policy"))
        except ValueError:
            allowed = f"learned, first:K, random:K, distribute:K with K up to {num_blocks}"
            allowed += f", or {num_blocks} digits 0 or 1"
            raise ValueError(f"--policy is {self.policy!r}; it must be {allowed}") from None


STAGES = {f.name: f.type for f in fields(Settings) if issubclass(f.type, Stage)}


def flat(settings):
    """Every setting by its name, as in flags and files: {"depth": 20, "pretrain_lr": 0.05, ...}."""
    values = dict(vars(settings))
    for stage in STAGES:
        values |= {f"{stage}_{name}": value for name, value in vars(values.pop(stage)).items()}
    return values


def unflat(values):
    """`Settings` from a dict like that of `flat`; what it does not name has its default."""
    values = dict(values)
    for stage, kind in STAGES.items():
        own = [name for name in values if name.startswith(f"{stage}_")]
        values[stage] = kind(**{name.removeprefix(f"{stage}_"): values.pop(name) for name in own})
    return Settings(**values)


# Every setting: its name, as in `flat` -> (its group in --help, its dataclass field).
OPTIONS = {}
GROUPS = {"preset": "the run", "data": "data", "family": "networks"}  # by their first settings
group = None
for f in fields(Settings):
    if f.name in STAGES:
        OPTIONS |= {f"{f.name}_{g.name}": (f"stage {f.name}", g) for g in fields(f.type)}
    else:
        group = GROUPS.get(f.name) or group
        OPTIONS[f.name] = group, f


# What each preset changes of the defaults. `-paper` is the paper's and the authors' own recipe.
PAPER = dict(
    policy_width=16, policy_half_size=False, pretrain_drop=0.0, pretrain_epochs=24,
    pretrain_batch=512, pretrain_lr=0.3, curriculum_batch=2048, curriculum_schedule="constant",
    curriculum_epochs=5000, curriculum_lr=1e-3, curriculum_gamma=1.0, curriculum_beta=0.1,
    curriculum_fade_by=0.0, curriculum_classify=0.0, curriculum_warm_epochs=0,
    curriculum_free_by=0.0, finetune_batch=256, finetune_epochs=2000, finetune_schedule="step",
    finetune_lr=1e-4, finetune_gamma=10.0, finetune_beta=0.0, finetune_full_fraction=0.0,
    finetune_settle_by=0.0, finetune_sgd=False, rivals=0,
)  # fmt: skip
CIFAR10 = dict(
    data="cifar10", val_images=5000, policy_width=16, pretrain_epochs=24, pretrain_batch=128,
    pretrain_lr=0.1, pretrain_drop=0.5, pretrain_drop_from=0.5, curriculum_epochs=8,
    curriculum_batch=256, curriculum_lr=4e-3, curriculum_gamma=5.0, curriculum_warm_epochs=2,
    finetune_epochs=24, finetune_batch=128, finetune_sgd=True, finetune_lr=0.05,
    finetune_gamma=1.0, finetune_beta=0.0, finetune_full_fraction=0.0, finetune_settle_by=0.25,
    rivals=0,
)  # fmt: skip
IMAGENET = PAPER | dict(
    data="imagenet", family="imagenet", depth=101, val_images=10_000, policy_width=64,
    policy_half_size=True, pretrain_epochs=0, curriculum_epochs=45, finetune_batch=320,
    finetune_epochs=10, finetune_gamma=5.0, workers=16,
)  # fmt: skip
DEMO = dict(
    depth=14, width=4, policy_width=1, image_size=24, train_images=8000, val_images=2000,
    pretrain_epochs=40, pretrain_lr=0.1, pretrain_drop=0.3, curriculum_epochs=10,
    curriculum_batch=32, curriculum_lr=8e-3, curriculum_gamma=0.2, finetune_epochs=36,
    finetune_lr=6e-3, finetune_gamma=0.1, finetune_settle_by=0.6,
)  # fmt: skip
SMOKE = dict(
    depth=8, train_images=600, val_images=100, pretrain_epochs=2, curriculum_epochs=2,
    finetune_epochs=1,
)  # fmt: skip
PRESETS = {
    "demo": DEMO,
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


def make_parser():
    """The parser of train.py: a flag for each setting, in groups."""
    parser = Parser(prog="train.py", description="Train BlockDrop.", allow_abbrev=False)
    parser.add_argument("--out", type=expanduser, help="the run's folder; default: runs/<preset>")
    titles = dict.fromkeys(title for title, _ in OPTIONS.values())
    groups = {title: parser.add_argument_group(title) for title in titles}
    demo = flat(unflat(DEMO))
    for name, (title, f) in OPTIONS.items():
        choices = list(PRESETS) if name == "preset" else f.metadata["choices"]
        text = ": ".join([f.metadata["help"], *([", ".join(choices)] if choices else [])])
        text = f"{text} (demo: {demo[name]})".replace("%", "%%")
        how = {"type": expanduser if f.type is str else f.type, "choices": choices}
        how["metavar"] = f.type.__name__.upper()
        if f.type is bool:
            how = {"action": argparse.BooleanOptionalAction}
        groups[title].add_argument(f"--{flag(name)}", help=text, default=argparse.SUPPRESS, **how)
    return parser


def parse(arguments=None):
    """(settings, the run's folder, what differs from the preset). Bad ones exit with code 2."""
    parser = make_parser()
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    preset = given.pop("preset", "demo")
    try:
        standard = {"preset": preset} | PRESETS[preset]
        settings = unflat(standard | given)
    except ValueError as problem:
        parser.error(str(problem))
    standard = flat(unflat(standard))
    changed = {name: value for name, value in given.items() if standard[name] != value}
    return settings, Path(out or f"runs/{preset}"), changed
