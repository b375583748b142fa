"""Bad input: one line on standard error, exit code 2, nothing is lost, and no step is taken."""

import errno
import shutil

import pytest
import torch
from disks import watch_steps
from runs import SHORT, contents, folder_flags, short_run, state_of, write_tree

from blockdrop_min import resnet
from blockdrop_min.lab import checkpoint
from blockdrop_min.lab.checkpoint import DAMAGED, NAME, PREVIOUS, save
from blockdrop_min.lab.settings import flat, parse


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    (tmp_path / "run").mkdir()
    for _ in range(2):  # the newest checkpoint and the one before
        save(tmp_path / "run", state_of()[0] | {"settings": flat(parse(SHORT)[0])})
    return tmp_path / "run"


@pytest.fixture
def refused(capsys):
    """refused(folder, out, *flags): the one line with which train.py ends, with exit code 2.

    folder: whose files must stay as they were.
    """

    def act(folder, out, *flags):
        files = contents(folder)
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            watch_steps(patch, lambda *_: pytest.fail("a step was taken"))
            try:
                code = short_run(out, *flags)
            except SystemExit as stopped:
                code = stopped.code
        error = capsys.readouterr().err
        assert (code, error.count("\n"), error[:10], error[-1]) == (2, 1, "train.py: ", "\n")
        assert contents(folder).items() >= files.items()
        return error

    return act


# ------------------------------------------------------------------------------- flags and folders
@pytest.mark.parametrize("flag", ["--depth=33", "--nosuch=1", "--policy=first:10", "--device=hpu"])
def test_a_bad_flag_makes_no_folder(refused, tmp_path, flag):
    refused(tmp_path, tmp_path / "new", flag)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_to_is_named(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        assert "file" in refused(tmp_path, place)
    assert list(contents(tmp_path).values()) == [b"mine"]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--seed=3", "seed 0 there, 3 here"),
        ("--pretrain-epochs=3", "--pretrain-epochs 3 needs another --out"),
        ("--device=cuda:99", "--device is 'cuda:99'"),
    ],
)
def test_a_run_that_cannot_go_on_with_these_settings_stays_as_it_is(refused, run, flag, said):
    assert said in refused(run, run, flag)


@pytest.mark.parametrize("length", [0, 9000])
def test_a_folder_whose_checkpoints_are_damaged_is_refused(refused, run, length):
    for name in (NAME, PREVIOUS):
        (run / name).write_bytes((run / name).read_bytes()[:length])
    assert str(run) in refused(run, run)


PASSING = [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ESTALE, errno.EACCES]


@pytest.mark.parametrize("problem", [*(OSError(n, "passing") for n in PASSING), MemoryError()])
def test_a_checkpoint_that_cannot_be_read_now_stays_where_it_is(refused, run, monkeypatch, problem):
    def act(path):
        if left:
            raise left.pop()
        return read_file(path)

    left = [problem]
    read_file = checkpoint.read_file
    monkeypatch.setattr(checkpoint, "read_file", act)
    said = refused(run, run)
    assert ("passing" if problem.args else "memory does not suffice") in said
    assert not (run / DAMAGED).exists()


# ---------------------------------------------------------------------------------------- the data
def test_a_missing_data_folder_is_named_and_a_finished_run_stays(refused, tmp_path):
    tree = write_tree(tmp_path / "images", size=(16, 16))
    flags = [*folder_flags(tree), "--stages=pretrain"]
    assert short_run(tmp_path / "run", *flags) == 0
    shutil.rmtree(tree)
    assert "images" in refused(tmp_path / "run", tmp_path / "run", *flags)


@pytest.mark.parametrize("classes", [("apple", "bee", "cow"), ("apple", "cow")])
def test_data_whose_classes_are_not_those_of_the_checkpoint_is_refused(refused, tmp_path, classes):
    tree = write_tree(tmp_path / "images", size=(16, 16))
    flags = folder_flags(tree)
    assert short_run(tmp_path / "run", *flags, "--stages=pretrain") == 0
    shutil.rmtree(tree)
    write_tree(tree, size=(16, 16), classes=classes)
    said = refused(tmp_path, tmp_path / "run", *flags, "--stages=pretrain,curriculum")
    assert f"the data has {len(classes)} {list(classes)}" in said


REFUSED = {  # flags -> what is said of them
    "--val-images=96": "cannot be cut",
    "--stages=curriculum": "nothing pretrains the ResNet; give it weights with --resnet FILE",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_a_run_that_cannot_be_trained_is_refused(refused, tmp_path, flags):
    assert REFUSED[flags] in refused(tmp_path, tmp_path / "run", *flags.split())


# ------------------------------------------------------------------------------------- the weights
@pytest.mark.parametrize("flag", ["resnet", "policy-start"])
def test_weights_that_cannot_be_used_are_named(refused, tmp_path, flag):
    path = tmp_path / "weights.pt"
    assert "weights.pt does not exist" in refused(tmp_path, tmp_path / "run", f"--{flag}={path}")
    path.write_bytes(b"text")
    assert "weights.pt cannot be read" in refused(tmp_path, tmp_path / "run", f"--{flag}={path}")
    torch.save(resnet(14).state_dict(), path)
    assert "weights.pt" in refused(tmp_path, tmp_path / "run", f"--{flag}={path}")
