"""Runs that are stopped, killed or damaged go on with the bits of one that never was."""

import errno
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from disks import disk, fail
from helpers import assert_equal
from runs import (
    SHORT,
    STEPS,
    at_step,
    bits,
    contents,
    differences,
    folder_flags,
    fork,
    kill,
    rows,
    short_run,
    wait,
    write_tree,
)

import train
from blockdrop_min import load, resnet
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, read
from blockdrop_min.lab.settings import parse


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run. Not to be changed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    assert short_run(out) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run's folder."""
    return shutil.copytree(finished, tmp_path / "run")


def stop_after(count, out, *flags):
    """Trains so many steps, unless the run ends before. Returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, count, kill(signal.SIGTERM))
        return short_run(out, *flags)


# ---------------------------------------------------------------------------------------- stopping
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_with_its_exit_code(tmp_path, monkeypatch, number, code):
    at_step(monkeypatch, 2, kill(number))
    assert short_run(tmp_path) == code
    assert read(tmp_path)[0]["step"] == 2


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path, capsys):
    assert stop_after(2, tmp_path) == 143
    last = capsys.readouterr().out.splitlines()[-1]
    assert "to go on" in last
    assert last.endswith(" ".join(["python train.py", *SHORT, "--out", str(tmp_path)]))


@pytest.mark.parametrize(("count", "place"), [(2, "epoch 1, step 2"), (5, "epoch 2, step 2")])
def test_a_run_that_goes_on_says_from_where(tmp_path, capsys, count, place):
    stop_after(count, tmp_path)
    capsys.readouterr()
    stop_after(1, tmp_path)
    assert f"going on: pretrain, {place}" in capsys.readouterr().out


def test_what_was_saved_can_be_loaded(tmp_path):
    stop_after(2, tmp_path)
    assert load(tmp_path).resnet.num_blocks == 3


def test_a_signal_while_the_last_epoch_is_validated_stops_the_run(tmp_path, monkeypatch, capsys):
    finish = train.finish_epoch

    def with_signal(model, data, state, settings, stage):
        if stage.name == "finetune":
            kill(signal.SIGTERM)()
        return finish(model, data, state, settings, stage)

    monkeypatch.setattr(train, "finish_epoch", with_signal)
    assert short_run(tmp_path) == 143
    assert "to go on" in capsys.readouterr().out.splitlines()[-1]
    assert rows(tmp_path)[-1]["stage"] == "finetune"


def test_a_signal_while_an_epoch_is_validated_lets_no_further_step_be_taken(tmp_path, monkeypatch):
    finish = train.finish_epoch

    def with_signal(model, data, state, settings, stage):
        kill(signal.SIGTERM)()
        return finish(model, data, state, settings, stage)

    monkeypatch.setattr(train, "finish_epoch", with_signal)
    assert short_run(tmp_path) == 143
    state = read(tmp_path)[0]
    assert (state["epoch"], state["step"]) == (1, 0)


def test_ctrl_c_while_importing_is_one_line(tmp_path):
    command = [sys.executable, "train.py", "--out", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(train.__file__).parent, **pipes) as running:
        time.sleep(1)  # imports take longer
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
    assert (running.returncode, error) == (130, "train.py: stopped; what was saved stays\n")


# ---------------------------------------------------------------------------------------- going on
def test_a_run_that_is_stopped_after_every_step_gives_the_same_bits(finished, tmp_path):
    for _ in range(STEPS):
        assert stop_after(1, tmp_path) == 143
    assert short_run(tmp_path) == 0
    assert differences(tmp_path, finished) == []
    assert rows(tmp_path) == rows(finished)


def stop_and_go(folder, flags, every):
    """The folders of a run in one go and of the same run stopped after `every` steps."""
    assert short_run(folder / "whole", *flags) == 0
    while (code := stop_after(every, folder / "stopped", *flags)) == 143:
        pass
    assert code == 0
    return folder / "whole", folder / "stopped"


KINDS = {
    "one stage": ["--stages=pretrain", "--pretrain-epochs=3"],
    "several epochs a stage": [
        "--pretrain-epochs=1",
        "--curriculum-epochs=2",
        "--finetune-epochs=3",
    ],
    "a fixed policy": ["--policy=random:2", "--finetune-epochs=2"],
    "joint to the end": ["--settle-by=0", "--finetune-epochs=2", "--schedule=step"],
    "no warm start": ["--warm-epochs=0", "--curriculum-epochs=2", "--fade-by=0.5", "--classify=1"],
    "batches of their own": [
        "--pretrain-batch=40",
        "--curriculum-batch=28",
        "--finetune-batch=20",
    ],
    "rare checkpoints": ["--epochs-per-checkpoint=3"],
    "another seed": ["--seed=7", "--full-fraction=0"],
    "mixed precision": ["--amp", "--pretrain-epochs=1", "--curriculum-epochs=2"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_goes_on_with_the_same_bits(tmp_path, kind):
    whole, stopped = stop_and_go(tmp_path, KINDS[kind], 4)
    assert differences(whole, stopped) == []
    assert rows(whole) == rows(stopped)


def test_a_run_that_started_from_a_resnet_goes_on_with_the_same_bits(tmp_path, finished):
    flags = ["--stages=curriculum,finetune", f"--resnet={finished / 'resnet.pt'}"]
    whole, stopped = stop_and_go(tmp_path, flags, 4)
    assert differences(whole, stopped) == []
    assert rows(whole) == rows(stopped)


def test_a_run_that_started_from_weights_goes_on_when_they_are_gone(tmp_path, finished):
    path = shutil.copy(finished / "resnet.pt", tmp_path / "weights.pt")
    flags = ["--stages=finetune", f"--resnet={path}"]
    assert stop_after(2, tmp_path / "run", *flags) == 143
    path.unlink()
    assert short_run(tmp_path / "run", *flags) == 0


@pytest.mark.parametrize("name", ["resnet", "policy_start"])
def test_what_initialises_a_new_model_touches_no_resumed_one(tmp_path, finished, name):
    torch.save(resnet(8).state_dict(), tmp_path / "weights.pt")
    state, _ = read(finished)
    settings = parse([*SHORT, f"--{name.replace('_', '-')}={tmp_path / 'weights.pt'}"])[0]
    model = train.make_model(replace(settings, seed=9), None, state, tmp_path)
    assert_equal(model.resnet.state_dict(), state["resnet"])
    assert_equal(model.policy.state_dict(), state["policy"])


def test_the_same_command_again_trains_nothing_more(run, monkeypatch):
    kept = (NAME, PREVIOUS, "metrics.jsonl", "resnet.pt")
    files = {path: data for path, data in contents(run).items() if path.name in kept}
    monkeypatch.setattr(train, "train_one_epoch", None)
    assert short_run(run) == 0
    assert {path: contents(run)[path] for path in files} == files


def test_stages_one_by_one_give_the_same_bits_as_in_one_go(finished, tmp_path):
    for stages in ("pretrain", "pretrain,curriculum", "pretrain,curriculum,finetune"):
        assert short_run(tmp_path, f"--stages={stages}") == 0
    assert differences(tmp_path, finished) == []


def test_more_epochs_of_the_last_stage_are_added(run):
    assert short_run(run, "--finetune-epochs=2") == 0
    assert [row["epoch"] for row in rows(run) if row["stage"] == "finetune"] == [0, 1]


def test_checkpoints_can_be_rarer_and_change_nothing(finished, tmp_path, monkeypatch):
    saved = []
    save = train.save

    def counted(out, state):
        saved.append((state["stage"], state["epoch"]))
        save(out, state)

    monkeypatch.setattr(train, "save", counted)
    assert short_run(tmp_path, "--epochs-per-checkpoint=2") == 0
    assert saved == [("pretrain", 2), ("curriculum", 2), ("curriculum", 3), ("finetune", 1)]
    assert rows(tmp_path) == rows(finished)
    assert_equal(load(tmp_path).state_dict(), load(finished).state_dict())


def test_the_moments_of_the_optimizer_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    stop_after(5, tmp_path)
    saved = read(tmp_path)[0]["optimizer"]["state"]
    found = []
    at_step(monkeypatch, 1, kill(signal.SIGTERM))
    make = train.make_optimizer

    def kept(model, stage):
        optimizer = make(model, stage)
        optimizer.register_step_pre_hook(
            lambda *_: found.append(
                [m["momentum_buffer"].clone() for m in optimizer.state.values()]
            )
        )
        return optimizer

    monkeypatch.setattr(train, "make_optimizer", kept)
    short_run(tmp_path)
    assert_equal(found[0], [moments["momentum_buffer"] for moments in saved.values()])


# --------------------------------------------------------------------------- data that has changed
@pytest.fixture
def images_changed(tmp_path):
    """(folder of a run that has pretrained, its flags, the tree): its images are others now."""
    tree = write_tree(tmp_path / "images", each=8, size=(16, 16))
    flags = folder_flags(tree)
    assert short_run(tmp_path / "run", *flags, "--stages=pretrain") == 0
    shutil.rmtree(tree)
    write_tree(tree, each=9, size=(16, 16))
    return tmp_path / "run", flags


def test_going_on_with_other_images_keeps_the_statistics_that_were_trained_under(images_changed):
    out, flags = images_changed
    before = bits(out)
    assert short_run(out, *flags, "--stages=pretrain,curriculum") == 0
    after = bits(out)
    for part in ("mean", "std"):
        for i in range(3):
            assert after[part, i] == before[part, i]
    model = load(out)
    assert model.mean.flatten().tolist() == pytest.approx([before["mean", i] for i in range(3)])


def test_going_on_with_other_images_is_said(images_changed, capsys):
    out, flags = images_changed
    short_run(out, *flags, "--stages=pretrain,curriculum")
    assert "the images have changed" in capsys.readouterr().out


def test_going_on_with_the_same_images_is_not(run, capsys):
    short_run(run)
    assert "the images have changed" not in capsys.readouterr().out


# --------------------------------------------------------------------- damage, and disks that fail
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished, run, capsys):
    (run / NAME).write_bytes((run / NAME).read_bytes()[:5000])
    assert short_run(run) == 0
    assert differences(run, finished) == []
    assert rows(run) == rows(finished)
    assert PREVIOUS in capsys.readouterr().out


# Of what is done to the disk: put the damaged one aside, begin; rename the new one, then that.
@pytest.mark.parametrize("at", [0, 1, 9, 10])
def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(finished, run, at):
    (run / NAME).write_bytes(b"damaged")

    def killed():
        with disk(at, kill(signal.SIGKILL)):
            return short_run(run)

    assert wait(fork(killed)) == -signal.SIGKILL
    assert short_run(run) == 0
    assert differences(run, finished) == []


@pytest.mark.parametrize("at", [0, 6, 8, 9, 13])
def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on(finished, tmp_path, capsys, at):
    with disk(at, fail(errno.ENOSPC)):
        assert short_run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No space left" in error
    assert "run again: python train.py" in error
    assert short_run(tmp_path) == 0
    assert differences(tmp_path, finished) == []


def test_a_row_that_cannot_be_printed_is_saved(tmp_path, monkeypatch):
    def broken(self, row):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Log, "row", broken)
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path)
    assert len(read(tmp_path)[0]["metrics"]) == 1


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["Python", "GPU", "CPU"],
)
def test_memory_that_does_not_suffice_is_one_line_and_the_last_checkpoint_stays(
    tmp_path, monkeypatch, capsys, problem
):
    def too_much(*_):
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(train, "finetune_step", too_much)
        assert short_run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "memory does not suffice" in error
    assert "--finetune-batch" in error
    assert rows(tmp_path)[-1]["stage"] == "curriculum"
    assert short_run(tmp_path) == 0


def test_memory_that_does_not_suffice_for_the_data_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "load_data", lambda *_: torch.empty(2**60))
    assert short_run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "memory does not suffice" in error


def test_other_errors_of_pytorch_are_not_hidden(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(train, "pretrain_step", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        short_run(tmp_path)
