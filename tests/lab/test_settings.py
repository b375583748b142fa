"""The settings: a flag with a help text for each, ranges that are kept, and presets that all can be built."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min.lab.checkpoint import build
from blockdrop_min.lab.settings import PRESETS, Settings, flag, make_parser, parse

NAMES = [f.name for f in fields(Settings)]


def help_text():
    return " ".join(make_parser().format_help().split())


def refusal(capsys, *arguments):
    """The one line on stderr with which a command line is refused with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.endswith("\n") and err.count("\n") == 1
    return err


# ------------------------------------------------------------------------------------------------------- by hand
def test_no_flags_give_the_preset_demo_in_a_folder_of_its_name():
    settings, out, changed = parse([])
    assert settings == Settings() and str(out) == "runs/demo" and changed == {}


def test_a_flag_overrides_the_preset_and_is_listed_as_a_change():
    settings, out, changed = parse(["--preset", "smoke", "--alpha", "0.7", "--out", "here", "--no-policy-half"])
    assert settings == Settings(**{**PRESETS["smoke"], "preset": "smoke", "alpha": 0.7, "policy_half": False})
    assert str(out) == "here" and changed == {"alpha": 0.7, "policy_half": False}


def test_a_flag_that_repeats_the_preset_is_no_change():
    assert parse(["--alpha", str(Settings().alpha)])[2] == {}


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("learned", None), ("first:2", [1, 1, 0]), ("distribute:3", [1, 1, 1]), ("random:3", [1, 1, 1]), ("011", [0, 1, 1]),
    ],
)  # fmt: skip
def test_policies_by_hand(text, policy):
    u = Settings(depth=8, policy=text).fixed_policy((1, 1, 1))
    assert (u if u is None else u.tolist()) == policy


def test_a_stage_that_does_not_run_has_no_epochs():
    settings = Settings(stages="pretrain, finetune", pretrain_epochs=3, curriculum_epochs=4, finetune_epochs=5)
    assert [settings.epochs(stage) for stage in ("pretrain", "curriculum", "finetune")] == [3, 0, 5]


def test_a_fixed_policy_has_no_curriculum():
    assert Settings(policy="first:2", curriculum_epochs=4).epochs("curriculum") == 0


def test_percent_signs_and_numbers_in_help_texts_survive():
    assert "x 0.1 at 80 %" in help_text()


# ---------------------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_flag_with_a_help_text(name):
    text = next(f.metadata["help"] for f in fields(Settings) if f.name == name)
    assert len(text) >= 8 and f"--{flag(name)}" in help_text()
    assert name == "preset" or " ".join(text.split()) in help_text()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("preset", "resnet", "policy_start")])
def test_a_flag_sets_the_setting_of_its_name(name):
    value = {
        "data": "folder", "data_dir": "there", "family": "imagenet", "depth": 18, "policy": "first:2", "stages": "pretrain",
        "schedule": "step", "alpha": 0.9, "drop": 0.125, "free_by": 0.125, "full_share": 0.25, "device": "cpu", "image_size": 64,
        "settle_by": 0.25,
    }.get(name)  # fmt: skip
    default = getattr(Settings(), name)
    if isinstance(default, bool):
        given, value = [f"--{'no-' if default else ''}{flag(name)}"], not default
    else:
        value = default + 3 if value is None else value
        given = [f"--{flag(name)}", str(value)] + (["--depth", "18"] if name == "family" else [])
        given += ["--family", "imagenet"] if name == "depth" else []
    assert getattr(parse(given)[0], name) == value


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_can_be_built(preset):
    settings, _, _ = parse(["--preset", preset])
    with torch.device("meta"):
        model = build(settings, 10, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert model.resnet.num_blocks == model.policy.num_blocks


@pytest.mark.parametrize(
    ("preset", "data", "num_blocks"),
    [
        ("cifar10-resnet32", "cifar10", 15), ("cifar10-resnet110", "cifar10", 54), ("cifar100-resnet32", "cifar100", 15),
        ("cifar100-resnet110", "cifar100", 54), ("imagenet-resnet101", "imagenet", 33), ("demo", "shapes", None),
        ("smoke", "shapes", None),
    ],
)  # fmt: skip
def test_presets_are_what_their_names_say(preset, data, num_blocks):
    settings = parse(["--preset", preset])[0]
    with torch.device("meta"):
        model = build(settings, 10, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert settings.data == data and num_blocks in (None, model.resnet.num_blocks)


@pytest.mark.parametrize("preset", ["cifar10-resnet32-paper", "cifar10-resnet110-paper"])
@pytest.mark.parametrize(
    ("name", "value"),
    {
        "alpha": 0.8, "policy_width": 16, "policy_half": False, "drop": 0, "full_share": 0, "free_by": 0, "schedule": "step",
        "curriculum_batch": 2048, "curriculum_epochs": 5000, "curriculum_lr": 1e-3, "curriculum_gamma": 1, "beta": 0.1,
        "finetune_batch": 256, "finetune_epochs": 2000, "finetune_lr": 1e-4, "finetune_gamma": 10, "finetune_beta": 0,
        "settle_by": 0,
    }.items(),
)  # fmt: skip
def test_the_recipe_of_the_paper_and_its_authors_on_cifar(preset, name, value):
    assert getattr(parse(["--preset", preset])[0], name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "alpha": 0.8, "policy_width": 64, "policy_half": True, "full_share": 0, "free_by": 0, "image_size": 0,
        "curriculum_batch": 2048, "curriculum_epochs": 45, "curriculum_lr": 1e-3, "beta": 0.1, "finetune_batch": 320,
        "finetune_epochs": 10, "finetune_lr": 1e-4, "finetune_gamma": 5, "finetune_beta": 0, "settle_by": 0,
    }.items(),
)  # fmt: skip
def test_the_recipe_of_the_paper_and_its_authors_on_imagenet(name, value):
    assert getattr(parse(["--preset", "imagenet-resnet101"])[0], name) == value


@given(st.integers(0, 99), st.integers(1, 9))
def test_a_random_policy_depends_on_the_seed_alone(seed, keep):
    one, other = (Settings(depth=20, policy=f"random:{keep}", seed=seed).fixed_policy((3, 3, 3)) for _ in range(2))
    assert torch.equal(one, other) and one.sum() == keep


def test_random_policies_of_different_seeds_differ():
    found = {tuple(Settings(policy="random:4", seed=seed).fixed_policy((3, 3, 3)).tolist()) for seed in range(20)}
    assert len(found) > 10


# --------------------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("preset", "nosuch", "demo"), ("data", "mnist", "shapes"), ("family", "vgg", "imagenet"), ("schedule", "none", "cosine"),
        ("depth", "33", "33"), ("depth", "2", "depth is 2"), ("depth", "-4", "-4"), ("depth", "18", "18"),
        ("depth", "8.0", "8.0"),
        ("alpha", "0.5", "(0.5, 1]"), ("alpha", "1.01", "1.01"), ("alpha", "nan", "nan"), ("beta", "-0.1", "at least 0"),
        ("curriculum-gamma", "-1", "at least 0"), ("finetune-gamma", "-1", "at least 0"), ("finetune-gamma", "nan", "nan"),
        ("drop", "1.5", "between 0 and 1"), ("full-share", "-0.1", "between 0 and 1"), ("free-by", "2", "between 0 and 1"),
        ("settle-by", "-1", "between 0 and 1"),
        ("policy", "first:0", "between 1 and 9"), ("policy", "first:99", "between 1 and 9"), ("policy", "last:3", "first:K"),
        ("policy", "first", "first:K"), ("policy", "first:two", "first:K"), ("policy", "0101", "9 digits"),
        ("policy", "", "learned"), ("policy", "012101010", "9 digits"), ("stages", "finetune,pretrain", "in this order"),
        ("stages", "pretrain,sleep", "pretrain,curriculum,finetune"), ("stages", "", "pretrain,curriculum,finetune"),
        ("stages", "pretrain,pretrain", "in this order"), ("pretrain-epochs", "-1", "at least 0"),
        ("finetune-batch", "1", "at least 2"), ("policy-width", "0", "between 1 and 512"), ("val-images", "0", "at least 1"),
        ("seed", "-1", "between 0 and"), ("seed", "x", "invalid int"), ("image-size", "5000", "between 0 and 4096"),
        ("image-size", "7", "at least 8"), ("curriculum-gamma", "inf", "at least 0"), ("warm-epochs", "5", "less than"),
        ("nosuch", "1", "--nosuch"), ("alph", "0.9", "--alph"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_in_one_line_that_names_it_and_what_is_allowed(capsys, flag, value, said):
    line = refusal(capsys, "--depth", "20", f"--{flag}", value)
    assert flag in line and said in line


def test_the_policy_must_fit_the_depth(capsys):
    assert parse(["--depth", "32", "--policy", "first:15"])[0].policy == "first:15"
    assert "between 1 and 9" in refusal(capsys, "--depth", "20", "--policy", "first:15")


@pytest.mark.parametrize(("name", "low", "high"), [("drop", 0.0, 1.0), ("free_by", 0.0, 1.0), ("beta", 0.0, 1e9)])
def test_the_limits_of_a_range_belong_to_it(name, low, high):
    assert getattr(Settings(**{name: low}), name) == low
    assert getattr(Settings(**{name: high}), name) == high


def test_settings_without_an_epoch_to_run_are_refused(capsys):
    assert "epoch to run" in refusal(capsys, "--stages", "finetune", "--finetune-epochs", "0")


def test_a_full_network_is_a_policy_too():
    assert Settings(depth=20, policy="first:9").fixed_policy((3, 3, 3)).tolist() == [1] * 9
