"""What a run prints: a row an epoch, and between rows a progress bar, or lines off a terminal."""

import os
import sys
import time

from rich.console import Console
from rich.progress import Progress

PLAIN_EVERY = 30.0  # seconds between lines of progress off a terminal

COLUMNS = [  # (heading, width, what of the row it shows)
    ("stage", 10, lambda row: row["stage"]),
    ("epoch", 7, lambda row: f"{row['epoch'] + 1}/{row['epochs']}"),
    ("free", 4, lambda row: row["free"]),
    ("loss", 7, lambda row: f"{row['loss']:.3f}"),
    ("acc %", 5, lambda row: f"{100 * row['accuracy']:.2f}"),
    ("blocks", 12, lambda row: f"{row['blocks_mean']:.2f} ± {row['blocks_std']:.2f}"),
    ("R", 6, lambda row: "" if row["R"] is None else f"{row['R']:.3f}"),
    ("A", 6, lambda row: "" if row["A"] is None else f"{row['A']:.3f}"),
    ("distinct", 8, lambda row: row["distinct_policies"]),
    ("sec", 6, lambda row: f"{row['seconds']:.1f}"),
]


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
        except OSError:  # `| head -1`: from now on nobody reads
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def safe_console(**options):
    """rich's console on standard output, whatever that is. Nothing that is printed is markup."""
    return Console(file=Output(sys.stdout), highlight=False, markup=False, emoji=False, **options)


class Log:
    """Prints a run's progress and rows. A context manager: the progress bar ends with it."""

    def __init__(self, quiet=False):
        self.console = safe_console(soft_wrap=True, quiet=quiet)
        # Redirected streams, and rich's lock, would be inherited by the processes that read images.
        streams = {"redirect_stdout": False, "redirect_stderr": False}
        shown = {"transient": True, "disable": not self.console.is_terminal}
        self.progress = Progress(console=self.console, **shown, **streams)
        self.task = self.progress.add_task("starting")
        self.last_line = time.monotonic()

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def say(self, text):
        """A line of text."""
        self.console.print(text)

    def head(self):
        """The headings of the columns."""
        self.say(" ".join(f"{heading:>{width}}" for heading, width, _ in COLUMNS))

    def row(self, row):
        """The row of an epoch, as metrics.jsonl has it."""
        self.say(" ".join(f"{show(row):>{width}}" for _, width, show in COLUMNS))

    def epoch(self, stage, epoch, steps, done):
        """Begins an epoch of `steps` steps of which `done` are done."""
        self.name = f"{stage.name} {epoch + 1}/{stage.epochs}"
        self.steps = steps
        self.done = done
        self.begun = time.monotonic()
        self.progress.reset(self.task, description=self.name, total=steps, completed=done)

    def step(self, step):
        """Says that steps 0 .. step - 1 of the epoch are done."""
        self.progress.update(self.task, completed=step)
        now = time.monotonic()
        if self.console.is_terminal or now - self.last_line < PLAIN_EVERY:
            return
        left = (now - self.begun) / max(1, step - self.done) * (self.steps - step)
        self.last_line = now
        progress = f"step {step}/{self.steps}, {left:.0f} s left in this epoch"
        self.say(f"{time.strftime('%T')} {self.name}: {progress}")
