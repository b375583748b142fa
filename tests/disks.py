"""What can happen to a run: a disk that fails, Ctrl-C, a kill; and processes for it."""

import io
import os
import signal
import socket
import traceback
from contextlib import contextmanager

import pytest

from blockdrop_min import curriculum, finetuning, pretraining
from blockdrop_min.lab import files

STEP_FUNCTIONS = {  # name -> the module that calls it
    "pretrain_step": pretraining,
    "warm_start_step": curriculum,
    "curriculum_step": curriculum,
    "finetune_step": finetuning,
    "settled_step": finetuning,
}


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
        return File(path, mode) if mode == "wb" else open(path, mode, **options)

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


def watch_steps(patch, see):
    """Calls see(name, model, x, y, ...) before each training step from now on."""

    def watched(name, step):
        def act(*arguments):
            see(name, *arguments)
            return step(*arguments)

        return act

    for name, module in STEP_FUNCTIONS.items():
        patch.setattr(module, name, watched(name, getattr(module, name)))


def at_step(patch, count, act):
    """Calls act() once `count` training steps from now on are over, before the next."""
    left = [count]

    def see(*_):
        if left[0] == 0:
            act()
        left[0] -= 1

    watch_steps(patch, see)


def interrupt():
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def kill(number, process=None):
    """Sends this signal to a process, by default to the one that does it."""
    return lambda: os.kill(process or os.getpid(), number)


def fork(act):
    """A process that does act(), whose result is its exit code, and prints nothing.

    Returns its number.
    """
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        # A shell's background process ignores Ctrl-C, and so would its children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = act() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(number):
    """The exit code of a process, or -signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def in_a_process(act):
    """Does act() in a process of its own. Returns its exit code, or -signal."""
    return wait(fork(act))


def together(count, act, **environment):
    """Does act(rank) in so many processes, started as torchrun starts them.

    environment: what torchrun sets besides.
    Returns their exit codes, or -signals.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    given |= {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(count)} | environment

    def member(rank):
        signal.alarm(120)  # or one waits for another for ever
        os.environ.update(given, RANK=str(rank), LOCAL_RANK=str(rank))
        return act(rank)

    return [wait(process) for process in [fork(lambda r=r: member(r)) for r in range(count)]]
