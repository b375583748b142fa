"""What the programs share: parsing, streams that fail, names that lie, faults in one line."""

import io
import os
from pathlib import Path

import pytest
import torch

from blockdrop_min.lab.program import (
    Output,
    Parser,
    complain,
    console,
    guarded,
    out_of_memory,
    shown,
)


def parser():
    parser = Parser(prog="some.py", description="What costs 50 €.")
    parser.add_argument("--json")
    parser.add_argument("--images", nargs="+")
    return parser


def full():
    """A stream onto a full disk."""
    return open("/dev/full", "w")


# ----------------------------------------------------------------------------------------- parsing
@pytest.mark.parametrize("arguments", [["--nosuch"], ["--json"], ["--json=--"], ["--images=--"]])
def test_a_bad_argument_is_one_line_that_names_it_and_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("some.py: ") and arguments[0] in error and error.count("\n") == 1


@pytest.mark.parametrize("value", ["--x", "-", "a=--", "./--"])
def test_a_value_after_an_equals_sign_is_taken_as_it_is(value):
    assert parser().parse_args([f"--json={value}"]).json == value


def test_arguments_come_from_the_command_line_if_none_are_given(monkeypatch):
    monkeypatch.setattr("sys.argv", ["some.py", "--json=x"])
    assert parser().parse_args().json == "x"


def test_help_survives_an_encoding_that_lacks_its_letters(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding="ascii"))
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["--help"])
    assert stopped.value.code == 0 and b"What costs 50 ?" in content.getvalue()


# ----------------------------------------------------------------------------------------- streams
def test_what_cannot_be_encoded_is_replaced_and_the_rest_delivered_at_once():
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="ascii")
    Output(stream).write("1 ± 2")
    assert content.getvalue() == b"1 ? 2"


@pytest.mark.parametrize("kind", ["full", "pipe"])
def test_a_stream_that_fails_is_written_to_no_more(kind):
    stream = full()
    if kind == "pipe":
        read_end, write_end = os.pipe()
        os.close(read_end)
        stream = open(write_end, "w")  # noqa: SIM115
    output = Output(stream)
    for _ in range(3):
        output.write("lost\n")
    stream.close()  # as Python does at its end: an error there would change the exit code


@pytest.mark.parametrize("stream", [None, full])
def test_closed_or_full_streams_end_nothing(monkeypatch, stream):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", stream and stream())
    console().print("lost")
    complain("some.py", "lost")


@pytest.mark.parametrize("text", ["[red]x[/red]", "a[/y]", ":smile:", "1 ± 2"])
def test_what_is_printed_comes_out_as_it_is_on_a_stream_without_a_file_too(monkeypatch, text):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    console().print(text)
    assert stream.getvalue() == f"{text}\n"


# -------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("café 日本", "café 日本"),
        ("a\nb\r\x1b[31mc\0", r"a\nb\r\x1b[31mc\x00"),
        ("\u202eevil\udcff", r"\u202eevil\udcff"),
        (Path("runs/a\tb"), r"runs/a\tb"),
        (3, "3"),
        (True, "True"),
        (None, "None"),
        (0.5, "0.5"),
        (10**5000, "int"),
        ({"a": [1]}, "dict"),
        (torch.zeros(10**6), "Tensor"),
        ("x" * 81, "x" * 77 + "..."),
        ("x" * 80, "x" * 80),
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_and_values_by_hand(value, text):
    assert shown(value) == text


def test_a_problem_is_one_line_whatever_it_says(capsys):
    complain("some.py", ValueError("no\nsome.py: \x1b[2Jall is well " + "x" * 10**6))
    error = capsys.readouterr().err
    assert error.startswith(r"some.py: no some.py: \x1b[2Jall is well xxx")
    assert error.count("\n") == 1 and len(error) < 1100


# -------------------------------------------------------------------------------------------- ends
def raising(problem):
    def main():
        raise problem

    return main


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_of_a_program_is_its_mains(code):
    assert guarded("some.py", lambda: code) == code


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (ValueError("depth is 3"), 2, "depth is 3"),
        (FloatingPointError("the loss is not finite"), 2, "not finite"),
        (OSError(28, "No space left on device", "runs/x"), 2, "runs/x"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 2, "memory"),
    ],
)
def test_a_fault_that_a_user_can_mend_is_one_line_and_an_exit_code(capsys, problem, code, words):
    assert guarded("some.py", raising(problem)) == code
    error = capsys.readouterr().err
    assert error.startswith("some.py: ") and words in error and error.count("\n") == 1


@pytest.mark.parametrize("problem", [RuntimeError("shapes differ"), TypeError("x"), SystemExit(3)])
def test_other_faults_pass(problem):
    with pytest.raises(type(problem)):
        guarded("some.py", raising(problem))


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError("Unable to allocate 8 GiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=["NumPy", "GPU", "driver", "oneDNN", "CPU"],
)
def test_memory_that_does_not_suffice_gets_one_line_of_advice(problem):
    assert "--finetune-batch" in out_of_memory(problem) and "\n" not in out_of_memory(problem)


def test_the_message_of_torchs_own_allocator_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize("problem", [RuntimeError("shapes differ"), ValueError("no")])
def test_other_errors_are_not_taken_for_those_of_memory(problem):
    assert out_of_memory(problem) is None
