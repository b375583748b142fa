"""What README says of the files is true."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("blockdrop_min/*.py"), ROOT / "train.py", ROOT / "evaluate.py"])
README = (ROOT / "README.md").read_text()


def code_lines(path):
    """Lines that are neither blank nor of a comment nor of a docstring."""
    source, documented = path.read_text(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and line.strip()[0] != "#" and number not in documented for number, line in lines)


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=lambda path: path.name)
def test_the_table_of_files_has_each_with_its_lines(path):
    row = f"| `{path.relative_to(ROOT)}` | {code_lines(path)} |"
    assert row in README


def test_the_table_of_files_adds_up():
    assert f"| in all | {sum(map(code_lines, FILES))} |" in README


def test_every_file_that_the_notes_name_is_there():
    names = re.findall(r"`(?:tests/)?(test_\w+\.py)", (ROOT / "NOTES.md").read_text())
    assert len(names) > 20 and all((ROOT / "tests" / name).exists() for name in names)


def test_every_test_that_the_notes_name_is_there():
    named = re.findall(r"`(test_\w+\.py)?::(test_\w+)(\.{3})?`", (ROOT / "NOTES.md").read_text())
    assert len(named) > 10
    for i, (file, test, cut) in enumerate(named):
        file = file or next(before for before, _, _ in reversed(named[:i]) if before)  # `::test_...`: of the file named last
        assert f"def {test}{'' if cut else '('}" in (ROOT / "tests" / file).read_text()
