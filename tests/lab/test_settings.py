"""The settings: flags with help texts, ranges that are kept, and presets that can be built."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min.lab.checkpoint import build
from blockdrop_min.lab.settings import PRESETS, Settings, Stage, flag, make_parser, parse

NAMES = [f.name for f in fields(Settings)]
MEAN_STD = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def help_text():
    return " ".join(make_parser().format_help().split())


def refusal(capsys, *arguments):
    """The one line on stderr with which a command line is refused with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


# ----------------------------------------------------------------------------------------- by hand
def test_no_flags_give_the_preset_demo_in_a_folder_of_its_name():
    settings, out, changed = parse([])
    assert settings == Settings()
    assert str(out) == "runs/demo"
    assert changed == {}


def test_a_flag_overrides_the_preset_and_is_listed_as_a_change():
    flags = ["--preset", "smoke", "--alpha", "0.7", "--out", "here", "--no-policy-half-size"]
    settings, out, changed = parse(flags)
    changes = {"alpha": 0.7, "policy_half_size": False}
    assert settings == Settings(preset="smoke", **(PRESETS["smoke"] | changes))
    assert str(out) == "here"
    assert changed == changes


def test_a_flag_that_repeats_the_preset_is_no_change():
    assert parse(["--alpha", str(Settings().alpha)])[2] == {}


def test_changes_are_those_of_the_preset_that_is_named():
    assert parse(["--preset=smoke", "--depth=8"])[2] == {}
    assert parse(["--preset=smoke", f"--depth={Settings().depth}"])[2] == {"depth": 20}


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("learned", None),
        ("first:2", [1, 1, 0]),
        ("distribute:3", [1, 1, 1]),
        ("random:3", [1, 1, 1]),
        ("011", [0, 1, 1]),
    ],
)
def test_policies_by_hand(text, policy):
    u = Settings(depth=8, policy=text).fixed_policy((1, 1, 1))
    assert (u if u is None else u.tolist()) == policy


def test_the_plan_by_hand():
    settings = Settings(pretrain_epochs=3, curriculum_batch=70, finetune_lr=0.25)
    assert settings.plan == [
        Stage("pretrain", 3, 64, 0.05),
        Stage("curriculum", 5, 70, 2e-3),
        Stage("finetune", 5, 64, 0.25),
    ]


def test_stages_that_are_not_named_are_not_in_the_plan():
    assert [stage.name for stage in Settings(stages="pretrain, finetune").plan] == [
        "pretrain",
        "finetune",
    ]


@pytest.mark.parametrize("name", ["pretrain", "curriculum", "finetune"])
def test_a_stage_without_epochs_is_not_in_the_plan(name):
    plan = Settings(**{f"{name}_epochs": 0}).plan
    assert name not in [stage.name for stage in plan]
    assert len(plan) == 2


def test_a_fixed_policy_has_no_curriculum():
    plan = Settings(policy="first:2", curriculum_epochs=4).plan
    assert [stage.name for stage in plan] == ["pretrain", "finetune"]


def test_percent_signs_in_help_texts_survive(monkeypatch):
    text = "x 0.1 at 80 % (%s)"
    metadata = dict(fields(Settings)[0].metadata, help=text)
    option = next(f for f in fields(Settings) if f.name == "seed")
    monkeypatch.setattr(option, "metadata", metadata)
    assert text in help_text()


# -------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_flag_with_a_help_text(name):
    text = next(f.metadata["help"] for f in fields(Settings) if f.name == name)
    assert len(text) >= 8
    assert f"--{flag(name)}" in help_text()
    assert name == "preset" or " ".join(text.split()) in help_text()


OTHERS = {  # a value that is not the default, where half of it or 3 more will not do
    "alpha": 0.9,
    "data": "folder",
    "data_dir": "there",
    "depth": 18,
    "device": "cpu",
    "family": "imagenet",
    "image_size": 64,
    "policy": "first:2",
    "policy_start": "weights.pt",
    "preset": "smoke",
    "resnet": "weights.pt",
    "schedule": "step",
    "stages": "pretrain",
}
TOGETHER = {"family": ["--depth", "18"], "depth": ["--family", "imagenet"]}


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_sets_the_setting_of_its_name(name):
    default = getattr(Settings(), name)
    if isinstance(default, bool):
        value = not default
        given = [f"--{'no-' if default else ''}{flag(name)}"]
    else:
        if name in OTHERS:
            value = OTHERS[name]
        elif isinstance(default, float):
            value = default / 2 or 0.375
        else:
            value = default + 3
        given = [f"--{flag(name)}", str(value)]
    given += TOGETHER.get(name, [])
    if name in TOGETHER:
        given += ["--policy-width", "8"]
    assert getattr(parse(given)[0], name) == value


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_can_be_built(preset):
    settings, _, _ = parse(["--preset", preset])
    with torch.device("meta"):
        model = build(settings, 10, *MEAN_STD)
    assert model.resnet.num_blocks == model.policy.num_blocks


@pytest.mark.parametrize(
    ("preset", "data", "num_blocks"),
    [
        ("cifar10-resnet32", "cifar10", 15),
        ("cifar10-resnet110", "cifar10", 54),
        ("cifar100-resnet32", "cifar100", 15),
        ("cifar100-resnet110", "cifar100", 54),
        ("imagenet-resnet101", "imagenet", 33),
        ("demo", "shapes", None),
        ("smoke", "shapes", None),
    ],
)
def test_presets_are_what_their_names_say(preset, data, num_blocks):
    settings = parse(["--preset", preset])[0]
    with torch.device("meta"):
        model = build(settings, 10, *MEAN_STD)
    assert settings.data == data
    assert num_blocks in (None, model.resnet.num_blocks)


SHARED_RECIPE = {
    "alpha": 0.8,
    "fade_by": 0,
    "classify": 0,
    "full_fraction": 0,
    "free_by": 0,
    "curriculum_batch": 2048,
    "curriculum_lr": 1e-3,
    "curriculum_beta": 0.1,
    "finetune_lr": 1e-4,
    "finetune_beta": 0,
    "settle_by": 0,
    "warm_epochs": 0,
}
CIFAR_RECIPE = SHARED_RECIPE | {
    "policy_width": 16,
    "policy_half_size": False,
    "drop": 0,
    "schedule": "step",
    "curriculum_epochs": 5000,
    "curriculum_gamma": 1,
    "finetune_batch": 256,
    "finetune_epochs": 2000,
    "finetune_gamma": 10,
}
IMAGENET_RECIPE = SHARED_RECIPE | {
    "policy_width": 64,
    "policy_half_size": True,
    "image_size": 0,
    "curriculum_epochs": 45,
    "finetune_batch": 320,
    "finetune_epochs": 10,
    "finetune_gamma": 5,
}


@pytest.mark.parametrize("preset", ["cifar10-resnet32-paper", "cifar10-resnet110-paper"])
@pytest.mark.parametrize(("name", "value"), CIFAR_RECIPE.items())
def test_the_recipe_of_the_paper_and_its_authors_on_cifar(preset, name, value):
    assert getattr(parse(["--preset", preset])[0], name) == value


@pytest.mark.parametrize(("name", "value"), IMAGENET_RECIPE.items())
def test_the_recipe_of_the_paper_and_its_authors_on_imagenet(name, value):
    assert getattr(parse(["--preset", "imagenet-resnet101"])[0], name) == value


@given(st.integers(0, 99), st.integers(1, 9))
def test_a_random_policy_depends_on_the_seed_alone(seed, keep):
    settings = Settings(depth=20, policy=f"random:{keep}", seed=seed)
    one = settings.fixed_policy((3, 3, 3))
    other = settings.fixed_policy((3, 3, 3))
    assert torch.equal(one, other)
    assert one.sum() == keep


def test_random_policies_of_different_seeds_differ():
    found = set()
    for seed in range(20):
        settings = Settings(policy="random:4", seed=seed)
        found.add(tuple(settings.fixed_policy((3, 3, 3)).tolist()))
    assert len(found) > 10


# What --depth and the like say must arrive in the networks: sizes are counted, not rebuilt.
def built(**changes):
    with torch.device("meta"):
        return build(Settings(**changes), 7, *MEAN_STD)


def test_the_depth_is_that_of_the_resnet():
    convolutions = [m for m in built(depth=26).resnet.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 26  # and the linear layer


def test_the_family_is_that_of_both_networks():
    model = built(family="imagenet", depth=18)
    assert model.resnet.conv1.kernel_size == (7, 7)
    assert model.policy.features.conv1.kernel_size == (7, 7)


def test_the_policy_networks_width_is_that_of_its_first_convolution():
    assert built(policy_width=5).policy.features.conv1.out_channels == 5


@pytest.mark.parametrize("half", [True, False])
def test_the_policy_network_looks_at_images_of_the_size_that_is_set(half):
    model = build(Settings(depth=8, policy_half_size=half), 7, *MEAN_STD).eval()
    seen = []
    model.policy.features.conv1.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[-1]))
    model.policy(torch.zeros(2, 3, 20, 20))
    model.policy.classify(torch.zeros(2, 3, 20, 20))  # what the warm start trains
    assert seen == [10 if half else 20] * 2


def test_both_networks_have_the_classes_of_the_data():
    model = built()
    assert model.resnet.fc.out_features == 7
    assert model.policy.classify(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 7)


# ------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("preset", "nosuch", "demo"),
        ("data", "mnist", "shapes"),
        ("family", "vgg", "imagenet"),
        ("schedule", "none", "cosine"),
        ("depth", "33", "33"),
        ("depth", "2", "depth is 2"),
        ("depth", "-4", "-4"),
        ("depth", "18", "18"),
        ("depth", "8.0", "8.0"),
        ("depth", "600002", "between 8 and"),
        ("alpha", "0.5", "(0.5, 1]"),
        ("alpha", "1.01", "1.01"),
        ("alpha", "nan", "nan"),
        ("curriculum-beta", "-0.1", "at least 0"),
        ("curriculum-gamma", "-1", "at least 0"),
        ("curriculum-gamma", "inf", "at least 0"),
        ("finetune-gamma", "-1", "at least 0"),
        ("finetune-gamma", "nan", "nan"),
        ("curriculum-lr", "nan", "at least 0"),
        ("drop", "1.5", "between 0 and 1"),
        ("full-fraction", "-0.1", "between 0 and 1"),
        ("free-by", "2", "between 0 and 1"),
        ("settle-by", "-1", "between 0 and 1"),
        ("policy", "first:0", "1 to 9"),
        ("policy", "first:99", "1 to 9"),
        ("policy", "last:3", "first:K"),
        ("policy", "first", "first:K"),
        ("policy", "first:two", "first:K"),
        ("policy", "0101", "9 digits"),
        ("policy", "", "learned"),
        ("policy", "012101010", "9 digits"),
        ("stages", "finetune,pretrain", "in this order"),
        ("stages", "pretrain,sleep", "pretrain,curriculum,finetune"),
        ("stages", "", "pretrain,curriculum,finetune"),
        ("stages", "pretrain,pretrain", "in this order"),
        ("pretrain-epochs", "-1", "at least 0"),
        ("finetune-batch", "1", "at least 2"),
        ("policy-width", "0", "between 1 and 512"),
        ("val-images", "0", "at least 1"),
        ("seed", "-1", "between 0 and"),
        ("seed", str(10**20), "between 0 and"),
        ("seed", "x", "invalid int"),
        ("image-size", "5000", "between 0 and 4096"),
        ("image-size", "7", "at least 8"),
        ("warm-epochs", "5", "less than"),
        ("out", "", "name a folder"),
        ("nosuch", "1", "--nosuch"),
        ("alph", "0.9", "--alph"),
    ],
)
def test_a_bad_value_is_refused_in_a_line_that_names_it_and_what_is_allowed(
    capsys, flag, value, said
):
    line = refusal(capsys, "--depth", "20", f"--{flag}", value)
    assert flag in line
    assert said in line


@pytest.mark.parametrize("name", [name for name in NAMES if type(getattr(Settings(), name)) is int])
def test_a_whole_number_is_no_fraction_and_no_boolean(name):
    for value in (2.0, True, "2", None):
        with pytest.raises(ValueError, match=f"--{flag(name)} is "):
            Settings(**{name: value})


def test_the_policy_must_fit_the_depth(capsys):
    assert parse(["--depth", "32", "--policy", "first:15"])[0].policy == "first:15"
    assert "1 to 9" in refusal(capsys, "--depth", "20", "--policy", "first:15")


@pytest.mark.parametrize("width", [1, 2, 7])
def test_policy_networks_that_would_crash_on_imagenet_are_refused(capsys, width):
    flags = ["--family=imagenet", "--depth=18", f"--policy-width={width}"]
    assert "at least 8" in refusal(capsys, *flags)


@pytest.mark.parametrize(("family", "depth", "width"), [("imagenet", 18, 8), ("cifar", 8, 1)])
def test_the_narrowest_policy_networks(family, depth, width):
    assert Settings(family=family, depth=depth, policy_width=width).policy_width == width


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("drop", 0.0, 1.0), ("free_by", 0.0, 1.0), ("curriculum_beta", 0.0, 1e9)],
)
def test_the_limits_of_a_range_belong_to_it(name, low, high):
    assert getattr(Settings(**{name: low}), name) == low
    assert getattr(Settings(**{name: high}), name) == high


def test_settings_without_an_epoch_to_run_are_refused(capsys):
    assert "epoch to run" in refusal(capsys, "--stages", "finetune", "--finetune-epochs", "0")


def test_a_full_network_is_a_policy_too():
    assert Settings(depth=20, policy="first:9").fixed_policy((3, 3, 3)).tolist() == [1] * 9
