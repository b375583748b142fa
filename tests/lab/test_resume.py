"""Going on where a run stopped: which settings may, and what a folder holds."""

from dataclasses import asdict, fields

import pytest
from runs import contents, state_of

from blockdrop_min.lab.checkpoint import DAMAGED, NAME, PREVIOUS, save
from blockdrop_min.lab.resume import MAY_CHANGE, open_folder, versions
from blockdrop_min.lab.settings import STAGES, Settings

ROW = {
    "epochs": 2,
    "seconds": 1.0,
    "free": 0,
    "loss": 1.0,
    "train_accuracy": 0.5,
    "R": None,
    "A": None,
    "accuracy": 0.5,
    "blocks_mean": 3.0,
    "blocks_std": 0.0,
    "distinct_policies": 1,
}
EPOCHS = {"pretrain": 2, "curriculum": 2, "finetune": 1}  # of the preset `smoke`

ROW = dict.fromkeys(("epochs", "free", "distinct_policies"), 1) | dict.fromkeys(
    ("seconds", "loss", "train_accuracy", "R", "A", "accuracy", "blocks_mean", "blocks_std"), 0.5
)


def put(folder, stage, epoch, step=0, trained=STAGES, **changes):
    """Saves the checkpoint of a run of `smoke` that stands there. Returns its settings as a dict.

    trained: the stages before it that the run went through.
    """
    state, _ = state_of(**changes)
    names = [name for name in STAGES[: STAGES.index(stage)] if name in trained]
    done = [(name, i) for name in names for i in range(EPOCHS[name])]
    done += [(stage, i) for i in range(epoch)]
    state["metrics"] = [ROW | {"stage": name, "epoch": i} for name, i in done]
    state["sums"] = {"loss": 1.0, "images": 1.0, "correct": 1.0} if step else {}
    save(folder, state | {"stage": stage, "epoch": epoch, "step": step})
    return state["settings"]


def go_on(folder, settings, **changes):
    """Opens the folder with the settings of its run, some changed. Returns the state."""
    return open_folder(folder, Settings(**(settings | changes)))[0]


# ----------------------------------------------------------------------------------- what is there
def test_an_empty_folder_has_nothing_to_go_on_from(tmp_path):
    assert open_folder(tmp_path, Settings()) == (None, None)


def test_a_run_goes_on_with_its_own_settings(tmp_path):
    settings = put(tmp_path, "curriculum", 1, 2)
    state, warning = open_folder(tmp_path, Settings(**settings))
    assert (state["stage"], state["epoch"], state["step"]) == ("curriculum", 1, 2)
    assert warning is None


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_taken(tmp_path):
    settings = put(tmp_path, "pretrain", 1)
    put(tmp_path, "pretrain", 2)
    (tmp_path / NAME).write_bytes(b"damaged")
    state, warning = open_folder(tmp_path, Settings(**settings))
    assert state["epoch"] == 1
    assert NAME in warning
    assert (tmp_path / DAMAGED).read_bytes() == b"damaged"
    assert not (tmp_path / NAME).exists()


def test_the_checkpoint_before_is_enough(tmp_path):
    settings = put(tmp_path, "pretrain", 1)
    (tmp_path / NAME).rename(tmp_path / PREVIOUS)
    state, warning = open_folder(tmp_path, Settings(**settings))
    assert state["epoch"] == 1
    assert PREVIOUS in warning


# ---------------------------------------------------------------------------------- which settings
OTHERS = {
    "alpha": {"alpha": 0.9},
    "data": {"data": "cifar10"},
    "depth": {"depth": 14},
    "family": {"family": "imagenet", "depth": 18, "policy_width": 8},
    "image_size": {"image_size": 16},
    "policy": {"policy": "first:1"},
    "policy_start": {"policy_start": "weights.pt"},
    "preset": {"preset": "demo"},
    "resnet": {"resnet": "weights.pt"},
    "schedule": {"schedule": "step"},
    "warm_epochs": {"warm_epochs": 0},
}


# Written out once more: the program's own list would grow with a mistake in it.
WHERE_AND_HOW_LONG = {"device", "workers", "data_dir", "epochs_per_checkpoint", "stages"}
WHERE_AND_HOW_LONG |= {"pretrain_epochs", "curriculum_epochs", "finetune_epochs"}
DECIDED = [f.name for f in fields(Settings) if f.name not in WHERE_AND_HOW_LONG]


@pytest.mark.parametrize("name", DECIDED)
def test_a_setting_that_changes_what_is_learned_is_refused(tmp_path, name):
    settings = put(tmp_path, "finetune", 1)
    before = contents(tmp_path)
    value = settings[name]
    if isinstance(value, bool):
        other = {name: not value}
    else:
        other = {name: value + 1 if isinstance(value, int) else 0.375}
    changes = OTHERS.get(name, other)
    flag = name.replace("_", "-")
    with pytest.raises(ValueError, match=f"{flag} {value!r} there, {changes[name]} here"):
        go_on(tmp_path, settings, **changes)
    assert contents(tmp_path) == before


CHANGES = [
    {"device": "cuda:1"},
    {"workers": 0},
    {"data_dir": "elsewhere"},
    {"epochs_per_checkpoint": 7},
    {"finetune_epochs": 9},
    {"stages": "finetune"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_says_where_and_how_long_may_change(tmp_path, changes):
    settings = put(tmp_path, "finetune", 1)
    assert go_on(tmp_path, settings, **changes)["stage"] == "finetune"


def test_the_settings_that_may_change_are_settings():
    assert MAY_CHANGE - asdict(Settings()).keys() == set()


# ------------------------------------------------------------------------------- stages and epochs
@pytest.mark.parametrize("name", ["pretrain", "curriculum"])
@pytest.mark.parametrize("more", [-1, 1])
def test_another_number_of_epochs_of_a_stage_that_is_over_is_refused(tmp_path, name, more):
    settings = put(tmp_path, "finetune", 1, warm_epochs=0)
    epochs = EPOCHS[name] + more
    with pytest.raises(ValueError, match=f"--{name}-epochs {epochs} needs another --out"):
        go_on(tmp_path, settings, **{f"{name}_epochs": epochs})


def test_a_stage_that_comes_before_what_was_trained_cannot_be_added(tmp_path):
    settings = put(tmp_path, "finetune", 1, trained=["pretrain"], stages="pretrain,finetune")
    with pytest.raises(ValueError, match=r"curriculum is over .* after 0 epochs"):
        go_on(tmp_path, settings, stages=",".join(STAGES))


def test_stages_that_were_called_one_by_one_may_be_named_together(tmp_path):
    settings = put(tmp_path, "curriculum", 2, stages="curriculum")
    assert go_on(tmp_path, settings, stages=",".join(STAGES))["epoch"] == 2


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 0), (1, 2)])
@pytest.mark.parametrize("changes", [{"stages": "curriculum"}, {"pretrain_epochs": 0}], ids=str)
def test_a_stage_is_not_left_in_its_middle(tmp_path, epoch, step, changes):
    settings = put(tmp_path, "pretrain", epoch, step)
    with pytest.raises(ValueError, match=f"stopped in pretrain, epoch {epoch + 1} of 2"):
        go_on(tmp_path, settings, **changes)


def test_a_stage_that_is_over_may_be_left(tmp_path):
    settings = put(tmp_path, "pretrain", 2)
    assert go_on(tmp_path, settings, stages="curriculum")["epoch"] == 2


@pytest.mark.parametrize("step", [0, 2])
def test_a_stage_is_not_shortened_below_what_was_trained(tmp_path, step):
    settings = put(tmp_path, "pretrain", 2 - (step > 0), step)
    with pytest.raises(ValueError, match="has trained 2 epochs of pretrain"):
        go_on(tmp_path, settings, pretrain_epochs=1)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_a_stage_ends_after_the_epochs_that_are_asked_for_now(tmp_path, epochs):
    settings = put(tmp_path, "pretrain", 1)
    assert go_on(tmp_path, settings, pretrain_epochs=epochs)["epoch"] == 1


# ---------------------------------------------------------------------------------------- versions
def test_the_versions_are_one_line():
    assert "\n" not in versions()
    for name in ("commit ", "torch ", "torchvision "):
        assert name in versions()


def test_versions_need_no_git(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr("subprocess.run", missing)
    assert "commit none" in versions()
