"""What a run prints: one table row an epoch, and between the rows a progress bar, or plain lines off a terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY = 5.0  # seconds between plain lines

COLUMNS = [  # (heading, width, what of the row it shows)
    ("stage", 10, lambda row: row["stage"]),
    ("epoch", 7, lambda row: f"{row['epoch'] + 1}/{row['epochs']}"),
    ("free", 4, lambda row: row["free"]),
    ("loss", 8, lambda row: f"{row['loss']:.4f}"),
    ("acc %", 6, lambda row: f"{100 * row['accuracy']:.2f}"),
    ("blocks", 13, lambda row: f"{row['blocks_mean']:.2f} ± {row['blocks_std']:.2f}"),
    ("R", 7, lambda row: "" if row["R"] is None else f"{row['R']:.3f}"),
    ("A", 7, lambda row: "" if row["A"] is None else f"{row['A']:.3f}"),
    ("distinct", 8, lambda row: row["distinct_policies"]),
    ("sec", 7, lambda row: f"{row['seconds']:.1f}"),
]


class Log:
    """Prints a run's progress and rows. A context manager: the progress bar ends with it."""

    def __init__(self, quiet=False):
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self.task, self.last = self.progress.add_task("", visible=False), time.monotonic()

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def say(self, text):
        """A line of text."""
        self.console.print(text, markup=False)

    def head(self):
        """The headings of the columns."""
        self.say("  ".join(f"{heading:>{width}}" for heading, width, _ in COLUMNS))

    def row(self, row):
        """The row of an epoch, as metrics.jsonl has it."""
        self.say("  ".join(f"{show(row):>{width}}" for _, width, show in COLUMNS))

    def epoch(self, stage, epoch, epochs, steps, done):
        """Begins an epoch of `steps` steps of which some may be done."""
        self.name, self.steps, self.begun, self.done = (
            f"{stage} {epoch + 1}/{epochs}",
            steps,
            time.monotonic(),
            done,
        )
        self.progress.reset(
            self.task, description=self.name, total=steps, completed=done, visible=True
        )

    def step(self, step):
        """Says that steps 0 .. step - 1 of the epoch are done."""
        self.progress.update(self.task, completed=step)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last >= PLAIN_EVERY:
            left = (now - self.begun) / max(1, step - self.done) * (self.steps - step)
            self.last = now
            self.say(
                f"{time.strftime('%F %T')} {self.name}: step {step}/{self.steps}, {left:.0f} s left in this epoch"
            )
