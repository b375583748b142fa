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
from functools import partial
from pathlib import Path

import cut
import hypothesis.strategies
import pytest
import screen

HERE = Path(__file__).parent
SECONDS = 30  # of processor time that the laws of a task may take, however long one waits for it
PATIENCE = 1800  # seconds that one waits for them on a busy machine
AGAIN = "not graded, run again"
builtins.NEEDS = set()  # numbers of the tasks whose functions were called, if these note it


class Laws:
    """A plugin of pytest: hands the laws that were collected to `work`, which may run some."""

    def __init__(self, work):
        self.work, self.results, self.found, self.problem = work, {}, None, None

    def pytest_runtestloop(self, session):
        import torch

        self.items = {item.nodeid: item for item in session.items}
        try:
            # Slow the first time, and imports what a closed process could not: before forks.
            hypothesis.given(hypothesis.strategies.none())(lambda _: None)()
            str(torch.ones(1))
            gc.freeze()
            self.found = self.work(self)
        except BaseException as problem:  # pytest would keep it; `collect` raises it again
            self.problem = problem
        return True

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            text, needs = str(report.longrepr)[-6000:], sorted(builtins.NEEDS)
            self.results[report.nodeid] = {"outcome": report.outcome, "text": text, "needs": needs}

    def run(self, wanted):
        """Runs laws in this process: {law: {"outcome", "text", "needs"}}."""
        items = [self.items[law] for law in wanted if law in self.items]
        for item, after in itertools.zip_longest(items, items[1:]):
            builtins.NEEDS.clear()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        missing = {"outcome": "not reached", "text": ""}
        return {law: self.results.get(law, missing) for law in wanted}


def collect(folder, files, work, *options):
    """Collects the laws of files of a folder with pytest, and returns what work(laws) returns."""
    os.chdir(folder)
    sys.path[:0] = [str(folder), f"{folder}/tests"]
    raises, laws = pytest.raises, Laws(work)
    pytest.raises = lambda *kinds, match=None, **more: raises(*kinds, **more)  # any words will do
    quiet = [f"-pno:{name}" for name in ("terminal", "cacheprovider", "faulthandler", "logging")]
    pytest.main([*quiet, "-s", f"--rootdir={folder}", *options, *files], plugins=[laws])
    os.chdir(HERE)
    if laws.problem:
        raise laws.problem
    return laws.found


def child(work, seconds, closed, sending):
    """Does work() within limits, and sends what it returns. If `closed`, it prints nothing."""
    import resource

    for stream in (1, 2) if closed else ():
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    limits = {"DATA": 6 * 2**30, "FSIZE": 2**27, "CORE": 0} | ({"NOFILE": 0} if closed else {})
    for what, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))  # it is told, then killed
    signal.alarm(PATIENCE)
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
    while True:
        for key, *given in itertools.islice(jobs, at_once - len(running)):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(*given, theirs))
            process.start()
            theirs.close()
            running[ours] = key, process
        if not running:
            return
        for ours in multiprocessing.connection.wait(running):
            key, process = running.pop(ours)
            yield key, *ended(process, ours)


def ended(process, connection):
    """What a process that ends has sent, or None; and why it did not, or ""."""
    try:
        return json.loads(connection.recv_bytes()), ""
    except EOFError:
        process.join()
    if process.exitcode in (-signal.SIGALRM, -signal.SIGKILL):  # patience, or memory, is at an end
        return None, f"{AGAIN}: it was ended, or waited too long"
    slow = process.exitcode == -signal.SIGXCPU
    return None, f"ended early: {'an endless loop, or far too slow' if slow else 'a crash'}"


def sentence(law):
    """A law's name as a sentence, with its case behind it."""
    name, _, case = law.split("::")[-1].partition("[")
    return name.removeprefix("test_").replace("_", " ") + (f"  [{case}" if case else "")


def hint(task, law):
    """What to look at when a law breaks: the first entry whose word is in its name."""
    return next(text for word, text in task["look"].items() if word in law)


def functions(task):
    """The functions of a task, (file, name) of each."""
    return [(file, name) for file, names in task["functions"].items() for name in names]


def holes(task, trees):
    """The functions of a task that are open, and those in which the hole's line still stands.

    trees: {file: its syntax tree}.
    """
    hole = ast.unparse(ast.parse(task["hole"]))
    bodies = {name: cut.body(trees[file], name, task["guards"]) for file, name in functions(task)}
    left = [name for name in bodies if bodies[name] == hole]
    return left, [name for name in bodies if hole in bodies[name] and name not in left]


def complaints(task, trees):
    """What is not allowed in a task's functions: a list of lines."""
    found = [
        (f, line) for f, n in functions(task) for line in screen.complaints(cut.find(trees[f], n))
    ]
    return [f"not allowed: {file}, {line}" for file, line in found]


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
    waits = re.findall(r"NotImplementedError: (task \d+)", text)
    where = re.findall(r"^((?:blockdrop_min|answers)\S+:\d+: .*)", text, re.MULTILINE)
    return f"waits for {waits[0]}" if waits else where[-1] if where else law.split("[")[0]


def report(task, laws, text):
    """Prints laws that do not hold for one cause: they are broken, or wait for a function."""
    others, why = len({law.split("[")[0] for law in laws}) - 1, cause(laws[0], text)
    waits = why.startswith("waits")
    print(
        f"   {'.' if waits else 'x'} {sentence(laws[0])}{f' (and {others} more)' if others else ''}"
    )
    print(f"       {why if waits else 'look at: ' + hint(task, laws[0])}")
    errors = re.findall(r"^E +(.*\S)", text, re.MULTILINE)[:8]
    for line in () if waits else dict.fromkeys((laws[0].split("[")[0], why, *errors)):
        print(f"         {line[:110]}")


def main(arguments):
    table = json.loads((HERE / "tasks.json").read_text())
    tasks = {str(task["number"]): task for task in table["tasks"]}
    if len(arguments) != 1 or arguments[0] not in tasks:
        raise ValueError(f"give the number of one task: {', '.join(tasks)}")
    task = tasks[arguments[0]]
    print(f"{task['number']}. {task['title']}")
    trees = {file: ast.parse((HERE / file).read_bytes(), file) for file in task["functions"]}
    left, standing = holes(task, trees)
    if left:
        print("   not written yet:", ", ".join(left))
    if standing:
        print(f"   `{task['hole'].strip()}` still stands in {', '.join(standing)}")
    if left and len(left) == len(functions(task)):
        return 3
    refused = complaints(task, trees) + changes(table["around"])
    if refused:
        print(*(f"   ! {line}" for line in refused), sep="\n")
        return 1

    def work(laws):
        return next(apart([(0, partial(laws.run, task["laws"]), SECONDS, False)]))

    files = dict.fromkeys(law.split("::")[0] for law in task["laws"])
    _, results, problem = collect(HERE, files, work, "--hypothesis-profile=quick")
    broken, causes = [law for law in results or () if results[law]["outcome"] != "passed"], {}
    for law in broken:
        causes.setdefault(cause(law, results[law]["text"]), []).append(law)
    for laws in causes.values():
        report(task, laws, results[laws[0]]["text"])
    count = len(results or ())
    print(f"   {count - len(broken)} of {len(task['laws'])} laws hold   {problem}")
    if task["unseen"]:
        print(f"   graded, too, but not shown: {'; '.join(map(sentence, task['unseen'][:2]))}; ...")
    return 2 if problem.startswith(AGAIN) else int(bool(broken or problem))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, SyntaxError, MemoryError, RecursionError) as problem:
        print(f"check.py: {problem}", file=sys.stderr)
        sys.exit(2)
