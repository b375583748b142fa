"""Files of a run: written whole or not at all, never through a link, and checked when read."""

import io
import json
import os
import secrets
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch

from .process import rank

try:
    import fcntl
except ImportError:  # Windows: a folder is not locked
    fcntl = None

TEMPORARY = ".blockdrop"  # how the name of a file ends that is being written


def check_plain(path, follow_links=False):
    """ValueError if something else than a plain file is there: a pipe one waits at for ever."""
    plain = os.path.isfile(path) and (follow_links or not os.path.islink(path))
    if os.path.lexists(path) and not plain:
        what = "a folder, a link, a pipe or a device"
        raise ValueError(f"{path} is {what}; only a plain file may stand there")


def write_safely(path, content, previous=None):
    """Writes a file whole or not at all: to a new file beside it, which then takes its name.

    content: bytes, or what torch.save is to write.
    previous: a path that the file which stood at `path` is renamed to.
    Raises ValueError if `path` is a link or no plain file, and OSError if the disk fails; both
    leave `path` as it was.
    """
    path = Path(path)
    check_plain(path)
    if not isinstance(content, bytes):
        buffer = io.BytesIO()  # torch.save itself reports a full disk as something else
        torch.save(content, buffer)
        content = buffer.getbuffer()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:  # x: fails where anything stands, a link included
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path):
    """What a file of torch.save holds: plain types and tensors, on the CPU.

    Raises ValueError, one line, if it is damaged, holds anything else or is no plain file.
    """
    if not os.path.lexists(path):
        raise ValueError(f"{path} does not exist")
    check_plain(path, follow_links=True)
    try:
        with open(path, "rb") as file:
            return torch.load(verified(file), map_location="cpu", weights_only=True)
    except PermissionError as problem:
        raise ValueError(f"{path} cannot be read: {problem.strerror}") from None
    except Exception as problem:  # of many kinds, and with texts that advise to load it unsafely
        fault = "it is damaged, not a file of torch.save, or holds more than plain types, tensors"
        raise ValueError(f"{path} cannot be read ({type(problem).__name__}): {fault}") from None


def verified(file):
    """The file with all its records checked; a file from before PyTorch 1.6 as it is.

    torch.save writes a CRC-32 of each record, which torch.load never looks at, and their sizes and
    kinds, which it believes: one bit there gives it uninitialised memory for weights. So it gets a
    new file, with what zipfile has read and checked and nothing else.
    """
    zipped = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if not zipped:
        return file
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as records, zipfile.ZipFile(copy, "w") as checked:
        if any(entry.compress_type for entry in records.infolist()):
            raise zipfile.BadZipFile("torch.save compresses nothing; this may hide gigabytes")
        for name in dict.fromkeys(records.namelist()):
            checked.writestr(name, records.read(name))
    copy.seek(0)
    return copy


@contextmanager
def locked(folder):
    """Keeps other runs from writing to this folder; the system frees the lock of a dead process.

    Only the first process of a run locks. A disk without locks is no obstacle; a line says so.
    Raises ValueError if another run holds the lock, or if it is a link or no plain file.
    """
    path = Path(folder) / ".lock"
    check_plain(path)
    with open(path, "ab") as file:
        if fcntl and rank() == 0:
            lock(file, folder)
        yield


def lock(file, folder):
    """Locks a file for as long as it is open, and removes what killed writes have left."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the two answers of systems to a held lock
        advice = "wait for its end, or use another --out"
        raise ValueError(f"another run is writing to {folder}; {advice}") from None
    except OSError as problem:
        reason = f"{problem.strerror}; start no second run in it"
        print(f"{folder} is not locked: {reason}", file=sys.stderr)
        return
    for leftover in Path(folder).glob(f".*{TEMPORARY}"):
        leftover.unlink()


def claim(folder):
    """ValueError if a folder without a checkpoint holds files that are not ours to overwrite.

    A run that was killed before its first checkpoint has left its settings.json, and may go on.
    """
    settings = Path(folder) / "settings.json"
    names = [settings.name, "metrics.jsonl", "resnet.pt"]
    there = [name for name in names if os.path.lexists(settings.with_name(name))]
    try:
        check_plain(settings)
        ours = {"preset", "stages", "seed"} <= set(json.loads(settings.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):  # TypeError: no dict
        ours = False
    if there and not ours:
        raise ValueError(f"{folder} holds {', '.join(there)} of another program; use another --out")
