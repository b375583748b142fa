"""Files: whole or not at all, never through a link, and what is read is what was written."""

import errno
import os
import pickle
import re
import signal
import time

import pytest
import torch
from disks import disk, fail, in_a_process, kill
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import contents

from blockdrop_min.lab import files
from blockdrop_min.lab.files import FORMAT, RUN_FILES, locked, read_file, write_safely

KINDS = {
    "link": lambda path: path.symlink_to("mine"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "folder": os.mkdir,
    "pipe": os.mkfifo,
}
PLAIN = "only a plain file may stand there"
die = kill(signal.SIGKILL)


def there(folder):
    """Name -> bytes of every file in a folder."""
    return {str(path): data for path, data in contents(folder).items()}


def refusal(path, act, *arguments):
    """The one line in which an action refuses a path, at once."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        act(*arguments)
    assert time.monotonic() - start < 5
    assert "\n" not in str(raised.value)
    return str(raised.value)


def lock_once(folder):
    with locked(folder):
        pass


# ------------------------------------------------------------------------------- what is written
def test_the_whole_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    sizes = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: sizes.append(os.fstat(f).st_size) or fsync(f))
    with disk() as done:
        write_safely(tmp_path / "a", b"new")
    write_safely(tmp_path / "a", b"newer")
    assert done == ["write", "fsync", "replace"]
    assert sizes == [3, 5]


def test_what_a_killed_write_left_goes_with_the_next(tmp_path):
    with disk(1, die):
        in_a_process(lambda: write_safely(tmp_path / "checkpoint.pt", b"much that is new"))
    assert len(there(tmp_path)) == 1
    write_safely(tmp_path / "checkpoint.pt", b"new")
    assert there(tmp_path) == {"checkpoint.pt": b"new"}


# ----------------------------------------------------------------------------- links and the like
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_where_no_plain_file_stands(tmp_path, kind):
    (tmp_path / "mine").write_bytes(b"mine")
    KINDS[kind](tmp_path / "a")
    before = (tmp_path / "a").lstat()
    assert PLAIN in refusal(tmp_path / "a", write_safely, tmp_path / "a", b"new")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert (tmp_path / "a").lstat() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a", "mine"}


def test_a_link_to_weights_may_be_read(tmp_path):
    write_safely(f"{tmp_path}/a", {"x": 1})
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "b") == {"x": 1}


# ---------------------------------------------------------------------------------------- the lock
def test_a_folder_that_another_process_holds_is_refused_to_its_end(tmp_path, monkeypatch):
    def act():
        before = there(tmp_path)
        message = refusal(tmp_path, lock_once, tmp_path)
        assert message.startswith(f"another run is writing to {tmp_path}; ")
        assert there(tmp_path) == before
        monkeypatch.setattr(files, "rank", lambda: 1)  # only the first process of a run locks
        lock_once(tmp_path)

    with locked(tmp_path):
        assert in_a_process(act) == 0
    assert in_a_process(lambda: lock_once(tmp_path)) == 0


def test_the_lock_of_a_run_that_was_killed_is_free(tmp_path):
    def act():
        with locked(tmp_path):
            die()

    assert in_a_process(act) == -signal.SIGKILL
    lock_once(tmp_path)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_no_obstacle_and_is_said(tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr(files.fcntl, "lockf", lambda *_: fail(error)())
    lock_once(tmp_path)
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: not locked ({os.strerror(error)})")
    assert said.count("\n") == 1

    for answer in (errno.EACCES, errno.EAGAIN):  # of systems to a held lock
        monkeypatch.setattr(files.fcntl, "lockf", lambda *_, n=answer: fail(n)())
        assert "another run" in refusal(tmp_path, lock_once, tmp_path)


# --------------------------------------------------------------------------------- whose folder
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RUN_FILES)
def test_each_name_of_a_runs_files_is_for_plain_files_only(tmp_path, name, kind):
    (tmp_path / "mine").write_bytes(b"mine")
    KINDS[kind](tmp_path / name)
    assert PLAIN in refusal(tmp_path / name, lock_once, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name, "mine"}
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["settings.json", "metrics.jsonl", "resnet.pt"])
def test_a_folder_with_files_of_another_program_is_not_ours(tmp_path, name):
    (tmp_path / name).touch()
    assert f"holds {name} of another program" in refusal(tmp_path, lock_once, tmp_path)
    assert there(tmp_path) == {name: b""}


def test_a_folder_of_a_run_that_was_killed_early_is_ours(tmp_path):
    for name in ("notes.txt", "settings.json", "resnet.pt"):
        lock_once(tmp_path)
        (tmp_path / name).touch()
    assert set(there(tmp_path)) >= {"notes.txt", "settings.json", "resnet.pt"}, "nothing is lost"


# ------------------------------------------------------------------------------------ what is read
def content_of(kind):
    return {"format": kind, "x": torch.arange(9.0)}


def is_whole(found, kind):
    return found["format"] == kind and torch.equal(found["x"], torch.arange(9.0))


def read_or_refused(path):
    """What a file holds, or None if it is refused as damaged, in one line."""
    try:
        return read_file(path)
    except ValueError as problem:
        assert "damaged" in str(problem)
        assert "\n" not in str(problem)


@pytest.mark.parametrize(("kind", "last"), [(FORMAT, 10**4), ("another", 100)])
def test_every_bit_that_flips_is_found_or_changes_nothing_that_is_read(tmp_path, kind, last):
    write_safely(tmp_path / "a", content_of(kind))
    data = (tmp_path / "a").read_bytes()
    with open(tmp_path / "a", "r+b", buffering=0) as file:
        for place in range(max(0, len(data) - last), len(data)):
            for flip in (1, 2, 4, 8, 16, 32, 64, 128, 0):
                file.seek(place)
                file.write(bytes([data[place] ^ flip]))
                found = read_or_refused(tmp_path / "a")
                allowed = flip == 0 or kind != FORMAT
                assert found is None or (allowed and is_whole(found, kind)), (place, flip)
    assert is_whole(found, kind)


@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 2000))
@settings(max_examples=100)
def test_bytes_that_are_added_or_lost_are_found(tmp_path_factory, added, start, end):
    path = tmp_path_factory.getbasetemp() / "a"
    write_safely(path, content_of(FORMAT))
    data = path.read_bytes()
    changed = data[:start] + added + data[max(start, end) :]
    path.write_bytes(changed)
    assert (read_or_refused(path) is None) == (changed != data)


def test_a_file_of_ours_without_its_digest_is_refused(tmp_path):
    torch.save(content_of(FORMAT), tmp_path / "a")
    assert read_or_refused(tmp_path / "a") is None


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("save", [write_safely, lambda path, x: path.write_bytes(pickle.dumps(x))])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path, save, recwarn):
    save(tmp_path / "evil.pt", {"x": Malicious(str(tmp_path / "harm"))})
    assert "cannot be read" in refusal(tmp_path / "evil.pt", read_file, tmp_path / "evil.pt")
    assert len(recwarn) == 0  # it would be a second line
    assert not (tmp_path / "harm").exists()


PASSING = [OSError(n, "") for n in (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ESTALE)]
PASSING += [PermissionError(), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")]


@pytest.mark.parametrize("problem", PASSING, ids=repr)
@pytest.mark.parametrize("call", [(files.Path, "read_bytes"), (torch, "load")])
def test_a_file_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, call, problem):
    def act(*_, **__):
        raise problem

    write_safely(tmp_path / "a", content_of(FORMAT))
    with monkeypatch.context() as patch, pytest.raises(type(problem)):
        patch.setattr(*call, act)
        read_file(tmp_path / "a")


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "file" / "b"):
        assert refusal(path, read_file, path) == f"{path} does not exist"
