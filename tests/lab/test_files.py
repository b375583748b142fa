"""Files: whole or not at all, never through a link, and what is read is what was written."""

import errno
import io
import json
import multiprocessing
import os
import resource
import signal
import socket
import stat
import struct
import time
import tracemalloc
import zipfile
from dataclasses import asdict

import pytest
import torch
from disks import contents, die, disk, fail, in_a_process
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blockdrop_min.lab import files
from blockdrop_min.lab.files import claim, locked, read_file, write_safely
from blockdrop_min.lab.settings import Settings

KINDS = ["link", "dangling link", "looping link", "folder", "pipe", "socket"]


def place(path, kind, target):
    """Puts something that is no plain file at a path; a link leads to `target`."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        bound = socket.socket(socket.AF_UNIX)
        before = os.getcwd()
        os.chdir(path.parent)  # a socket's name may have 100 characters only
        bound.bind(path.name)
        os.chdir(before)
    else:
        goals = {"link": target, "dangling link": "nowhere", "looping link": path}
        path.symlink_to(goals[kind])


def refusal(path, act):
    """The one line in which an action refuses a path, at once."""
    start = time.monotonic()
    with pytest.raises(ValueError) as raised:
        act()
    message = str(raised.value)
    assert time.monotonic() - start < 5
    assert str(path) in message
    assert "\n" not in message
    return message


def lock_once(folder):
    with locked(folder):
        pass


# ------------------------------------------------------------------------------- what is written
def test_bytes_are_written_as_they_are(tmp_path):
    write_safely(tmp_path / "a", b"new")
    assert contents(tmp_path) == {"a": b"new"}


def test_anything_else_is_written_by_torch(tmp_path):
    write_safely(tmp_path / "a", {"x": torch.arange(3)})
    assert torch.equal(read_file(tmp_path / "a")["x"], torch.arange(3))


def test_a_path_may_be_a_string(tmp_path):
    write_safely(f"{tmp_path}/a", b"new")
    assert contents(tmp_path) == {"a": b"new"}


def test_what_stood_there_is_kept_where_one_says(tmp_path):
    for content in (b"1", b"2", b"3"):
        write_safely(tmp_path / "a", content, previous=tmp_path / "b")
    assert contents(tmp_path) == {"a": b"3", "b": b"2"}


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path):
    with disk() as done:
        write_safely(tmp_path / "a", b"new")
    assert done == ["write", "fsync", "replace"]


def test_others_may_read_a_file_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    write_safely(tmp_path / "a", b"new")
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", range(4))
def test_a_disk_that_fails_loses_nothing_and_leaves_no_other_file(tmp_path, at, error):
    write_safely(tmp_path / "a", b"old")
    with disk(at, fail(error)), pytest.raises(OSError, match=os.strerror(error)):
        write_safely(tmp_path / "a", b"new", previous=tmp_path / "b")
    assert list(contents(tmp_path).values()) == [b"old"]


@pytest.mark.parametrize("at", range(3))
def test_a_kill_during_a_write_leaves_the_old_file(tmp_path, at):
    write_safely(tmp_path / "a", b"old")
    with disk(at, die):
        code = in_a_process(lambda: write_safely(tmp_path / "a", b"new"))
    assert code == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"old"


def test_what_a_kill_left_is_removed_by_the_next_run(tmp_path):
    with disk(1, die):
        in_a_process(lambda: write_safely(tmp_path / "a", b"new"))
    assert len(contents(tmp_path)) == 1
    lock_once(tmp_path)
    assert list(contents(tmp_path)) == [".lock"]


def test_hidden_files_of_others_stay(tmp_path):
    (tmp_path / ".notes").write_text("mine")
    lock_once(tmp_path)
    assert contents(tmp_path)[".notes"] == b"mine"


def test_two_writers_at_once_do_not_mix(tmp_path):
    other = lambda: write_safely(tmp_path / "a", b"2" * 100)  # noqa: E731
    with disk(1, other):  # at the first one's fsync
        write_safely(tmp_path / "a", b"1" * 100)
    assert contents(tmp_path) == {"a": b"1" * 100}


def test_a_disk_that_is_really_full_is_an_error_of_the_system(tmp_path):
    def act():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_safely(tmp_path / "a", {"weights": torch.zeros(10_000)})
        except OSError as problem:
            os._exit(problem.errno)

    assert in_a_process(act) == errno.EFBIG
    assert contents(tmp_path) == {}


# ----------------------------------------------------------------------------- links and the like
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_where_no_plain_file_stands(tmp_path, kind):
    target = tmp_path / "mine"
    target.write_bytes(b"mine")
    place(tmp_path / "a", kind, target)
    before = (tmp_path / "a").lstat()
    refusal(tmp_path / "a", lambda: write_safely(tmp_path / "a", b"new"))
    assert target.read_bytes() == b"mine"
    assert (tmp_path / "a").lstat() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a", "mine"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "link"])
def test_nothing_is_read_where_no_file_stands(tmp_path, kind):
    place(tmp_path / "a", kind, None)
    said = refusal(tmp_path / "a", lambda: read_file(tmp_path / "a"))
    assert "only a plain file may stand there" in said


def test_a_link_to_weights_may_be_read(tmp_path):
    write_safely(tmp_path / "a", {"x": 1})
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "b") == {"x": 1}


def test_a_device_is_no_file():
    said = refusal("/dev/zero", lambda: read_file("/dev/zero"))
    assert "only a plain file may stand there" in said
    said = refusal("/dev/null", lambda: write_safely("/dev/null", b"new"))
    assert "only a plain file may stand there" in said


@pytest.mark.parametrize("name", [".a", ".a.00000000.blockdrop"])
def test_a_link_at_a_name_that_one_can_guess_is_not_followed(tmp_path, monkeypatch, name):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / name).symlink_to(tmp_path / "mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "00000000")
    try:
        write_safely(tmp_path / "a", b"new")
    except FileExistsError:
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_that_is_no_plain_file_is_refused(tmp_path, kind):
    (tmp_path / "mine").write_bytes(b"mine")
    place(tmp_path / ".lock", kind, tmp_path / "mine")
    refusal(tmp_path / ".lock", lambda: lock_once(tmp_path))
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_lock_that_is_another_name_of_my_file_does_not_empty_it(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    os.link(tmp_path / "mine", tmp_path / ".lock")
    lock_once(tmp_path)
    assert (tmp_path / "mine").read_bytes() == b"mine"


# ---------------------------------------------------------------------------------------- the lock
@pytest.fixture
def holder(tmp_path):
    """A process that has locked the folder until it is killed."""

    def act():
        with locked(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_a_folder_that_another_process_holds_is_refused(tmp_path, holder):
    message = refusal(tmp_path, lambda: lock_once(tmp_path))
    assert message.startswith(f"another run is writing to {tmp_path}; ")


def test_the_lock_of_a_dead_process_is_not_in_the_way(tmp_path, holder):
    assert "another run" in refusal(tmp_path, lambda: lock_once(tmp_path))
    holder.kill()
    holder.join()
    lock_once(tmp_path)


def test_a_lock_ends_with_its_run(tmp_path):
    lock_once(tmp_path)
    assert in_a_process(lambda: lock_once(tmp_path)) == 0


def test_only_the_first_process_of_a_run_locks(tmp_path, holder, monkeypatch):
    assert "another run" in refusal(tmp_path, lambda: lock_once(tmp_path))
    monkeypatch.setattr(files, "rank", lambda: 1)
    lock_once(tmp_path)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_no_obstacle_and_is_said(tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr(files.fcntl, "lockf", lambda *_: fail(error)())
    lock_once(tmp_path)
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path} is not locked: {os.strerror(error)}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [errno.EACCES, errno.EAGAIN])
def test_both_answers_of_systems_to_a_held_lock_are_understood(tmp_path, monkeypatch, error):
    monkeypatch.setattr(files.fcntl, "lockf", lambda *_: fail(error)())
    assert "another run" in refusal(tmp_path, lambda: lock_once(tmp_path))


# --------------------------------------------------------------------------------- whose folder
@pytest.mark.parametrize("name", ["settings.json", "metrics.jsonl", "resnet.pt"])
@pytest.mark.parametrize("content", [b"", b"text", b'{"theirs": 1}', b"[1]", b"1", b"[" * 100_000])
def test_a_folder_with_files_of_another_program_is_not_ours(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path, lambda: claim(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_whose_settings_are_no_plain_file_is_not_ours(tmp_path, kind):
    place(tmp_path / "settings.json", kind, tmp_path / "mine")
    assert "of another program" in refusal(tmp_path, lambda: claim(tmp_path))


@pytest.mark.parametrize("left", [[], ["metrics.jsonl"], ["metrics.jsonl", "resnet.pt"]])
def test_a_folder_of_a_run_that_was_killed_early_is_ours(tmp_path, left):
    described = asdict(Settings()) | {"versions": "of the programs"}
    (tmp_path / "settings.json").write_text(json.dumps(described))
    for name in left:
        (tmp_path / name).touch()
    claim(tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    assert "of another program" in refusal(tmp_path, lambda: claim(tmp_path))


@pytest.mark.parametrize("names", [[], [".lock"], ["notes.txt", "data"]])
def test_a_folder_without_any_of_our_names_is_free(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    claim(tmp_path)
    (tmp_path / "resnet.pt").touch()
    assert "resnet.pt of another program" in refusal(tmp_path, lambda: claim(tmp_path))


# ------------------------------------------------------------------------------------ what is read
CONTENT = {"format": "ours", "x": torch.arange(40.0), "rows": [{"loss": 0.25}], "y": torch.ones(3)}


def saved_bytes(content=CONTENT, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


BYTES = saved_bytes()


def same(one, other):
    """Whether two contents are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def read_or_refused(path, data):
    """Whether a file with these bytes is refused in a line, or read as CONTENT."""
    path.write_bytes(data)
    try:
        return same(read_file(path), CONTENT)
    except ValueError as problem:
        return "damaged" in str(problem) and "\n" not in str(problem)


def flipped(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def directory():
    """Where the zip's directory begins: what is behind it is structure, to the last bit."""
    return zipfile.ZipFile(io.BytesIO(BYTES)).start_dir


@given(st.integers(0, 8 * len(BYTES) - 1))
@settings(max_examples=200)
def test_no_bit_that_flips_changes_what_is_read(tmp_path_factory, bit):
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    assert read_or_refused(path, flipped(BYTES, bit))


def test_no_bit_that_flips_in_the_directory_changes_what_is_read(tmp_path):
    bits = range(8 * directory(), 8 * len(BYTES), 7)  # all of them would take 17 s
    assert [bit for bit in bits if not read_or_refused(tmp_path / "a", flipped(BYTES, bit))] == []


@given(st.integers(0, len(BYTES)), st.sampled_from([1, 16, 64, 256, 512]))
@example(0, 512)
@settings(max_examples=100)
def test_no_page_of_zeros_changes_what_is_read(tmp_path_factory, start, size):
    path = tmp_path_factory.getbasetemp() / "zeroed.pt"
    page = bytes(min(size, len(BYTES) - start))
    assert read_or_refused(path, BYTES[:start] + page + BYTES[start + len(page) :])


def test_a_record_that_is_said_to_be_a_folder_is_not_read_as_whatever_memory_holds(tmp_path):
    data = bytearray(BYTES)
    entry = data.index(b"data/0", directory()) - len("archive/") - 46
    data[entry + 38] |= 0x10  # MS-DOS's bit for a folder
    assert zipfile.ZipFile(io.BytesIO(bytes(data))).testzip() is None
    assert read_or_refused(tmp_path / "a", bytes(data))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_old_and_new_are_read(tmp_path, zipped):
    data = saved_bytes(_use_new_zipfile_serialization=zipped)
    (tmp_path / "a").write_bytes(data)
    assert same(read_file(tmp_path / "a"), CONTENT)


def test_a_file_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as bomb:
        with zipfile.ZipFile(io.BytesIO(BYTES)) as records:
            bomb.writestr("archive/data.pkl", records.read("archive/data.pkl"))
        with bomb.open("archive/data/0", "w", force_zip64=True) as record:
            for _ in range(200):
                record.write(bytes(10**6))
    assert "damaged" in refusal(tmp_path / "a", lambda: read_file(tmp_path / "a"))
    assert peak_of(lambda: read_file(tmp_path / "a")) < 50e6


def test_a_record_that_is_said_to_be_longer_than_its_file_is_refused(tmp_path):
    data = bytearray(BYTES)
    entry = data.index(b"data/1", directory()) - len("archive/") - 46
    data[entry + 20 : entry + 28] = struct.pack("<II", 10**9, 10**9)  # its sizes
    (tmp_path / "a").write_bytes(data)
    refusal(tmp_path / "a", lambda: read_file(tmp_path / "a"))


def peak_of(act):
    """The most bytes that Python holds at a time while it refuses."""
    tracemalloc.start()
    with pytest.raises(ValueError):
        act()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_file_that_may_not_be_read_says_why(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(BYTES)
    monkeypatch.setattr(files, "open", lambda *_: fail(errno.EACCES)(), raising=False)
    message = refusal(tmp_path / "a", lambda: read_file(tmp_path / "a"))
    assert "Permission denied" in message
    assert "damaged" not in message


def test_a_missing_file_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path / "a", lambda: read_file(tmp_path / "a"))
