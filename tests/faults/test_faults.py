"""Plants each fault of faults.txt in a copy of the project: the law that names it must fail.

`python -m pytest tests/faults`, and `-k "greedy drops a tie"` for one of them. JOBS=1 in the
environment leaves a core free.
"""

import io
import multiprocessing
import os
import shutil
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PROCESSES = int(os.environ.get("JOBS", os.cpu_count()))


class Fault(NamedTuple):
    """Text that replaces another in a file of the project, and the test that fails for it."""

    module: str
    before: str
    after: str
    law: str


def read_faults():
    """The faults of faults.txt: {name: Fault}."""
    faults = {}
    _, *blocks = (Path(__file__).parent / "faults.txt").read_text().split("\n\n")
    for block in blocks:
        if block.startswith("=="):
            continue
        name, module, *changed, law = block.splitlines()
        before = "\n".join(line[2:] for line in changed if line.startswith("-"))
        after = "\n".join(line[2:] for line in changed if line.startswith("+"))
        assert name not in faults, f"two faults are called {name!r}"
        faults[name] = Fault(module, before, after, law)
    return faults


def plant(source, fault):
    """The source with the fault in it. Lines behind the first one are indented like the first."""
    lines = fault.before.splitlines()
    indent = next((line for line in source.splitlines() if lines[0] in line), "")
    indent = " " * (len(indent) - len(indent.lstrip()))
    before = textwrap.indent(fault.before, indent).lstrip()
    after = textwrap.indent(fault.after, indent).lstrip()
    count = source.count(before)
    assert count == 1, f"{fault.module} has this {count} times instead of once:\n{fault.before}"
    return source.replace(before, after)


def run_law(name, folder):
    """Plants a fault in a copy of the project and runs its law. Returns (exit code, output)."""
    fault = FAULTS[name]
    copy = Path(folder) / str(list(FAULTS).index(name))
    left_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "data", "faults")
    shutil.copytree(ROOT, copy, ignore=left_out)
    module = copy / "blockdrop_min" / fault.module
    module.write_text(plant(module.read_text(), fault))
    os.chdir(copy)
    os.environ.update(CI="true", OMP_NUM_THREADS="1")
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
    output = io.StringIO()
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", "--hypothesis-profile=faults"]
    with redirect_stdout(output), redirect_stderr(output):
        code = pytest.main([*options, f"tests/{fault.law}"])
    shutil.rmtree(copy)
    return int(code), output.getvalue()


FAULTS = read_faults()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """The runs of all chosen faults: name -> result.

    Each has a process of its own, forked from one that has imported torch.
    """
    folder = tmp_path_factory.mktemp("faults")
    asked = {item.name for item in request.session.items}
    chosen = [name for name in FAULTS if f"test_the_law_catches[{name}]" in asked]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "pytest", "hypothesis", "rich.live"])
    with context.Pool(PROCESSES, maxtasksperchild=1) as pool:
        yield {name: pool.apply_async(run_law, (name, folder)) for name in chosen}


@pytest.mark.parametrize("name", FAULTS)
def test_the_law_catches(name, runs):
    code, output = runs[name].get(timeout=300)
    assert code == 1, f"exit code {code}, not that of a failed test:\n{output[-1500:]}"
