"""python check.py N checks task N in this folder, offline. Each law is a test in tests/.

Exit code 0: every law that is shown holds. 1: one is broken, or something is not allowed. 3: the
task is not begun. 2: anything else. The laws run in a process of their own with limits.
"""

import ast
import builtins
import contextlib
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path

import cut
import screen

HERE = Path(__file__).parent
SECONDS = 20  # of computing that the laws of a task may take
builtins.NEEDS = set()  # numbers of the tasks whose functions were called, if these note it


class Reporter:
    """A plugin of pytest: keeps the laws that are asked for and notes how each fared, by name."""

    def __init__(self, wanted):
        self.wanted = set(wanted)
        self.results = {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [i for i in items if {i.nodeid, i.nodeid.split("::")[0]} & self.wanted]

    def pytest_runtest_logstart(self):
        builtins.NEEDS.clear()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            result = {"outcome": report.outcome, "text": str(report.longrepr)[-6000:]}
            self.results[report.nodeid] = result | {"needs": sorted(builtins.NEEDS)}


def child(folder, wanted, options, connection):
    """Runs laws, or all of a file, with pytest in a folder, within limits where there are any."""
    if os.name == "posix":
        import resource

        for what, most in (("CPU", SECONDS), ("DATA", 6 * 2**30), ("FSIZE", 2**26)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, most))
    os.chdir(folder)
    sys.path[:0] = [folder, f"{folder}/tests"]
    sys.dont_write_bytecode = True
    import pytest

    raises, reporter = pytest.raises, Reporter(wanted)
    pytest.raises = lambda *kinds, match=None, **more: raises(*kinds, **more)  # any words will do
    files = sorted({law.split("::")[0] for law in wanted})
    options = ["-p", "no:terminal", "-p", "no:cacheprovider", f"--rootdir={folder}", *options]
    pytest.main([*options, *files], plugins=[reporter])
    connection.send_bytes(json.dumps(reporter.results).encode())
    os._exit(0)


def run_laws(folder, wanted, options=("--hypothesis-profile=quick",)):
    """Runs laws, "<file>::<test>", or all of a "<file>", in a process of its own.

    Returns {law: {"outcome", "text", "needs"}}; and why none of them counts, or "".
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    # On Linux the processes come from a server that has imported torch.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    context.set_forkserver_preload(["torch", "torchvision", "pytest", "hypothesis.extra"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(str(folder), list(wanted), options, theirs))
    process.start()
    theirs.close()
    results, problem = {}, f"ended early: a crash, or an endless loop (over {SECONDS} s)"
    with contextlib.suppress(EOFError, OSError):
        if ours.poll(4 * SECONDS):  # the limit bounds its computing; this, its waiting
            results, problem = json.loads(ours.recv_bytes()), ""
    process.kill()
    process.join()
    missing = {"outcome": "not reached", "text": ""}
    return {law: missing for law in wanted if "::" in law} | results, problem


def sentence(law):
    """A law's name as a sentence, with its case behind it."""
    name, _, case = law.split("::")[-1].partition("[")
    return name.removeprefix("test_").replace("_", " ") + (f"  [{case}" if case else "")


def hint(task, law):
    """What to look at when a law breaks: the first entry whose word is in its name."""
    return next(text for word, text in task["look"].items() if word in law)


def open_functions(task, folder):
    """The names of a task's functions that are still holes."""
    hole = ast.unparse(cut.parse(task["hole"]))
    sources = {file: (Path(folder) / file).read_text() for file in task["functions"]}
    names = [(file, name) for file, names in task["functions"].items() for name in names]
    return [name for file, name in names if hole in cut.body(sources[file], name)]


def complaints(task, folder):
    """What is not allowed in a task's functions: a list of lines."""
    said = []
    for file, names in task["functions"].items():
        tree = cut.parse((Path(folder) / file).read_text())
        lines = [line for name in names for line in screen.complaints(cut.find(tree, name))]
        said += [f"not allowed: {file}, {line}" for line in lines]
    return said


def changes(around):
    """What was changed here outside the bodies that are asked for: a list of lines."""
    said = []
    for file, (names, fingerprint) in around.items():
        source = (HERE / file).read_text()
        cut.parse(source, file)  # a syntax error is told with the file's name
        if cut.rest(source, names) != fingerprint:
            said.append(f"{file}: only bodies count; take back what you changed outside of them")
    return said


def report(task, law, result):
    """Prints a law that does not hold: it is broken, or waits for a function that is open."""
    waits = re.search(r"NotImplementedError: (task \d+)", result["text"])
    if waits:
        print(f"   . {sentence(law)}\n       waits for {waits[1]}")
        return
    print(f"   x {sentence(law)}\n       look at: {hint(task, law)}\n       {law.split('::')[0]}")
    where = re.findall(r"^((?:blockdrop_min|answers)\S+:\d+): ", result["text"], re.MULTILINE)
    errors = re.findall(r"^E +(.*\S)", result["text"], re.MULTILINE)[:8]
    for line in (*where[-1:], *(errors or [result["outcome"]])):
        print(f"         {line[:110]}")


def main(arguments):
    table = json.loads((HERE / "tasks.json").read_text())
    tasks = {str(task["number"]): task for task in table["tasks"]}
    if len(arguments) != 1 or arguments[0] not in tasks:
        raise ValueError(f"give the number of one task: {', '.join(tasks)}")
    task = tasks[arguments[0]]
    print(f"{task['number']}. {task['title']}")
    left = open_functions(task, HERE)
    if left:
        print("   not written yet:", ", ".join(left))
    if left and len(left) == sum(map(len, task["functions"].values())):
        return 3
    refused = complaints(task, HERE) + changes(table["around"])
    if refused:
        print(*(f"   ! {line}" for line in refused), sep="\n")
        return 1
    results, problem = run_laws(HERE, task["laws"])
    broken = [law for law in results if results[law]["outcome"] != "passed"]
    shown = {law.split("[")[0]: law for law in reversed(broken) if not problem}
    for law in reversed(shown.values()):  # one case of each
        report(task, law, results[law])
    print(f"   {len(results) - len(broken)} of {len(results)} laws hold   {problem}")
    if task["unseen"]:
        print(f"   graded, too, but not shown: {'; '.join(map(sentence, task['unseen'][:2]))}; ...")
    return int(bool(broken or problem))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, SyntaxError, MemoryError, RecursionError) as problem:
        print(f"check.py: {problem}", file=sys.stderr)
        sys.exit(2)
