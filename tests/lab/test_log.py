"""What a run prints: rows as wide as a terminal, lines of progress, and streams that fail."""

import io
import os
import re
import sys

import pytest

from blockdrop_min.lab import log
from blockdrop_min.lab.log import COLUMNS, Log, Output, safe_console
from blockdrop_min.lab.settings import Stage

STAGE = Stage("pretrain", 7, 64, 0.1)
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
def seconds_left(capsys):
    return [int(found) for found in re.findall(r", (\d+) s left", capsys.readouterr().out)]


def test_the_time_left_is_that_of_the_steps_to_come(clock, capsys):
    with Log() as shown:
        shown.epoch(STAGE, 0, 100, 0)
        clock.now += 40  # ten steps of four seconds
        shown.step(10)
    assert seconds_left(capsys) == [4 * 90]


def test_steps_before_a_run_went_on_are_not_counted_as_fast(clock, capsys):
    with Log() as shown:
        shown.epoch(STAGE, 2, 100, 50)
        clock.now += 40
        shown.step(60)
    assert seconds_left(capsys) == [4 * 40]


def test_the_bar_begins_where_the_epoch_was_left():
    with Log() as shown:
        shown.epoch(STAGE, 2, 100, 40)
        assert shown.progress.tasks[0].completed == 40


def test_each_epoch_has_a_clock_of_its_own(clock, capsys):
    with Log() as shown:
        shown.epoch(STAGE, 0, 100, 0)
        clock.now += 5000
        shown.step(100)
        shown.epoch(STAGE, 1, 100, 0)
        clock.now += 40
        shown.step(10)
    assert seconds_left(capsys) == [0, 4 * 90]


def test_lines_of_progress_are_rare(clock, capsys):
    with Log() as shown:
        shown.epoch(STAGE, 0, 1000, 0)
        for step in range(1, 101):
            clock.now += 1
            shown.step(step)
    assert len(seconds_left(capsys)) == 100 // log.PLAIN_EVERY


def test_the_first_line_waits_too(clock, capsys):
    with Log() as shown:
        shown.epoch(STAGE, 0, 1000, 0)
        clock.now += log.PLAIN_EVERY - 1
        shown.step(1)
    assert seconds_left(capsys) == []


def test_other_processes_print_nothing(capsys, clock):
    with Log(quiet=True) as shown:
        shown.epoch(STAGE, 0, 10, 0)
        clock.now += 100
        shown.step(1)
        shown.row(ROW)
        shown.say("said")
    assert capsys.readouterr() == ("", "")


def test_the_bar_leaves_streams_as_they_are():
    # Redirected ones, and their lock, would be inherited by the processes that read images.
    before = (sys.stdout, sys.stderr)
    with Log():
        assert (sys.stdout, sys.stderr) == before


# ----------------------------------------------------------------------------------------- streams
@pytest.mark.parametrize("text", ["[red]x[/red]", "a[/y]", "exp[lr=0.1]", ":smile:", "x " * 99])
def test_what_is_said_comes_out_as_it_is(capsys, text):
    with Log() as shown:
        shown.say(text)
    assert capsys.readouterr().out.rstrip("\n") == text


def test_what_cannot_be_encoded_is_replaced():
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="ascii")
    Output(stream).write("1 ± 2")
    assert content.getvalue() == b"1 ? 2"


def test_text_is_delivered_at_once():
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="utf-8")
    Output(stream).write("now")
    assert content.getvalue() == b"now"


@pytest.mark.parametrize("device", ["/dev/full", "pipe"])
def test_a_stream_that_fails_is_written_to_no_more(device):
    if device == "pipe":
        read_end, write_end = os.pipe()
        os.close(read_end)
        stream = open(write_end, "w")  # noqa: SIM115
    else:
        stream = open(device, "w")  # noqa: SIM115
    output = Output(stream)
    for _ in range(3):
        output.write("lost\n")
    stream.close()  # as Python does at its end: an error there would change the exit code


def test_a_stream_that_was_closed_before_is_no_error(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    safe_console().print("lost")


def test_a_stream_without_a_file_is_written_to(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    safe_console().print("a notebook's")
    assert stream.getvalue() == "a notebook's\n"
