"""Other values of settings, for the tests of what each of them changes."""

from blockdrop_min.lab.settings import STAGES, Settings, flat

STANDARD = flat(Settings())
OTHERS = {  # where half of the default or 3 more will not do
    "amp": "on",
    "data": "folder",
    "data_dir": "there",
    "depth": 18,
    "device": "cpu",
    "family": "imagenet",
    "policy": "first:2",
    "policy_start": "weights.pt",
    "preset": "cifar10-resnet32",
    "resnet": "weights.pt",
    "rivals": 1,
    "stages": "pretrain",
    "curriculum_warm_epochs": 0,
} | {f"{stage}_schedule": "step" for stage in STAGES}
TOGETHER = ("family", "depth")


def other_value(name):
    """A valid value of a setting that is not its default."""
    default = STANDARD[name]
    if isinstance(default, bool):
        return not default
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(default, float):
        return 0.7 if "alpha" in name else default / 2 or 0.375
    return default + 3


def others_with(name):
    """Such a value, and those that it needs: {name: value}."""
    return {n: other_value(n) for n in (TOGETHER if name in TOGETHER else [name])}
