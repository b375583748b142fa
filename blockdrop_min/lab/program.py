"""What the programs share: parsing, printing, and how each fault ends in one line.

A program is `sys.exit(guarded("train.py", main))`; nothing here or there handles a signal.
"""

import argparse
import os
import sys

from rich.console import Console

NO_MEMORY = ("allocate memory", "out of memory", "could not create a primitive")  # the last: oneDNN


class Parser(argparse.ArgumentParser):
    """One that answers a bad argument with one line and exit code 2, not with its usage."""

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        for arg in args:
            if arg.startswith("--") and arg.partition("=")[2] == "--":  # until Python 3.12: a list
                self.error(f"{arg} has no value; ./-- is a file of that name")
        return super().parse_known_args(args, namespace)

    def print_help(self, file=None):
        Output(file or sys.stdout).write(self.format_help())

    def error(self, message):
        complain(self.prog, f"{message}; see --help")
        self.exit(2)


class Output:
    """A stream that never ends a program: what it cannot encode or deliver is replaced or lost."""

    def __init__(self, stream):
        # None: it was closed before we began.
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115
        if hasattr(self.stream, "reconfigure"):  # a notebook's stream has no such method
            self.stream.reconfigure(errors="replace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # `| head -1`, a full disk: from now on nobody reads
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def console(**options):
    """rich's console on standard output, whatever that is. Nothing that is printed is markup."""
    return Console(file=Output(sys.stdout), highlight=False, markup=False, emoji=False, **options)


def shown(value, limit=80):
    """A name, a path or another value of unknown origin, for a line on a terminal.

    Line breaks, escape codes and other control characters are escaped, and a text is cut to `limit`
    characters. Of what is neither a text nor a small number only the type is named.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        small = isinstance(value, int) and abs(value) < 10**20
        value = repr(value) if small or isinstance(value, float | None) else type(value).__name__
    text = value if len(value) <= limit else f"{value[: limit - 3]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def complain(program, problem):
    """Prints a problem as one line on standard error, even if nobody can read it there."""
    line = " ".join(str(problem).split())
    Output(sys.stderr).write(f"{program}: {shown(line, 1000)}\n")


def out_of_memory(problem):
    """One line of advice if this error says that memory does not suffice, or None."""
    text = str(problem).lower()
    if isinstance(problem, MemoryError) or any(words in text for words in NO_MEMORY):
        return "the memory does not suffice; try a smaller batch (--finetune-batch, ...) or --depth"
    if "dataloader worker" in text:  # raised wherever this process is when a worker is killed
        return "a process that reads images was killed; use --workers 0, or a smaller batch"
    return None


def guarded(program, main):
    """Calls main() and returns its exit code: 2 after a fault of the user's, 130 after Ctrl-C.

    Such a fault, from a bad argument to a full disk or memory, is one line. Others pass: they are
    ours.
    """
    try:
        return main()
    except KeyboardInterrupt as stop:
        complain(program, str(stop) or "stopped")
        return 130
    except (ValueError, FloatingPointError, OSError) as problem:
        complain(program, problem)
    except (MemoryError, RuntimeError) as problem:
        if not out_of_memory(problem):
            raise
        complain(program, out_of_memory(problem))
    return 2
