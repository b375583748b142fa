"""What a run prints: a row an epoch, and between rows a progress bar, or lines off a terminal."""

import time

from rich.progress import Progress

from .program import console, shown

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


class Log:
    """Prints a run's progress and rows. A context manager: the progress bar ends with it."""

    def __init__(self, quiet=False):
        self.console = console(soft_wrap=True, quiet=quiet)
        # Redirected streams, and rich's lock, would be inherited by the processes that read images.
        streams = {"redirect_stdout": False, "redirect_stderr": False}
        look = {"transient": True, "disable": not self.console.is_terminal}
        self.progress = Progress(console=self.console, **look, **streams)
        self.task = self.progress.add_task("starting")
        self.last_line = time.monotonic()

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def say(self, text):
        """A line of text."""
        self.console.print(shown(text, 2000))

    def head(self):
        """The headings of the columns."""
        self.say(" ".join(f"{heading:>{width}}" for heading, width, _ in COLUMNS))

    def row(self, row):
        """The row of an epoch, as metrics.jsonl has it."""
        self.say(" ".join(f"{show(row):>{width}}" for _, width, show in COLUMNS))

    def epoch(self, name, epoch, epochs, steps, done):
        """Begins an epoch of `steps` steps of which `done` are done."""
        name = f"{name} {epoch + 1}/{epochs}"
        self.progress.reset(self.task, description=name, total=steps, completed=done)

    def step(self):
        """Says that one step more of the epoch is done."""
        self.progress.advance(self.task)
        if self.console.is_terminal or time.monotonic() - self.last_line < PLAIN_EVERY:
            return
        self.last_line = time.monotonic()
        task = self.progress.tasks[0]
        place = f"step {task.completed:.0f}/{task.total:.0f}"
        self.say(f"{time.strftime('%T')} {task.description}: {place}")
