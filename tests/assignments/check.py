"""python check.py N checks task N in this folder; python check.py lists all tasks. Nothing leaves this machine.

Exit code 0: every law that is shown holds. 1: one is broken. 3: the task is not begun. 2: anything
else. Each law is a test in tests/, run in a process of its own with a time limit.
"""

import ast
import json
import multiprocessing
import multiprocessing.forkserver
import os
import re
import secrets
import signal
import sys
import time
from pathlib import Path

from cut import defines, find, helpers_of, is_open

HERE = Path(__file__).parent
HOLE = re.compile(r"NotImplementedError: task (\d+)")


class Reporter:
    """A plugin of pytest: keeps the laws asked for, and reports each by name to the parent."""

    def __init__(self, laws, send):
        self.laws = set(laws)
        self.send = send

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.laws]

    def pytest_runtest_logstart(self, nodeid):
        self.send(law=nodeid, outcome="not finished", text="")

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.send(law=report.nodeid, outcome=report.outcome, text=str(report.longrepr)[-6000:])


def child(folder, laws, options, connection, nonce):
    """Runs laws with pytest in a folder, with limits. Reports through the connection, as JSON: it is not trusted."""

    def send(**message):
        connection.send_bytes(json.dumps({**message, "nonce": nonce}).encode())

    limit(options["seconds"])
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(folder), str(Path(folder) / "tests")]
    sys.dont_write_bytecode = True
    import hypothesis
    import pytest

    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "laws",
        max_examples=options["examples"],
        derandomize=options["seed"] is None,
        phases=phases,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    raises = pytest.raises
    # The kind of an error counts, not its words.
    pytest.raises = lambda *kinds, match=None, **more: raises(*kinds, **more)
    files = sorted({str(Path(folder) / law.split("::")[0]) for law in laws})
    arguments = ["-q", "-p", "no:cacheprovider", "--tb=short", "--hypothesis-profile=laws"]
    if options["seed"] is not None:
        arguments.append(f"--hypothesis-seed={options['seed']}")
    pytest.main([*arguments, f"--rootdir={folder}", *files], plugins=[Reporter(laws, send)])
    unharmed = canaries(raises)
    outcome = "done" if unharmed else "torch or pytest is not what it was"
    send(law="", outcome=outcome, text=f"{time.process_time():.1f}")
    os._exit(0)


def limit(seconds):
    """Bounds what this process may use, where the system can; nothing that it prints is kept."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    if os.name == "posix":
        import resource

        os.setsid()
        for what, most in (("CPU", seconds), ("DATA", 6 * 2**30), ("FSIZE", 2**26), ("CORE", 0)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, most))


def canaries(raises):
    """Whether torch and pytest still tell right from wrong."""
    import torch

    zero, one = torch.zeros(1), torch.ones(1)
    alike = torch.equal(zero, one) or torch.allclose(zero, one) or bool((zero == one).all())
    with raises(AssertionError):
        torch.testing.assert_close(zero, one)
    return not alike and torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def prepare():
    """Where processes come from: on Linux a server that has imported torch already, and begins to now."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "pytest", "hypothesis.extra"])
    multiprocessing.forkserver.ensure_running()
    return context


def run_laws(folder, laws, examples=4, seed=None, seconds=30):
    """Runs laws in a process of its own.

    Returns {law: (outcome, text)}, where a law that was not reported by name is "not reached"; and
    the problem that ended the process early, or "".
    """
    context = prepare()
    options, nonce = {"examples": examples, "seed": seed, "seconds": seconds}, secrets.token_hex()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(str(folder), laws, options, theirs, nonce))
    process.start()
    theirs.close()
    results, last, ended = dict.fromkeys(laws, ("not reached", "")), "", ""
    deadline = time.monotonic() + 4 * seconds  # `limit` bounds its computing; this, its waiting
    try:
        while not ended and ours.poll(max(0, deadline - time.monotonic())):
            message = json.loads(ours.recv_bytes(2**20))
            if message.pop("nonce", None) != nonce:
                continue
            last = message["law"]
            if not last:
                ended = message["outcome"]
            elif results.get(last, ("failed",))[0] in ("not reached", "not finished"):
                results[last] = (message["outcome"], message["text"])
    except (EOFError, OSError, ValueError):
        pass
    end(process)
    if ended == "done":
        return results, ""
    where = f" in the law: {sentence(last)}" if last else ""
    return (
        results,
        ended or f"the process ended before it was done, or computed for over {seconds} s{where}",
    )


def end(process):
    """Ends a child and all that it started."""
    if os.name == "posix" and process.pid:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    process.kill()
    process.join()


def sentence(law):
    """A law's name as a sentence, with its case behind it."""
    name, _, case = law.split("::")[-1].partition("[")
    return name.removeprefix("test_").replace("_", " ") + (f"  [{case}" if case else "")


def hint(task, law):
    """The line `look at` of the first word that fits a law's name, or ""."""
    return next((text for word, text in task["look"].items() if word in law), "")


def example(text):
    """What failed, out of pytest's report: the lines of the assertion and of Hypothesis's example."""
    lines = [line[1:].strip() for line in text.splitlines() if line[:2] == "E "]
    return [line for line in lines if line and "You can reproduce" not in line][:8]


def sources(folder, functions):
    """File -> source, of all files in which functions stand; ValueError for one that is no Python."""
    found = {}
    for file in {function.split("::")[0] for function in functions}:
        try:
            found[file] = (Path(folder) / file).read_text()
            ast.parse(found[file])
        except (OSError, SyntaxError, ValueError) as problem:
            raise ValueError(f"{file} cannot be read: {problem}") from None
    return found


def screened(task, tasks, found):
    """What the screen says about a task's functions and their helpers: a list of "file, line n: ..."."""
    import screen  # and with it torch, which a task that is not begun need not wait for

    said = []
    for file in sorted({function.split("::")[0] for function in task["functions"]}):
        tree = ast.parse(found[file])
        later = {f for t in tasks if t["number"] > task["number"] for f in t["functions"]}
        known = set().union(set(), *map(defines, tree.body))
        known -= {f.split("::")[1] for f in later if f.split("::")[0] == file}
        mine = [f.split("::")[1] for f in task["functions"] if f.split("::")[0] == file]
        functions = [find(tree, name) for name in mine]
        functions += [helper for helper in helpers_of(tree, ast.Module([], []))]
        for function in filter(None, functions):
            said += [f"{file}, {line}" for line in screen.complaints(function, known)]
    return said


def report(task, results):
    """Prints the laws that broke, or wait for an earlier task. Returns how many broke."""
    broken = 0
    for law in task["laws"]:
        outcome, text = results[law]
        if outcome == "passed":
            continue
        missing = HOLE.search(text)
        needs = [n for n in task["needs"][law] if n != task["number"] and waits(n, task, results)]
        if missing and int(missing[1]) != task["number"]:
            needs = [int(missing[1])]
        if needs:
            print(f"   . {sentence(law)}\n       waits for task {min(needs)}")
            continue
        broken += 1
        print(
            f"   x {sentence(law)}\n       look at: {hint(task, law) or 'the law itself'}", end=""
        )
        print(f"      ({law.split('::')[0]})")
        for line in example(text) or [outcome]:
            print(f"       {line}")
    return broken


def waits(number, task, results):
    """Whether an earlier task does not hold its essential laws, as far as they were run."""
    return any(results[law][0] != "passed" for law in task["earlier"].get(str(number), []))


def check(task, tasks):
    """Checks one task of this folder. Returns the exit code."""
    start = time.monotonic()
    found = sources(HERE, task["functions"])
    split = [function.split("::") for function in task["functions"]]
    begun = [name for file, name in split if not is_open(found[file], name)]
    print(f"{task['number']}. {task['title']}")
    if not begun:
        print("   not begun: " + ", ".join(task["functions"]))
        return 3
    prepare()
    complaints = screened(task, tasks, found)
    for line in complaints:
        print(f"   ! {line}")
    if complaints:
        return 1
    laws = [*task["laws"], *(law for laws in task["earlier"].values() for law in laws)]
    results, problem = run_laws(HERE, list(dict.fromkeys(laws)))
    broken = report(task, results)
    held = sum(results[law][0] == "passed" for law in task["laws"])
    print(f"   {held} of {len(task['laws'])} laws hold     {time.monotonic() - start:.1f} s")
    if task["unseen"]:
        print(f"   {len(task['unseen'])} more are graded whose code is not here, among them:")
        print(f"       {sentence(task['unseen'][0])}")
    if problem:
        print(f"   ! {problem}")
    return int(bool(broken or problem or held < len(task["laws"])))


def main(arguments):
    tasks = json.loads((HERE / "tasks.json").read_text())
    if not arguments:
        found = sources(HERE, [function for task in tasks for function in task["functions"]])
        for task in tasks:
            split = [function.split("::") for function in task["functions"]]
            left = sum(is_open(found[file], name) for file, name in split)
            state = "begun or done" if left < len(split) else "not begun"
            print(f"{task['number']:>2}. {task['title']:40} {task['points']:>3} points   {state}")
        return 0
    numbers = {str(task["number"]): task for task in tasks}
    if len(arguments) > 1 or arguments[0] not in numbers:
        raise ValueError(f"{' '.join(arguments)} is not a task; write one of {', '.join(numbers)}")
    return check(numbers[arguments[0]], tasks)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as problem:
        print(f"check.py: {problem}", file=sys.stderr)
        sys.exit(2)
