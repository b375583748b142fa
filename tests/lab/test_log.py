"""What a run prints: rows as wide as a terminal, lines of progress, and streams that fail."""

import re
import sys

import pytest

from blockdrop_min.lab import log
from blockdrop_min.lab.log import COLUMNS, Log

ROW = {
    "stage": "curriculum",
    "epoch": 11,
    "epochs": 45,
    "seconds": 1234.56,
    "free": 33,
    "loss": -1.23456,
    "accuracy": 0.98765,
    "blocks_mean": 12.345,
    "blocks_std": 1.5,
    "R": -3.25,
    "A": 0.125,
    "distinct_policies": 50000,
}


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self, patch):
        self.now = 1000.0
        patch.setattr(log.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


# -------------------------------------------------------------------------------------------- rows
def test_every_heading_stands_above_its_column(capsys):
    with Log() as shown:
        shown.head()
        shown.row(ROW)
    head, row = capsys.readouterr().out.splitlines()
    assert len(head) == len(row)


def test_a_row_fits_a_terminal_of_80_columns(capsys):
    with Log() as shown:
        shown.row(ROW)
    assert len(capsys.readouterr().out.rstrip("\n")) <= 80


@pytest.mark.parametrize(
    ("heading", "value"),
    [
        ("stage", "curriculum"),
        ("epoch", "12/45"),
        ("free", "33"),
        ("loss", "-1.235"),
        ("acc %", "98.77"),
        ("blocks", "12.35 ± 1.50"),
        ("R", "-3.250"),
        ("A", "0.125"),
        ("distinct", "50000"),
        ("sec", "1234.6"),
    ],
)
def test_a_row_by_hand(heading, value):
    show = {name: show for name, _, show in COLUMNS}[heading]
    assert str(show(ROW | {"blocks_mean": 12.346})) == value


@pytest.mark.parametrize("name", ["R", "A"])
def test_what_a_stage_does_not_have_is_left_empty(name):
    show = {heading: show for heading, _, show in COLUMNS}[name]
    assert show(ROW | {name: None}) == ""


# ---------------------------------------------------------------------------------------- progress
def test_the_bar_begins_where_the_epoch_was_left():
    with Log() as shown:
        shown.epoch("pretrain", 2, 7, 100, 40)
        assert shown.progress.tasks[0].completed == 40


def test_a_line_of_progress_comes_every_30_seconds_the_first_after_30(clock, capsys):
    with Log() as shown:
        shown.epoch("pretrain", 0, 7, 1000, 0)
        for count in (29, 1, 29, 31):  # lines after 30, and after 61 seconds
            clock.now += count
            shown.step()
    assert re.findall(r"step (\d+)/1000", capsys.readouterr().out) == ["2", "4"]


def test_other_processes_print_nothing(capsys, clock):
    with Log(quiet=True) as shown:
        shown.epoch("pretrain", 0, 7, 100, 0)
        clock.now += 40
        shown.step()
        shown.row(ROW)
        shown.say("said")
    assert capsys.readouterr() == ("", "")


def test_the_bar_leaves_streams_as_they_are():
    # Redirected ones, and their lock, would be inherited by the processes that read images.
    before = (sys.stdout, sys.stderr)
    with Log():
        assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("text", ["[red]x[/red]", "a[/y]", "exp[lr=0.1]", ":smile:", "x " * 99])
def test_what_is_said_comes_out_as_it_is(capsys, text):
    with Log() as shown:
        shown.say(text)
    assert capsys.readouterr().out.rstrip("\n") == text
