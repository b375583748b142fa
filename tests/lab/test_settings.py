"""The settings: flags with help texts, ranges that are kept, and presets that can be built."""

import pytest
import torch
from values import STANDARD, other_value, others_with

from blockdrop_min.curriculum import Curriculum
from blockdrop_min.lab.checkpoint import build
from blockdrop_min.lab.evaluation import digits
from blockdrop_min.lab.settings import OPTIONS, PRESETS, STAGES, Settings, flag, flat, parse, unflat

MEAN_STD = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def help_text(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    return " ".join(capsys.readouterr().out.split())


def refusal(capsys, *arguments):
    """The one line on stderr with which a command line is refused with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n"), err[-1]) == (2, "", 1, "\n")
    return err


def value_of(name, *arguments):
    return flat(parse(arguments)[0])[name]


# ----------------------------------------------------------------------------------------- by hand
def test_no_flags_give_the_preset_demo_in_a_folder_of_its_name():
    settings, out, changed = parse([])
    assert (settings, str(out), changed) == (unflat(PRESETS["demo"]), "runs/demo", {})


def test_a_flag_overrides_the_preset_and_is_listed_as_a_change():
    flags = ["--preset", "smoke", "--curriculum-alpha", "0.7", "--out", "here"]
    settings, out, changed = parse([*flags, "--no-policy-half-size"])
    changes = {"curriculum_alpha": 0.7, "policy_half_size": False}
    assert settings == unflat({"preset": "smoke"} | PRESETS["smoke"] | changes)
    assert (str(out), changed) == ("here", changes)


def test_a_flag_that_repeats_the_preset_is_no_change():
    assert parse([f"--curriculum-alpha={Curriculum().alpha}"])[2] == {}
    assert parse(["--preset=smoke", "--depth=8"])[2] == {}
    assert parse(["--preset=smoke", "--depth=20"])[2] == {"depth": 20}


@pytest.mark.parametrize("name", ["--out", "--data-dir", "--resnet", "--policy-start"])
def test_a_tilde_is_the_home_folder_after_an_equals_sign_too(monkeypatch, name):
    monkeypatch.setenv("HOME", "/home/me")
    settings, out, _ = parse([f"{name}=~/there"])
    values = flat(settings) | {"out": str(out)}
    assert values[name[2:].replace("-", "_")] == "/home/me/there"


@pytest.mark.parametrize(
    ("text", "policy"),
    [("learned", None), ("first:2", [1, 1, 0]), ("distribute:3", [1, 1, 1]), ("011", [0, 1, 1])],
)
def test_policies_by_hand(text, policy):
    u = Settings(depth=8, policy=text).fixed_policy((1, 1, 1))
    assert (u if u is None else u.tolist()) == policy


NO_CURRICULUM = [{"stages": "pretrain, finetune"}, {"curriculum_epochs": 0}, {"policy": "first:2"}]


@pytest.mark.parametrize("changes", NO_CURRICULUM)
def test_the_plan_has_the_stages_that_are_named_and_have_epochs_and_a_policy_to_learn(changes):
    settings = unflat(changes)
    assert settings.plan == {"pretrain": settings.pretrain, "finetune": settings.finetune}
    assert list(Settings().plan) == ["pretrain", "curriculum", "finetune"]


# -------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("name", OPTIONS)
def test_every_setting_has_a_flag_in_a_group_with_a_help_text_and_its_default(capsys, name):
    title, option = OPTIONS[name]
    text = " ".join(option.metadata["help"].split())
    assert len(text) >= 6
    section = help_text(capsys).partition(f" {title}: --")[2]
    assert f"--{flag(name)}"[2:] in section
    assert text in section
    assert f"(demo: {flat(unflat(PRESETS['demo']))[name]})" in section


def test_a_setting_of_0_says_in_its_help_what_0_means():
    for name, (_, option) in OPTIONS.items():
        if STANDARD[name] == 0 and type(STANDARD[name]) is int and name not in ("seed",):
            assert "0: " in option.metadata["help"], name


def test_percent_signs_in_help_texts_survive(monkeypatch, capsys):
    text = "x 0.1 at 80 % (%s)"
    option = OPTIONS["seed"][1]
    monkeypatch.setattr(option, "metadata", dict(option.metadata, help=text))
    assert text in help_text(capsys)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_flag_sets_the_setting_of_its_name(name):
    values = others_with(name)
    given = [f"--{flag(n)}={value}" for n, value in values.items()]
    if isinstance(values[name], bool):
        given = [f"--{'' if values[name] else 'no-'}{flag(name)}"]
    assert value_of(name, *given) == values[name]


def test_settings_are_their_own_names_and_values_flat():
    changes = {name: other_value(name) for name in OPTIONS if name not in ("policy", "stages")}
    settings = unflat(changes)
    assert flat(settings) == STANDARD | changes
    assert unflat(flat(settings)) == settings


# Every preset, written out: what its name, the paper and the authors say.
NONE_OF_OURS = {"fade_by": 0, "classify": 0, "free_by": 0, "warm_epochs": 0, "alpha": 0.8}
PAPER_CURRICULUM = NONE_OF_OURS | {"batch": 2048, "lr": 1e-3, "beta": 0.1, "schedule": "constant"}
PAPER_FINETUNING = {"lr": 1e-4, "beta": 0, "alpha": 0.8, "full_fraction": 0, "settle_by": 0}
PAPER_FINETUNING |= {"schedule": "step"}
CIFAR_PAPER = {
    "networks": {"policy_width": 16, "policy_half_size": False},
    "pretrain": {"drop": 0, "epochs": 24, "batch": 512, "lr": 0.3},
    "curriculum": PAPER_CURRICULUM | {"epochs": 5000, "gamma": 1},
    "finetune": PAPER_FINETUNING | {"epochs": 2000, "batch": 256, "gamma": 10},
}
EXPECTED = {
    "demo": {"networks": {"data": "shapes", "rivals": 2}},
    "smoke": {"networks": {"data": "shapes", "depth": 8, "train_images": 600, "val_images": 100}},
    "cifar10-resnet32-paper": CIFAR_PAPER,
    "cifar10-resnet110-paper": CIFAR_PAPER,
    "imagenet-resnet101": {
        "networks": {"policy_width": 64, "policy_half_size": True, "image_size": 0},
        "pretrain": {"epochs": 0},
        "curriculum": PAPER_CURRICULUM | {"epochs": 45, "gamma": 1},
        "finetune": PAPER_FINETUNING | {"epochs": 10, "batch": 320, "gamma": 5},
    },
}


@pytest.mark.parametrize(("preset", "groups"), EXPECTED.items())
def test_a_preset_is_what_the_paper_and_its_authors_did(preset, groups):
    settings = parse(["--preset", preset])[0]
    for group, expected in groups.items():
        part = settings if group == "networks" else getattr(settings, group)
        assert {name: getattr(part, name) for name in expected} == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_built_as_large_as_its_name_says(preset):
    settings = parse(["--preset", preset])[0]
    with torch.device("meta"):
        model = build(settings, 10, *MEAN_STD)
    blocks = {"resnet32": 15, "resnet110": 54, "resnet101": 33}
    data, _, depth = preset.partition("-")
    expected = blocks.get(depth.removesuffix("-paper"), model.resnet.num_blocks)
    assert model.resnet.num_blocks == model.policy.num_blocks == expected
    assert settings.data == (data if depth else "shapes")


def test_a_random_policy_depends_on_the_seed_alone():
    settings = [Settings(policy="random:4", depth=20, seed=seed) for seed in range(20)]
    one, other = ([digits(s.fixed_policy((3, 3, 3))) for s in settings] for _ in range(2))
    assert one == other and len(set(one)) > 10


# What --depth and the like say must arrive in the networks: sizes are counted, not rebuilt.
def built(device="meta", **changes):
    with torch.device(device):
        return build(unflat(changes), 7, *MEAN_STD)


def test_the_depth_is_that_of_the_resnet():
    convolutions = [m for m in built(depth=26).resnet.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 26  # and the linear layer


def test_the_family_is_that_of_both_networks():
    model = built(family="imagenet", depth=18)
    assert model.resnet.conv1.kernel_size == (7, 7)
    assert model.policy.features.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize(("width", "channels"), [(0, 16), (6, 6)])
def test_the_widths_are_those_of_the_first_convolutions(width, channels):
    model = built(width=width, policy_width=5)
    assert model.resnet.conv1.out_channels == channels
    assert model.policy.features.conv1.out_channels == 5


@pytest.mark.parametrize("half", [True, False])
def test_the_policy_network_looks_at_images_of_the_size_that_is_set(half):
    model = built("cpu", depth=8, policy_half_size=half).eval()
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
REFUSED = {  # a flag -> what is said of it
    "--preset=nosuch": "demo",
    "--data=mnist": "shapes",
    "--family=vgg": "imagenet",
    "--amp=yes": "auto",
    "--pretrain-schedule=none": "cosine",
    "--depth=33": "33",
    "--depth=2": "between 8 and",
    "--depth=8.0": "invalid int",
    "--curriculum-alpha=0.5": "between 0.51 and 1",
    "--finetune-alpha=1.01": "1.01",
    "--curriculum-alpha=nan": "nan",
    "--pretrain-drop=1.5": "between 0 and 1",
    "--policy=first:10": "up to 9",
    "--policy=first:two": "first:K",
    "--policy=0101": "9 digits",
    "--policy=012101010": "9 digits",
    "--stages=finetune,pretrain": "in this order",
    "--stages=pretrain,sleep": "pretrain,curriculum,finetune",
    "--stages=pretrain,pretrain": "in this order",
    "--finetune-batch=1": "between 2 and",
    "--policy-width=0": "between 1 and 512",
    "--val-images=0": "between 1 and",
    "--image-size=5000": "between 0 and 4096",
    "--curriculum-warm-epochs=10": "less than",
    "--curriculum-alph=0.9": "--curriculum-alph",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_bad_value_is_refused_in_a_line_that_names_it_and_what_is_allowed(capsys, given):
    line = refusal(capsys, "--depth=20", given)
    assert given[2:].partition("=")[0] in line
    assert REFUSED[given] in line


@pytest.mark.parametrize(
    "name", [n for n, (_, f) in OPTIONS.items() if f.metadata["low"] is not None]
)
def test_the_limits_of_a_range_belong_to_it_and_nothing_beyond(name):
    option = OPTIONS[name][1]
    low, high = option.metadata["low"], option.metadata["high"]
    assert 0 <= low < high < 2**63
    stage, _, field = name.partition("_")
    for value in {low, high} - {2, 8, 1202}:  # the depths that a range holds are not all there are
        if stage in STAGES:
            made = STAGES[stage](**{field: option.type(value)})
            assert getattr(made, field) == value
    for value in (low - 1, high + 1 + abs(high)):
        with pytest.raises(ValueError, match=f"--{flag(name)} is .* between {low} and {high}"):
            unflat({name: option.type(value)})


def test_settings_without_an_epoch_to_run_are_refused(capsys):
    assert "epoch to run" in refusal(capsys, "--stages", "finetune", "--finetune-epochs", "0")


def test_settings_do_not_change_once_they_are_made():
    with pytest.raises(AttributeError):
        Settings().depth = 8
