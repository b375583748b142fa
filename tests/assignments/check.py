"""python check.py N checks task N in this folder, offline. Each law is a test in tests/.

Exit code 0: every law that is shown holds. 1: one is broken. 3: the task is not begun. 2: anything
else. The laws run in a process of their own with limits.
"""

import ast
import builtins
import contextlib
import json
import multiprocessing
import os
import re
import sys
import time
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
    results, problem = {}, f"ended early: by a crash, or over {SECONDS} s of computing"
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
    return next((text for word, text in task["look"].items() if word in law), "the law itself")


def refusal(task, folder):
    """Why a task is not tried: "not begun", or lines of what is not allowed in it; "" if it is."""
    found, said = [], []
    for file, names in task["functions"].items():
        tree = cut.parse((Path(folder) / file).read_text())
        for function in (cut.find(tree, name) for name in names):
            found.append(ast.unparse(function))
            said += [f"{file}, {line}" for line in screen.complaints(function)]
    if found and all(ast.unparse(cut.parse(task["hole"])) in body for body in found):
        return "not begun"
    return "\n".join(said)


def report(task, law, result):
    """Prints a law that does not hold: it is broken, or waits for an earlier task."""
    missing = re.search(r"NotImplementedError: task (\d+)", result["text"])
    if missing and int(missing[1]) != task["number"]:
        print(f"   . {sentence(law)}\n       waits for task {missing[1]}")
        return
    print(f"   x {sentence(law)}\n       look at: {hint(task, law)}\n       {law.split('::')[0]}")
    errors = re.findall(r"^E +(.*\S)", result["text"], re.MULTILINE)
    print("\n".join(f"         {line}" for line in errors[:8] or [result["outcome"]]))


def main(arguments):
    start = time.monotonic()
    tasks = {str(task["number"]): task for task in json.loads((HERE / "tasks.json").read_text())}
    if len(arguments) != 1 or arguments[0] not in tasks:
        given = " ".join(arguments) or "nothing"
        raise ValueError(f"{given} is no task; give one of {', '.join(tasks)}")
    task = tasks[arguments[0]]
    print(f"{task['number']}. {task['title']}")
    refused = refusal(task, HERE)
    if refused:
        print(refused)
        return 3 if refused == "not begun" else 1
    for file, size in task["sizes"].items():
        if len(cut.parse((HERE / file).read_text()).body) != size:
            print(f"only the bodies of functions count: take back what you added to {file}")
            return 1
    results, problem = run_laws(HERE, task["laws"])
    broken = {law: result for law, result in results.items() if result["outcome"] != "passed"}
    for law in broken if not problem else ():
        report(task, law, broken[law])
    held = f"{len(results) - len(broken)} of {len(results)} laws hold"
    print(f"   {held}     {time.monotonic() - start:.1f} s     {problem}")
    if task["unseen"]:
        print(f"   graded, too, but not shown: {'; '.join(map(sentence, task['unseen'][:2]))}; ...")
    return int(bool(broken or problem))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, SyntaxError) as problem:
        print(f"check.py: {problem}", file=sys.stderr)
        sys.exit(2)
