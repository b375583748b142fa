"""python check.py N checks task N in this folder, offline. Each law is a test in tests/.

Exit code 0: every law that is shown holds. 1: one is broken, or something is not allowed. 3: the
task is not begun. 2: anything else. The laws run in a process of their own with limits.
"""

import ast
import builtins
import gc
import importlib.util
import itertools
import json
import multiprocessing.connection
import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path

import cut
import hypothesis.strategies
import screen

HERE = Path(__file__).parent
SECONDS = 30  # of processor time that the laws of a task may take, however long one waits for it
PATIENCE = 1800  # seconds that one waits for them on a busy machine
AGAIN = "not graded, run again"
builtins.NEEDS = set()  # numbers of the tasks whose functions were called, if these note it


class Laws:
    """A plugin of pytest: hands the laws that were collected to `work`, which may run some."""

    def __init__(self, work):
        self.work = work
        self.results = {}

    def pytest_runtestloop(self, session):
        self.items = {item.nodeid: item for item in session.items}
        hypothesis.given(hypothesis.strategies.none())(lambda _: None)()  # slow once; before forks
        gc.freeze()
        try:
            self.found, self.problem = self.work(self), None
        except BaseException as problem:  # raised again in `collect`; pytest would keep it
            self.problem = problem
        return True

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            result = {"outcome": report.outcome, "text": str(report.longrepr)[-6000:]}
            self.results[report.nodeid] = result | {"needs": sorted(builtins.NEEDS)}

    def run(self, wanted):
        """Runs laws in this process: {law: {"outcome", "text", "needs"}}."""
        items = [self.items[law] for law in wanted if law in self.items]
        for item, after in itertools.zip_longest(items, items[1:]):
            builtins.NEEDS.clear()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        missing = {"outcome": "not reached", "text": ""}
        return dict.fromkeys(wanted, missing) | self.results


def collect(folder, files, work, *options):
    """Collects the laws of files of a folder with pytest, and returns what work(laws) returns."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(folder)
    sys.path[:0] = [str(folder), f"{folder}/tests"]
    sys.dont_write_bytecode = True
    import pytest

    raises, laws = pytest.raises, Laws(work)
    pytest.raises = lambda *kinds, match=None, **more: raises(*kinds, **more)  # any words will do
    options = ["-p", "no:terminal", "-p", "no:cacheprovider", f"--rootdir={folder}", "-s", *options]
    pytest.main([*options, *files], plugins=[laws])
    os.chdir(HERE)
    if laws.problem:
        raise laws.problem
    return laws.found


def child(work, seconds, closed, sending):
    """Does work() within limits, and sends what it returns."""
    import resource

    limits = {"CPU": seconds, "DATA": 6 * 2**30, "FSIZE": 2**27, "CORE": 0}
    for what, most in (limits | {"NOFILE": 0} if closed else limits).items():
        hard = most + 5 if what == "CPU" else most  # at the first it is told, at the second killed
        resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, hard))
    sending.send_bytes(json.dumps(work()).encode())
    os._exit(0)


def apart(jobs, at_once=1):
    """Does jobs in processes of their own. Yields (key, what it returned or None, problem or "").

    jobs: (key, work, seconds, closed): work() may take so much processor time, and if `closed` it
        can open no file. Where there is no fork, it is done in this process.
    """
    if not hasattr(os, "fork"):
        yield from ((key, work(), "") for key, work, _, _ in jobs)
        return
    context, running, jobs = multiprocessing.get_context("fork"), {}, iter(jobs)
    sys.stdout.flush()
    while True:
        for key, work, seconds, closed in itertools.islice(jobs, at_once - len(running)):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(work, seconds, closed, theirs))
            process.start()
            theirs.close()
            running[ours] = key, process, time.monotonic()
        if not running:
            return
        ready = multiprocessing.connection.wait(running, timeout=5)
        for ours, (key, process, begun) in list(running.items()):
            if ours not in ready and time.monotonic() - begun > PATIENCE:
                process.kill()
            elif ours not in ready:
                continue
            del running[ours]
            yield key, *result(process, ours)


def result(process, connection):
    """What a process that ends has sent, or None; and why it did not, or ""."""
    try:
        return json.loads(connection.recv_bytes()), ""
    except (EOFError, OSError):
        process.join()
    if process.exitcode == -signal.SIGXCPU:
        return None, "ended early: an endless loop, or far too slow"
    if process.exitcode == -signal.SIGKILL:  # by somebody else, or out of patience or memory
        return None, f"{AGAIN}: it was ended, or waited too long"
    return None, f"ended early: a crash (exit code {process.exitcode})"


def sentence(law):
    """A law's name as a sentence, with its case behind it."""
    name, _, case = law.split("::")[-1].partition("[")
    return name.removeprefix("test_").replace("_", " ") + (f"  [{case}" if case else "")


def hint(task, law):
    """What to look at when a law breaks: the first entry whose word is in its name."""
    return next(text for word, text in task["look"].items() if word in law)


def read(task, folder):
    """The syntax trees of the files of a task: {file: tree}."""
    return {file: ast.parse((folder / file).read_bytes(), file) for file in task["functions"]}


def holes(task, trees):
    """The functions of a task that are open, and those in which the hole's line still stands."""
    hole, found = ast.unparse(ast.parse(task["hole"])), ([], [])
    for file, names in task["functions"].items():
        for name in names:
            body = cut.body(trees[file], name, task.get("guards", True))
            if hole in body:
                found[body != hole].append(name)
    return found


def complaints(task, trees):
    """What is not allowed in a task's functions: a list of lines."""
    said = []
    for file, names in task["functions"].items():
        lines = [line for name in names for line in screen.complaints(cut.find(trees[file], name))]
        said += [f"not allowed: {file}, {line}" for line in lines]
    return said


def changes(around):
    """What was changed here outside the bodies that are asked for: a list of lines."""
    said = []
    for file, (names, fingerprint) in around.items():
        data = (HERE / file).read_bytes()
        ast.parse(data, file)  # a syntax error is told with the file's name
        if cut.rest(importlib.util.decode_source(data), names) != fingerprint:
            said.append(f"{file}: only bodies count; take back what you changed outside of them")
    return said


def cause(law, text):
    """Why a law does not hold: what it waits for, or where in the student's code; or its name."""
    waits = re.search(r"NotImplementedError: (task \d+)", text)
    where = re.findall(r"^((?:blockdrop_min|answers)\S+:\d+): ", text, re.MULTILINE)
    errors = re.findall(r"^E +(.*\S)", text, re.MULTILINE)
    name = law.split("[")[0]
    return f"waits for {waits[1]}" if waits else f"{where[-1]}: {errors[:1]}" if where else name


def report(task, laws, results):
    """Prints laws that do not hold for one cause: they are broken, or wait for a function."""
    law, text = laws[0], results[laws[0]]["text"]
    others = len({law.split("[")[0] for law in laws}) - 1
    more = f" (and {others} more)" if others else ""
    why = cause(law, text)
    if why.startswith("waits"):
        print(f"   . {sentence(law)}{more}\n       {why}")
        return
    print(
        f"   x {sentence(law)}{more}\n       look at: {hint(task, law)}\n       {law.split('[')[0]}"
    )
    errors = re.findall(r"^E +(.*\S)", text, re.MULTILINE)[:8] or [results[law]["outcome"]]
    for line in (why.split(": ")[0], *errors) if ": " in why else errors:
        print(f"         {line[:110]}")


def main(arguments):
    table = json.loads((HERE / "tasks.json").read_text())
    tasks = {str(task["number"]): task for task in table["tasks"]}
    if len(arguments) != 1 or arguments[0] not in tasks:
        raise ValueError(f"give the number of one task: {', '.join(tasks)}")
    task = tasks[arguments[0]]
    print(f"{task['number']}. {task['title']}")
    trees = read(task, HERE)
    left, standing = holes(task, trees)
    if left:
        print("   not written yet:", ", ".join(left))
    if standing:
        print(f"   `{task['hole'].strip()}` still stands in {', '.join(standing)}")
    if left and len(left) == sum(map(len, task["functions"].values())):
        return 3
    refused = complaints(task, trees) + changes(table["around"])
    if refused:
        print(*(f"   ! {line}" for line in refused), sep="\n")
        return 1

    def work(laws):
        return next(apart([(0, partial(laws.run, task["laws"]), SECONDS, False)]))

    files = sorted({law.split("::")[0] for law in task["laws"]})
    _, results, problem = collect(HERE, files, work, "--hypothesis-profile=quick")
    broken, causes = [law for law in results or () if results[law]["outcome"] != "passed"], {}
    for law in broken:
        causes.setdefault(cause(law, results[law]["text"]), []).append(law)
    for laws in causes.values():
        report(task, laws, results)
    count = len(task["laws"])
    print(f"   {0 if problem else count - len(broken)} of {count} laws hold   {problem}")
    if task["unseen"]:
        print(f"   graded, too, but not shown: {'; '.join(map(sentence, task['unseen'][:2]))}; ...")
    if problem.startswith(AGAIN):
        return 2
    return int(bool(broken or problem))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, SyntaxError, MemoryError, RecursionError) as problem:
        print(f"check.py: {problem}", file=sys.stderr)
        sys.exit(2)
