"""A disk that fails, or a process that dies, in the middle of a write."""

import io
import os
from contextlib import contextmanager

import pytest

from blockdrop_min.lab import files


@contextmanager
def disk(at=None, act=None):
    """Gives the list of what lab/files.py does to the disk.

    Does act() in place of operation `at`; if that is a write, when half of it is written.
    """
    done = []
    fsync, replace = os.fsync, os.replace

    def operation(name, proceed):
        done.append(name)
        return act() if len(done) - 1 == at else proceed()

    class File(io.FileIO):
        def write(self, content):
            half = len(content) // 2
            super().write(content[:half])
            operation("write", lambda: super(File, self).write(content[half:]))

    def opened(path, mode="r", **options):
        return File(path, mode) if mode == "xb" else open(path, mode, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open", opened, raising=False)
        patch.setattr(os, "fsync", lambda file: operation("fsync", lambda: fsync(file)))
        patch.setattr(os, "replace", lambda *paths: operation("replace", lambda: replace(*paths)))
        yield done


def fail(error):
    """Raises the OSError of this number, as a full or a broken disk does."""

    def act():
        raise OSError(error, os.strerror(error))

    return act
