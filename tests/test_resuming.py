"""Runs that are stopped, killed or damaged go on with the bits of one that never was."""

import errno
import shutil
import signal

import pytest
import torch
from disks import at_step, disk, fail, in_a_process, interrupt, kill, watch_steps
from runs import SHORT, STEPS, contents, differences, folder_flags, old, rows, short_run, write_tree

import train
from blockdrop_min import load
from blockdrop_min.lab import process
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, read
from blockdrop_min.lab.settings import flat, parse


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


def stop_after(count, out, *flags, save_every=-1):
    """Trains so many steps, unless the run ends before, and presses Ctrl-C. Returns the exit code.

    save_every: seconds between checkpoints in an epoch; the default is one after each step.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY", save_every)
        at_step(patch, count, interrupt)
        return short_run(out, *flags)


# ---------------------------------------------------------------------------------------- stopping
def test_ctrl_c_is_one_line_that_says_how_to_go_on(tmp_path, capsys):
    assert stop_after(2, tmp_path) == 130
    said = "train.py: stopped; the same command goes on from the last checkpoint\n"
    assert capsys.readouterr().err == said


def test_a_run_installs_no_handler_of_a_signal(tmp_path, monkeypatch):
    def handlers():
        return [signal.getsignal(number) for number in signal.valid_signals()]

    seen = []
    watch_steps(monkeypatch, lambda *_: seen.append(handlers()))
    before = handlers()
    assert short_run(tmp_path, "--stages=pretrain") == 0
    assert seen == [before] * 6
    assert handlers() == before


def test_a_run_that_goes_on_says_from_where(tmp_path, capsys):
    stop_after(5, tmp_path)
    assert load(tmp_path).resnet.num_blocks == 3
    capsys.readouterr()
    stop_after(1, tmp_path)
    assert "going on: pretrain, epoch 2, step 2" in capsys.readouterr().out


@pytest.mark.parametrize(("later", "saved"), [(599, [(1, 0)]), (601, [(0, 2), (1, 0)])])
def test_after_ten_minutes_a_save_comes_at_the_end_of_a_step(tmp_path, monkeypatch, later, saved):
    now, places = [0.0], []
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    at_step(monkeypatch, 1, lambda: now.append(now.pop() + later))  # in the second step of three
    save = train.save

    def keep(out, state):
        places.append((state["epoch"], state["step"]))
        save(out, state)

    monkeypatch.setattr(train, "save", keep)
    assert short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=1") == 0
    assert places == saved


# ---------------------------------------------------------------------------------------- going on
# Each epoch has three steps, and no end comes behind the last one.
@pytest.mark.parametrize(("save_every", "steps", "ends"), [(-1, 1, STEPS - 1), (600, 4, 5)])
def test_a_run_that_ends_after_any_step_goes_on_with_the_same_bits(
    finished, tmp_path, save_every, steps, ends
):
    def act(end):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "SAVE_EVERY", save_every)
            at_step(patch, steps, end)
            return short_run(tmp_path)

    for i in range(ends):
        end, code = [(interrupt, 130), (kill(signal.SIGKILL), -signal.SIGKILL)][i % 2]
        assert in_a_process(lambda end=end: act(end)) == code
    assert in_a_process(lambda: act(interrupt)) == 0
    assert differences(tmp_path, finished) == []


KINDS = {
    "one stage": "--stages=pretrain --pretrain-epochs=3",
    "several epochs a stage": "--pretrain-epochs=1 --finetune-epochs=3",
    "a fixed policy": "--policy=random:2 --finetune-epochs=2",
    "joint to the end": "--finetune-settle-by=0 --finetune-epochs=2 --finetune-schedule=step",
    "no warm start": "--curriculum-warm-epochs=0 --curriculum-fade-by=0.5",
    "batches of their own": "--pretrain-batch=40 --curriculum-batch=28 --finetune-batch=20",
    "another seed": "--seed=7 --finetune-full-fraction=0",
    "mixed precision": "--amp=on --pretrain-epochs=1",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_goes_on_with_the_same_bits(tmp_path, kind):
    flags = KINDS[kind].split()
    assert short_run(tmp_path / "whole", *flags) == 0
    while (code := stop_after(4, tmp_path / "stopped", *flags)) == 130:
        pass
    assert code == 0
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []


def test_a_run_that_started_from_weights_goes_on_when_they_are_gone(tmp_path, finished):
    path = shutil.copy(finished / "resnet.pt", tmp_path / "weights.pt")
    flags = ["--stages=curriculum,finetune", f"--resnet={path}"]
    assert short_run(tmp_path / "whole", *flags) == 0
    assert stop_after(2, tmp_path / "stopped", *flags) == 130
    path.unlink()
    assert short_run(tmp_path / "stopped", *flags) == 0
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []


@pytest.mark.parametrize("began", [True, False])
def test_a_run_goes_on_in_the_arithmetic_it_began_with(tmp_path, monkeypatch, capsys, began):
    seen = []
    watch_steps(monkeypatch, lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    monkeypatch.setattr(process, "has_bfloat16", lambda device: began)
    assert stop_after(4, tmp_path, "--amp=auto") == 130
    monkeypatch.setattr(process, "has_bfloat16", lambda device: not began)
    assert short_run(tmp_path, "--amp=auto") == 0
    assert set(seen) == {began}
    assert capsys.readouterr().out.count(f", {'bfloat16' if began else 'float32'};") == 2
    assert read(tmp_path)[0]["bfloat16"] is began


def test_a_run_of_format_2_goes_on_with_the_same_bits(finished, tmp_path):
    assert stop_after(5, tmp_path) == 130
    torch.save(old(read(tmp_path)[0]), tmp_path / NAME)
    assert stop_after(2, tmp_path) == 130
    assert short_run(tmp_path) == 0
    assert differences(tmp_path, finished) == []


def test_the_same_command_again_trains_nothing_more(run, monkeypatch):
    before = contents(run)
    monkeypatch.setattr(train.Run, "train_one_epoch", None)
    assert short_run(run) == 0
    assert contents(run) == before


def test_stages_one_by_one_give_the_same_bits_as_in_one_go(finished, tmp_path):
    for stages in ("pretrain", "pretrain,curriculum", "all"):
        assert short_run(tmp_path, f"--stages={stages}") == 0
        assert read(tmp_path)[0]["settings"]["stages"] == stages
    assert differences(tmp_path, finished) == []


def test_a_checkpoint_has_the_plan_that_the_run_goes_on_with(run):
    settings = parse([*SHORT, "--finetune-epochs=2"])[0]
    assert short_run(run, "--finetune-epochs=2") == 0
    assert read(run)[0]["settings"] == flat(settings)
    assert [row["epoch"] for row in rows(run) if row["stage"] == "finetune"] == [0, 1]


# --------------------------------------------------------------------------- data that has changed
def test_going_on_with_other_images_keeps_the_first_statistics_and_is_said(tmp_path, capsys):
    tree = write_tree(tmp_path / "images", each=8, size=(16, 16))
    out, flags = tmp_path / "run", folder_flags(tree)
    assert short_run(out, *flags, "--stages=pretrain") == 0
    before = read(out)[0]
    said = "the images have changed"
    assert short_run(out, *flags, "--stages=pretrain") == 0
    assert said not in capsys.readouterr().out
    shutil.rmtree(tree)
    write_tree(tree, each=9, size=(16, 16))
    assert short_run(out, *flags, "--stages=pretrain,curriculum") == 0
    assert said in capsys.readouterr().out
    after = read(out)[0]
    assert (after["mean"], after["std"]) == (before["mean"], before["std"])
    assert load(out).mean.flatten().tolist() == pytest.approx(before["mean"])


# --------------------------------------------------------------------- damage, and disks that fail
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished, run, capsys):
    (run / NAME).write_bytes((run / NAME).read_bytes()[:5000])
    assert stop_after(1, run, save_every=600) == 130
    assert PREVIOUS in capsys.readouterr().out
    assert rows(run) == rows(finished)[:-1]  # before any save
    assert short_run(run) == 0
    assert differences(run, finished) == []


# Of what is done to the disk: put the damaged one aside, begin; rename the new one, then that.
@pytest.mark.parametrize("at", [0, 1, 9, 10])
def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(finished, run, at):
    def killed():
        with disk(at, kill(signal.SIGKILL)):
            return short_run(run)

    (run / NAME).write_bytes(b"damaged")
    assert in_a_process(killed) == -signal.SIGKILL
    assert short_run(run) == 0
    assert differences(run, finished) == []


@pytest.mark.parametrize("at", [0, 6, 8, 9, 13])
def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on(finished, tmp_path, capsys, at):
    with disk(at, fail(errno.ENOSPC)):
        assert short_run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No space left" in error
    assert short_run(tmp_path) == 0
    assert differences(tmp_path, finished) == []


def test_a_row_that_cannot_be_printed_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(train.Log, "row", lambda *_: interrupt())
    assert (short_run(tmp_path), len(read(tmp_path)[0]["metrics"])) == (130, 1)


EXTREMES = [f"{stage}-lr=1000" for stage in ("pretrain", "curriculum", "finetune")]
EXTREMES += [f"curriculum-{name}=1e6" for name in ("gamma", "beta", "classify")]


@pytest.mark.parametrize("extreme", EXTREMES)
def test_whatever_a_run_with_extreme_settings_writes_reads_back(tmp_path, capsys, extreme):
    flags = [f"--{extreme}", "--pretrain-epochs=3"]
    code = stop_after(99, tmp_path, *flags)
    error = capsys.readouterr().err
    assert (code, error.count("\n")) in [(0, 0), (2, 1)]
    assert code == 0 or f"try a smaller --{extreme.partition('-')[0]}-lr" in error
    assert load(tmp_path).resnet.num_blocks == 3
    assert short_run(tmp_path, *flags) == code


@pytest.mark.parametrize(("loss", "code"), [(0.9e12, 130), (1.1e12, 2), (float("nan"), 2)])
def test_a_loss_out_of_this_world_stops_the_run_before_the_optimizer(tmp_path, loss, code):
    def huge(model, x, y, *_):
        total = sum(p.sum() for p in model.resnet.parameters())
        return loss + 0 * total, {"correct": torch.ones(len(x), dtype=torch.bool)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockdrop_min.pretraining.pretrain_step", huge)
        assert stop_after(1, tmp_path) == code
    assert (tmp_path / NAME).exists() == (code == 130)


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path, capsys, monkeypatch):
    def spoil(self, *arguments):
        learn(self, *arguments)
        self.model.resnet.bn1.running_var.fill_(torch.inf)

    learn = train.Run.learn
    monkeypatch.setattr(train.Run, "learn", spoil)
    for save_every in (-1, 600):
        assert stop_after(9, tmp_path, save_every=save_every) == 2
        assert "a weight is not finite" in capsys.readouterr().err
        assert not (tmp_path / NAME).exists()
