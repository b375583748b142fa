"""Files of a run: written whole or not at all, never through a link, and checked when read."""

import hashlib
import io
import os
import pickle
import stat
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch

from .process import rank
from .program import complain, out_of_memory, shown

try:
    import fcntl
except ImportError:  # Windows: a folder is not locked
    fcntl = None

FORMAT = "blockdrop_min 3"  # of a checkpoint; from 3 on each has a digest
RUN_FILES = ("checkpoint.pt", "checkpoint.previous.pt", "metrics.jsonl", "settings.json")
RUN_FILES += ("resnet.pt", ".lock")
DIGEST = 64  # characters
END = b"PK\5\6"  # how the last record of a zip archive begins, 22 bytes long


def check_plain(path):
    """ValueError if something else than a plain file is there, which a new one would replace."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        what = "a folder, a link, a pipe or a device"
        raise ValueError(f"{path} is {what}; only a plain file may stand there")


def write_safely(path, content, previous=None):
    """Writes a file whole or not at all: to a new file beside it, which then takes its name.

    content: bytes, or what torch.save is to write, which gets a digest.
    previous: a path that the file which stood at `path` is renamed to.
    Raises ValueError if `path` is a link or no plain file, and OSError if the disk fails; both
    leave `path` as it was.
    """
    path = Path(path)
    check_plain(path)
    if not isinstance(content, bytes):
        buffer = io.BytesIO()  # torch.save itself reports a full disk as something else
        torch.save(content, buffer)
        content = sealed(buffer.getvalue())
    temporary = path.with_name(f".{path.name}.partial")  # a killed write's gives way to the next
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sealed(content):
    """A file of torch.save, a zip archive, with a SHA-256 over all of it as its comment."""
    body = content[:-2] + DIGEST.to_bytes(2, "little")  # the length of the comment stands last
    return body + hashlib.sha256(body).hexdigest().encode()


def is_sealed(content):
    """Whether a file has a digest; ValueError if it has one that is not its own."""
    body, digest = content[:-DIGEST], content[-DIGEST:]
    if body[-22:-18] != END or body[-2:] != DIGEST.to_bytes(2, "little"):
        return False
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("its digest is not that of its content")
    return True


def read_file(path):
    """What a file of torch.save holds: plain types and tensors, on the CPU.

    A digest is checked where there is one, as in all files that this package writes.
    Raises ValueError, one line, if the file is damaged or holds anything else, and OSError or
    MemoryError if it cannot be read now.
    """
    try:
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist") from None
    fault = "cannot be read: it is damaged, or holds more than plain types and tensors"
    with using(path, fault), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lines beside our one
        checked = is_sealed(content)
        try:
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its text advises to load it unsafely
            raise ValueError("no file of torch.save, or not of tensors alone") from None
        if isinstance(value, dict) and value.get("format") == FORMAT and not checked:
            raise ValueError("its digest is missing")
        return value


@contextmanager
def using(path, fault="is no whole checkpoint of blockdrop_min"):
    """Makes one line of whatever is wrong in a file that somebody else has made."""
    try:
        yield
    except Exception as problem:
        if isinstance(problem, OSError) or out_of_memory(problem):
            raise
        reason = f"{type(problem).__name__}: {shown(str(problem), 200)}"
        raise ValueError(f"{path} {fault} ({reason})") from None


@contextmanager
def locked(folder):
    """Keeps other runs from writing to this folder; the system frees the lock of a dead process.

    Only the first process of a run locks. Raises ValueError if another run holds the lock, if a
    name of a run's files is taken by something else than a plain file, or if such files are there
    that no run of ours has left.
    """
    path = Path(folder) / ".lock"
    there = [name for name in RUN_FILES if os.path.lexists(Path(folder) / name)]
    for name in there:
        check_plain(Path(folder) / name)
    if there and not {".lock", "checkpoint.pt", "checkpoint.previous.pt"} & set(there):
        raise ValueError(f"{folder} holds {', '.join(there)} of another program; use another --out")
    with open(path, "ab") as file:
        if fcntl and rank() == 0:
            lock(file, folder)
        yield


def lock(file, folder):
    """Locks a file for as long as it is open."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the two answers of systems to a held lock
        advice = "wait for its end, or use another --out"
        raise ValueError(f"another run is writing to {folder}; {advice}") from None
    except OSError as problem:
        complain(folder, f"not locked ({problem.strerror}); start no second run in it")
