"""What the programs share: parsing, streams that fail, names that lie, faults in one line."""

import io
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from blockdrop_min.lab import program
from blockdrop_min.lab.program import complain, console, guarded, out_of_memory, shown


def parser():
    parser = program.Parser(prog="some.py", description="What costs 50 €.")
    parser.add_argument("--json")
    parser.add_argument("--images", nargs="+")
    return parser


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
    program.Output(stream).write("1 ± 2")
    assert content.getvalue() == b"1 ? 2"


def is_null(stream):
    return os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))


def test_a_stream_that_fails_is_written_to_no_more():
    read_end, write_end = os.pipe()
    os.close(read_end)
    stream = open(write_end, "w")  # noqa: SIM115
    output = program.Output(stream)
    for _ in range(3):
        output.write("lost\n")
    assert is_null(stream)
    stream.close()  # as Python does at its end: an error there would change the exit code


@pytest.mark.parametrize("full", [False, True])
def test_closed_or_full_streams_end_nothing(monkeypatch, full):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", open("/dev/full", "w") if full else None)  # noqa: SIM115
    screen = console()
    screen.print("lost")
    assert is_null(screen.file)
    complain("some.py", "lost")


def test_what_is_printed_comes_out_as_it_is_on_a_stream_without_a_file_too(monkeypatch):
    monkeypatch.setattr("sys.stdout", stream := io.StringIO())
    console().print("[red]x[/red] a[/y] :smile: 1 ± 2")
    assert stream.getvalue() == "[red]x[/red] a[/y] :smile: 1 ± 2\n"


# -------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("value", "text"),
    [("café 日本", "café 日本"), ("a\nb\r\x1b[31mc\0", r"a\nb\r\x1b[31mc\x00"),
     ("\u202eevil\udcff", r"\u202eevil\udcff"), (Path("runs/a\tb"), r"runs/a\tb"), (3, "3"),
     (True, "True"), (None, "None"), (0.5, "0.5"), (10**5000, "int"), ({"a": [1]}, "dict"),
     (torch.zeros(10**6), "Tensor"), ("x" * 81, "x" * 77 + "..."), ("x" * 80, "x" * 80)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_names_and_values_by_hand(value, text):
    assert shown(value) == text


def test_a_problem_is_one_line_whatever_it_says(capsys):
    complain("some.py", ValueError("no\nsome.py: \x1b[2Jall is well " + "x" * 10**6))
    error = capsys.readouterr().err
    assert error.startswith(r"some.py: no some.py: \x1b[2Jall is well xxx")
    assert error.count("\n") == 1 and len(error) < 1100


# -------------------------------------------------------------------------------------------- ends
def test_the_exit_code_of_a_program_is_its_mains():
    assert [guarded("some.py", lambda code=code: code) for code in (0, 1, 2)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [(ValueError("depth is 3"), 2, "depth is 3"), (MemoryError(), 2, "memory"),
     (FloatingPointError("the loss is not finite"), 2, "not finite"),
     (OSError(28, "No space left on device", "runs/x"), 2, "runs/x"),
     (RuntimeError("could not create a primitive"), 2, "memory"),
     (KeyboardInterrupt(), 130, "stopped")],
)  # fmt: skip
def test_a_fault_that_a_user_can_mend_is_one_line_and_an_exit_code(capsys, problem, code, words):
    assert guarded("some.py", Mock(side_effect=problem)) == code
    error = capsys.readouterr().err
    assert error.startswith("some.py: ") and words in error and error.count("\n") == 1


@pytest.mark.parametrize("problem", [RuntimeError("shapes differ"), TypeError("x"), SystemExit(3)])
def test_other_faults_pass_and_are_not_taken_for_those_of_memory(problem):
    assert out_of_memory(problem) is None
    with pytest.raises(type(problem)):
        guarded("some.py", Mock(side_effect=problem))


def of_torch():
    """The message of torch's own allocator."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    return str(caught.value)


@pytest.mark.parametrize(
    "problem",
    [MemoryError("Unable to allocate 8 GiB for an array"), RuntimeError(of_torch()),
     torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
     RuntimeError("CUDA error: out of memory"), RuntimeError("could not create a primitive")],
    ids=["NumPy", "CPU", "GPU", "driver", "oneDNN"],
)  # fmt: skip
def test_memory_that_does_not_suffice_gets_one_line_of_advice(problem):
    assert "--finetune-batch" in out_of_memory(problem) and "\n" not in out_of_memory(problem)
