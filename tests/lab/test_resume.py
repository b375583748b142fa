"""Going on where a run stopped: which settings may, and what a folder holds."""

import errno

import pytest
from disks import fail
from runs import ROW, contents, state_of
from values import others_with

from blockdrop_min.lab.checkpoint import DAMAGED, NAME, save
from blockdrop_min.lab.files import FORMAT, write_safely
from blockdrop_min.lab.resume import open_folder, versions
from blockdrop_min.lab.settings import OPTIONS, STAGES, Settings, unflat

EPOCHS = {"pretrain": 2, "curriculum": 2, "finetune": 1}  # of the preset `smoke`


def put(folder, stage, epoch, step=0, trained=("pretrain", "curriculum"), **changes):
    """Saves the checkpoint of a run of `smoke` that stands there. Returns its settings as a dict.

    trained: the stages that the run went through, if they come before.
    """
    state, _ = state_of(**changes)
    names = [name for name in list(STAGES)[: list(STAGES).index(stage)] if name in trained]
    done = [(name, i) for name in names for i in range(EPOCHS[name])]
    done += [(stage, i) for i in range(epoch)]
    state["metrics"] = [ROW | {"stage": name, "epoch": i} for name, i in done]
    save(folder, state | {"stage": stage, "epoch": epoch, "step": step})
    return state["settings"]


def go_on(folder, settings, **changes):
    """Opens the folder with the settings of its run, some changed. Returns the state."""
    return open_folder(folder, unflat(settings | changes))[0]


# ----------------------------------------------------------------------------------- what is there
def test_a_run_goes_on_from_what_is_there_with_its_own_settings(tmp_path):
    assert open_folder(tmp_path, Settings()) == (None, None)
    settings = put(tmp_path, "curriculum", 1, 2)
    state, warning = open_folder(tmp_path, unflat(settings))
    assert (state["stage"], state["epoch"], state["step"]) == ("curriculum", 1, 2)
    assert warning is None


@pytest.mark.parametrize("damaged", [True, False])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_taken(tmp_path, damaged):
    settings = put(tmp_path, "pretrain", 1)
    put(tmp_path, "pretrain", 2)
    (tmp_path / NAME).unlink()
    if damaged:
        (tmp_path / NAME).write_bytes(b"damaged")
    state, warning = open_folder(tmp_path, unflat(settings))
    assert state["epoch"] == 1
    assert NAME in warning
    assert not (tmp_path / NAME).exists()
    aside = (tmp_path / DAMAGED).read_bytes() if (tmp_path / DAMAGED).exists() else None
    assert aside == (b"damaged" if damaged else None)


# ---------------------------------------------------------------------------------- which settings
# Written out once more: the program's own list would grow with a mistake in it.
WHERE_AND_HOW_LONG = {"device": "cuda:1", "workers": 0, "data_dir": "elsewhere", "rivals": 1}
WHERE_AND_HOW_LONG |= {"stages": "finetune", "finetune_epochs": 9}
OF_STAGES_THAT_ARE_OVER = {"pretrain_epochs", "curriculum_epochs"}
DECIDED = OPTIONS.keys() - WHERE_AND_HOW_LONG.keys() - OF_STAGES_THAT_ARE_OVER


@pytest.mark.parametrize("name", sorted(DECIDED))
def test_a_setting_that_changes_what_is_learned_is_refused(tmp_path, name):
    settings = put(tmp_path, "finetune", 1)
    before = contents(tmp_path)
    changes = others_with(name)
    flag = name.replace("_", "-")
    said = f"{flag} {settings[name]!r} there, {changes[name]!r} here"
    with pytest.raises(ValueError, match=said):
        go_on(tmp_path, settings, **changes)
    assert contents(tmp_path) == before


# ------------------------------------------------------------------------------- stages and epochs
ALLOWED = [  # (where the run stands: stage, epoch, step; what changes)
    ("pretrain", 2, 0, {"stages": "curriculum"}),  # a stage that is over may be left
    ("pretrain", 0, 2, {"pretrain_epochs": 1}),
    ("pretrain", 1, 2, {"pretrain_epochs": 5}),
]
ALLOWED += [("finetune", 1, 0, {name: value}) for name, value in WHERE_AND_HOW_LONG.items()]
OVER = "has trained 2 epochs of {}; --.*-epochs . needs another --out"
REFUSED = [  # and what is said
    ("finetune", 1, 0, {"pretrain_epochs": 3}, OVER.format("pretrain")),
    ("pretrain", 1, 2, {"pretrain_epochs": 1}, OVER.format("pretrain")),
    ("pretrain", 0, 1, {"stages": "curriculum"}, "stopped in pretrain, epoch 1 of 2"),
    ("pretrain", 1, 0, {"pretrain_epochs": 0}, "stopped in pretrain, epoch 2 of 2"),
]


@pytest.mark.parametrize(("stage", "epoch", "step", "changes"), ALLOWED)
def test_what_is_to_come_where_and_how_long_may_change(tmp_path, stage, epoch, step, changes):
    settings = put(tmp_path, stage, epoch, step)
    assert go_on(tmp_path, settings, **changes)["stage"] == stage


@pytest.mark.parametrize(("stage", "epoch", "step", "changes", "said"), REFUSED)
def test_what_was_trained_may_not_change(tmp_path, stage, epoch, step, changes, said):
    settings = put(tmp_path, stage, epoch, step)
    with pytest.raises(ValueError, match=said):
        go_on(tmp_path, settings, **changes)


def test_stages_that_were_called_one_by_one_may_be_named_together(tmp_path):
    settings = put(tmp_path, "curriculum", 2, stages="curriculum")
    assert go_on(tmp_path, settings, stages=",".join(STAGES))["epoch"] == 2


def test_a_stage_that_comes_before_what_was_trained_cannot_be_added(tmp_path):
    settings = put(tmp_path, "finetune", 1, trained=["pretrain"], stages="pretrain,finetune")
    with pytest.raises(ValueError, match="has trained 0 epochs of curriculum"):
        go_on(tmp_path, settings, stages=",".join(STAGES))


# ------------------------------------------------------------------------------- made by others
WRONG = {"metrics": 1, "step": None, "stage": "warm-up", "settings": {"depth": []}}


@pytest.mark.parametrize("name", WRONG)
def test_a_hand_made_position_ends_in_one_line(tmp_path, name):
    state, _ = state_of()
    write_safely(tmp_path / NAME, state | {"format": FORMAT, name: WRONG[name]})
    with pytest.raises(ValueError, match="no whole checkpoint") as refused:
        open_folder(tmp_path, unflat(state["settings"]))
    assert len(str(refused.value)) < 500


# ---------------------------------------------------------------------------------------- versions
def test_the_versions_are_one_line_and_need_no_git(monkeypatch):
    assert "\n" not in versions()
    for name in ("commit ", "torch ", "torchvision "):
        assert name in versions()
    monkeypatch.setattr("subprocess.run", lambda *_, **__: fail(errno.ENOENT)())
    assert "commit none" in versions()
