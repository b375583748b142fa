"""What a run prints: rows as wide as a terminal, lines of progress, and streams that fail."""

import re
import sys

import pytest
from runs import ROW

from blockdrop_min.lab import log
from blockdrop_min.lab.log import Log

HEADINGS = "stage epoch free loss acc % blocks R A distinct sec"
WIDE = ROW | {"stage": "curriculum", "epoch": 11, "epochs": 45, "seconds": 1234.56, "free": 33}
WIDE |= {"loss": -1.23456, "accuracy": 0.98765, "blocks_mean": 12.346, "blocks_std": 1.5}
WIDE |= {"R": -3.25, "A": 0.125, "distinct_policies": 50000}


@pytest.fixture
def clock(monkeypatch):
    """[seconds]: a clock that stands still until it is told to move."""
    now = [1000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


# -------------------------------------------------------------------------------------------- rows
def printed(capsys, row):
    """The headings, and this row below them."""
    with Log() as shown:
        shown.head()
        shown.row(row)
    return capsys.readouterr().out.splitlines()


def test_every_heading_stands_above_its_column_and_a_row_fits_a_terminal_of_80(capsys):
    head, row = printed(capsys, WIDE)
    assert len(head) == len(row) <= 80


def test_a_row_by_hand(capsys):
    found = [" ".join(line.split()) for line in printed(capsys, WIDE)]
    numbers = "curriculum 12/45 33 -1.235 98.77 12.35 ± 1.50 -3.250 0.125 50000 1234.6"
    assert found == [HEADINGS, numbers]


@pytest.mark.parametrize(("name", "left"), [("R", "0.125"), ("A", "-3.250")])
def test_what_a_stage_does_not_have_is_left_empty(capsys, name, left):
    row = printed(capsys, WIDE | {name: None})[1]
    assert row.split()[-3:] == [left, "50000", "1234.6"]


# ---------------------------------------------------------------------------------------- progress
def test_the_bar_begins_where_the_epoch_was_left():
    with Log() as shown:
        shown.epoch("pretrain", 2, 7, 100, 40)
        assert shown.progress.tasks[0].completed == 40


def test_a_line_of_progress_comes_every_30_seconds_the_first_after_30(clock, capsys):
    with Log() as shown:
        shown.epoch("pretrain", 0, 7, 1000, 0)
        for count in (29, 1, 29, 31):  # lines after 30, and after 61 seconds
            clock[0] += count
            shown.step()
    assert re.findall(r"step (\d+)/1000", capsys.readouterr().out) == ["2", "4"]


def test_other_processes_print_nothing(capsys, clock):
    with Log(quiet=True) as shown:
        shown.epoch("pretrain", 0, 7, 100, 0)
        clock[0] += 40
        shown.step()
        shown.row(WIDE)
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
