"""A disk that fails, or a process that dies, in the middle of a write."""

import multiprocessing
import os
import signal
from contextlib import contextmanager

import pytest

from blockdrop_min.lab import files


@contextmanager
def disk(at=None, act=None):
    """Gives the list of what lab/files.py does to the disk.

    Does act() in place of operation `at`; if that is a write, when half of it is written.
    """
    done = []
    fsync = os.fsync
    replace = os.replace

    def operation(name, proceed):
        done.append(name)
        return act() if len(done) - 1 == at else proceed()

    class File:
        def __init__(self, *arguments):
            self.file = open(*arguments)  # noqa: SIM115
            self.flush = self.file.flush
            self.fileno = self.file.fileno

        def write(self, content):
            half = len(content) // 2
            self.file.write(content[:half])
            operation("write", lambda: self.file.write(content[half:]))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open", File, raising=False)
        patch.setattr(os, "fsync", lambda file: operation("fsync", lambda: fsync(file)))
        patch.setattr(os, "replace", lambda *paths: operation("replace", lambda: replace(*paths)))
        yield done


def fail(error):
    """Raises the OSError of this number, as a full or a broken disk does."""

    def act():
        raise OSError(error, os.strerror(error))

    return act


def die():
    """Ends this process as a kill does."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(act):
    """Does act() in a process of its own. Returns its exit code, or -signal."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join()
    return process.exitcode


def contents(folder):
    """Name -> bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
