"""Bad input: one line on standard error, exit code 2, and nothing is lost."""

import shutil
from urllib.error import URLError

import pytest
import torch
from runs import (
    SHORT,
    contents,
    folder_flags,
    rows,
    short_run,
    write_tree,
)
from torchvision import datasets

import train
from blockdrop_min import resnet
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, read, save


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


def refused(capsys, before, call, *arguments):
    """The one line on stderr with which train.py ends with exit code 2.

    before: a folder whose files must stay as they were.
    """
    files = contents(before)
    capsys.readouterr()
    try:
        code = call(*arguments)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("train.py: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    after = contents(before)
    assert {path: after.get(path) for path in files} == files
    return error


# ------------------------------------------------------------------------------- flags and folders
@pytest.mark.parametrize(
    "flags",
    [
        ["--preset=nosuch"],
        ["--alpha=0.5"],
        ["--depth=33"],
        ["--policy=first:0"],
        ["--nosuch=1"],
        ["--drop=nan"],
        [f"--seed={10**20}"],
        ["--family=imagenet", "--depth=18", "--policy-width=7"],
    ],
    ids=" ".join,
)
def test_a_bad_flag_makes_no_folder(capsys, tmp_path, flags):
    refused(capsys, tmp_path, train.main, [*flags, "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_name_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--out" in refused(capsys, tmp_path, train.main, [*SHORT, "--out", ""])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--curriculum-beta=77"], "curriculum-beta 0.02 there, 77.0 here"),
        (["--seed=3"], "seed 0 there, 3 here"),
        (["--depth=14"], "depth 8 there, 14 here"),
        (["--image-size=8"], "image-size 16 there, 8 here"),
        (["--pretrain-epochs=3"], "pretrain is over"),
        (["--curriculum-epochs=2"], "curriculum is over"),
    ],
)
def test_a_folder_with_a_run_of_other_settings_is_refused(capsys, run, flags, said):
    assert said in refused(capsys, run, short_run, run, *flags)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_to_is_named(capsys, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(capsys, tmp_path, short_run, tmp_path / place)


@pytest.mark.parametrize("settings", [None, [1], {"depth": 8}, {"depth": "8", "preset": []}])
def test_a_checkpoint_whose_settings_are_damaged_is_refused(capsys, run, settings):
    state, _ = read(run)
    for _ in range(2):  # the newest checkpoint and the one before
        save(run, state | {"settings": settings})
    assert str(run) in refused(capsys, run, short_run, run)


def test_a_checkpoint_whose_optimizer_is_another_stages_is_refused(capsys, run):
    state, _ = read(run)
    for _ in range(2):
        save(run, state | {"stage": "pretrain", "epoch": 1, "metrics": state["metrics"][:1]})
    assert "its optimizer is not that of its stage" in refused(capsys, run, short_run, run)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_folder_whose_checkpoints_are_damaged_is_refused(capsys, run, content):
    for name in (NAME, PREVIOUS):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[:9000] if content is None else content)
    assert str(run) in refused(capsys, run, short_run, run)


@pytest.mark.parametrize(
    "device", ["nosuch", "cuda:99", "meta", "hpu", "mkldnn", "vulkan", "cpu:x"]
)
def test_a_device_that_cannot_train_is_refused(capsys, run, device):
    assert device in refused(capsys, run, short_run, run, f"--device={device}")


# ---------------------------------------------------------------------------------------- the data
def test_a_missing_data_folder_is_named(capsys, tmp_path):
    flags = folder_flags(tmp_path / "nowhere")
    assert "nowhere" in refused(capsys, tmp_path, short_run, tmp_path / "run", *flags)


@pytest.mark.parametrize(
    ("flags", "least"),
    [
        (["--image-size=9"], 10),
        (["--family=imagenet", "--depth=18"], 66),
        (["--family=imagenet", "--depth=18", "--no-policy-half-size"], 33),
    ],
)
def test_images_that_end_in_a_single_pixel_are_refused(capsys, tmp_path, flags, least):
    said = refused(capsys, tmp_path, short_run, tmp_path / "run", *flags)
    assert f"{least} or more (--image-size)" in said


def test_the_smallest_images_are_trained_on(tmp_path):
    flags = ["--image-size=10", "--pretrain-epochs=1", "--curriculum-epochs=2"]
    assert short_run(tmp_path, *flags) == 0
    assert len(rows(tmp_path)) == 4


def test_without_a_policy_network_images_may_be_smaller(tmp_path):
    flags = ["--image-size=8", "--pretrain-epochs=1", "--policy=first:2"]
    assert short_run(tmp_path, *flags) == 0
    assert len(rows(tmp_path)) == 2


def test_a_corrupt_image_is_named(capsys, tmp_path):
    tree = write_tree(tmp_path / "images")
    (tree / "train" / "bee" / "bad.png").write_bytes(b"\x89PNG not really")
    said = refused(capsys, tree, short_run, tmp_path / "run", *folder_flags(tree))
    assert "bad.png" in said


def test_a_data_set_without_a_network_is_named(capsys, tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "__init__", offline)
    flags = ["--data=cifar10", "--train-images=0", "--image-size=0", f"--data-dir={tmp_path}"]
    said = refused(capsys, tmp_path, short_run, tmp_path / "run", *flags)
    assert "put cifar-10-python.tar.gz there" in said


@pytest.mark.parametrize("classes", [("apple", "bee", "cow"), ("apple",), ("apple", "cow")])
def test_data_whose_classes_are_not_those_of_the_checkpoint_is_refused(capsys, tmp_path, classes):
    tree = write_tree(tmp_path / "images", size=(16, 16))
    flags = folder_flags(tree)
    assert short_run(tmp_path / "run", *flags, "--stages=pretrain") == 0
    shutil.rmtree(tree)
    write_tree(tree, size=(16, 16), classes=classes)
    more = "--stages=pretrain,curriculum"
    assert "class" in refused(capsys, tmp_path, short_run, tmp_path / "run", *flags, more)


def test_settings_of_a_finished_run_are_not_overwritten_when_its_data_is_gone(capsys, tmp_path):
    tree = write_tree(tmp_path / "images", size=(16, 16))
    flags = folder_flags(tree)
    assert short_run(tmp_path / "run", *flags, "--stages=pretrain") == 0
    shutil.rmtree(tree)
    refused(capsys, tmp_path / "run", short_run, tmp_path / "run", *flags)


def test_more_validation_images_than_there_are_images_is_refused(capsys, tmp_path):
    said = refused(capsys, tmp_path, short_run, tmp_path / "run", "--val-images=96")
    assert "cannot be cut" in said


# ------------------------------------------------------------------------------------- the weights
@pytest.mark.parametrize("flag", ["resnet", "policy-start"])
@pytest.mark.parametrize("content", [None, b"text", b""])
def test_weights_that_cannot_be_read_are_named(capsys, tmp_path, flag, content):
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    said = refused(capsys, tmp_path, short_run, tmp_path / "run", f"--{flag}={path}")
    assert "weights.pt" in said


def test_weights_of_another_depth_are_refused(capsys, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(resnet(14).state_dict(), path)
    said = refused(capsys, tmp_path, short_run, tmp_path / "run", f"--resnet={path}")
    assert "left over" in said


def test_a_run_that_would_train_on_an_unpretrained_resnet_is_refused(capsys, tmp_path):
    said = refused(capsys, tmp_path, short_run, tmp_path / "run", "--stages=curriculum")
    assert "--resnet" in said
