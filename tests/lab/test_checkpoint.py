"""Checkpoints: what is saved comes back to the bit, whatever cannot be trusted is refused in one line."""

import errno
import json
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from helpers import images, rng
from runs import disk, fail, fork, kill, state_of, wait

from blockdrop_min import FixedPolicy, load
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, read, restore, save, write_safely


def photos(count=5, side=32):
    return torch.randint(256, (count, 3, side, side), generator=rng(0), dtype=torch.uint8)


def refusal(path, action=load):
    with pytest.raises(ValueError) as raised:
        action(path)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message and len(message) < 500
    return message


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(folder, **changes):
    """A folder with a checkpoint whose dict has been changed; None leaves a key out."""
    state = {**state_of()[0], **changes}
    save(folder, {name: value for name, value in state.items() if value is not None})
    return folder


# ----------------------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize("place", ["folder", "file", "string"])
def test_a_loaded_model_computes_the_same_bits(tmp_path, place):
    state, model = state_of()
    save(tmp_path, state)
    loaded = load({"folder": tmp_path, "file": tmp_path / NAME, "string": str(tmp_path)}[place])
    expected = model.to(memory_format=torch.channels_last)(photos())
    for one, other in zip(loaded(photos()), expected, strict=True):
        assert torch.equal(one, other)


def test_a_loaded_model_is_in_eval_mode_and_normalises_by_itself(tmp_path):
    model = load(saved(tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    assert not any(module.training for module in model.modules())
    x = photos()
    assert torch.equal(model(x)[0], model(x.float() / 255)[0])
    expected = (x[:, 1] / 255 - 0.2) / 0.5
    torch.testing.assert_close(model.prepare(x)[:, 1], expected)


@pytest.mark.parametrize("changes", [{"policy": "first:2"}, {"policy": "101"}, {"policy_width": 5}, {"policy_half": False}])
def test_a_model_is_rebuilt_from_its_settings(tmp_path, changes):
    state, model = state_of(**changes)
    save(tmp_path, state)
    loaded = load(tmp_path)
    assert isinstance(loaded.policy, FixedPolicy) == ("policy" in changes)
    assert torch.equal(loaded(photos())[1], model(photos())[1])


def test_optimizer_and_position_come_back(tmp_path):
    moments = {"state": {0: {"exp_avg": torch.arange(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    state = read(saved(tmp_path, optimizer=moments, stage="curriculum", epoch=7, step=9))
    assert (state["stage"], state["epoch"], state["step"]) == ("curriculum", 7, 9)
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], torch.arange(3.0))


# ---------------------------------------------------------------------------------------------------------- laws
def test_the_checkpoint_before_the_newest_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        saved(tmp_path, epoch=epoch)
    assert read(tmp_path)["epoch"] == 3 and read(tmp_path / PREVIOUS)["epoch"] == 2


def test_metrics_hold_each_row_once(tmp_path):
    rows = [{"stage": "pretrain", "epoch": i, "R": None, "loss": i / 3} for i in range(3)]
    for count in (1, 2, 3, 3):
        saved(tmp_path, metrics=rows[:count])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_saving_leaves_no_temporary_file(tmp_path):
    saved(tmp_path), saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {NAME, PREVIOUS, "metrics.jsonl"}


def test_a_file_is_written_safely(tmp_path):
    write_safely(tmp_path / "a", b"new")
    assert files(tmp_path) == {"a": b"new"}


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path):
    with disk() as done:
        write_safely(tmp_path / "a", b"new")
    assert done == ["write", "fsync", "replace"]


SAVE = ["write", "fsync", "replace", "replace", "write", "fsync", "replace"]  # the checkpoint, then metrics.jsonl


def test_saving_takes_these_operations(tmp_path):
    saved(tmp_path)
    with disk() as done:
        saved(tmp_path)
    assert done == SAVE


@pytest.mark.filterwarnings("ignore:.*taking the one before")
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", range(len(SAVE)))
def test_a_disk_that_fails_leaves_a_checkpoint_and_no_other_file(tmp_path, at, error):
    saved(tmp_path, epoch=1), saved(tmp_path, epoch=2)
    before = set(files(tmp_path))
    with disk(at, fail(error)), pytest.raises(OSError, match=os.strerror(error)):
        saved(tmp_path, epoch=3)
    assert read(tmp_path)["epoch"] == (3 if at > 3 else 2) and load(tmp_path)
    assert set(files(tmp_path)) | {NAME} == before | {NAME}


@pytest.mark.filterwarnings("ignore:.*taking the one before")
@pytest.mark.parametrize("at", range(len(SAVE)))
def test_a_kill_during_a_save_leaves_a_checkpoint(tmp_path, at):
    saved(tmp_path, epoch=1), saved(tmp_path, epoch=2)
    with disk(at, kill(signal.SIGKILL)):
        assert wait(fork(lambda: saved(tmp_path, epoch=3))) == -signal.SIGKILL
    assert read(tmp_path)["epoch"] == (3 if at > 3 else 2) and load(tmp_path)


def test_a_disk_that_is_really_full_is_an_error_of_the_system():
    with pytest.raises(OSError, match="No space left"):
        write_safely(Full("/dev/full"), {"weights": torch.zeros(100_000)})


class Full(type(Path())):
    """/dev/full, which is never written: its own temporary file."""

    def with_name(self, name):
        return self

    def unlink(self, missing_ok=False):
        pass


# --------------------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize("length", [0, 1, 1000, -1])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(tmp_path, length):
    saved(tmp_path, epoch=1), saved(tmp_path, epoch=2)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:length])
    state = read(tmp_path)
    assert state["epoch"] == 1
    assert str(tmp_path / NAME) in state["note"] and PREVIOUS in state["note"] and "\n" not in state["note"]
    with pytest.warns(UserWarning, match=f"taking the one before, {PREVIOUS}"):
        load(tmp_path)


def test_a_missing_newest_checkpoint_gives_way_to_the_one_before(tmp_path):
    saved(tmp_path, epoch=1), saved(tmp_path, epoch=2)
    (tmp_path / NAME).unlink()
    assert read(tmp_path)["epoch"] == 1


def test_an_undamaged_checkpoint_comes_without_a_note(tmp_path):
    assert "note" not in read(saved(tmp_path))


@pytest.mark.parametrize("length", [0, 1, 1000, 30_000, -1])
def test_truncated_checkpoints_are_refused(tmp_path, length):
    saved(tmp_path), saved(tmp_path)
    for name in (NAME, PREVIOUS):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:length])
    assert "cannot be read" in refusal(tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path) and "does not exist" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [{"a": torch.ones(2)}, torch.ones(2), [1, 2], {"format": "blockdrop_min 0"}, "text"])
def test_another_programs_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    assert "not a checkpoint of blockdrop_min" in refusal(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [b"not even a pickle", b"PK\x03\x04", b"", b"\x80\x02."])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "text.pt").write_bytes(content)
    assert "cannot be read" in refusal(tmp_path / "text.pt")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path, write):
    write({"format": "blockdrop_min 1", "x": Malicious(str(tmp_path / "harm"))}, tmp_path / "evil.pt")
    assert "cannot be read" in refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {**state_of()[0]["settings"], "depth": 14}}, "resnet: 30 tensors missing"),
        ({"classes": ("a", "b")}, r"fc.weight is [10, 64]; this network needs [2, 64]"),
        ({"policy": state_of(policy_width=3)[0]["policy"]}, "policy: "),
        ({"policy": state_of(policy="101")[0]["policy"]}, "policy: "),
        ({"resnet": {}}, "resnet: "),
        ({"resnet": None}, "resnet"),
        ({"settings": None}, "settings"),
        ({"settings": {"flavour": 3}}, "flavour"),
        ({"settings": {"depth": "20"}}, "damaged"),
        ({"settings": [1]}, "damaged"),
        ({"classes": None}, "classes"),
        ({"classes": 7}, "damaged"),
        ({"mean": None}, "mean"),
        ({"mean": (0.5,)}, "damaged"),
        ({"resnet": [1, 2]}, "damaged"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path, changes, said):
    saved(tmp_path, **changes)
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["resnet", "policy"])
def test_weights_that_are_not_finite_are_refused(tmp_path, part, value):
    state, _ = state_of()
    next(iter(state[part].values())).view(-1)[3] = value
    save(tmp_path, state)
    assert f"{part}: conv1.weight" in refusal(tmp_path).replace("features.", "")


def test_a_loaded_model_takes_other_sizes(tmp_path):
    logits, u = load(saved(tmp_path))(images(1, 40, 24).float())
    assert logits.shape == (1, 10) and u.shape == (1, 3)


def test_restoring_does_not_need_what_only_training_needs(tmp_path):
    state, model = state_of()
    restored = restore({name: state[name] for name in ("settings", "classes", "mean", "std", "resnet", "policy")}, "here")
    assert torch.equal(restored.resnet.fc.weight, model.resnet.fc.weight) and not restored.training
