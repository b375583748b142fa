"""python check.py N checks task N in this folder, offline. Each law is a test in tests/.

Exit code 0: every law that is shown holds. 1: one is broken. 3: the task is not begun. 2: anything
else. The laws run in a process of their own with a time limit.
"""

import builtins
import contextlib
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

import cut

HERE = Path(__file__).parent
SECONDS = 20  # of computing that the laws of a task may take


class Reporter:
    """A plugin of pytest: keeps the laws that are asked for and reports each by name."""

    def __init__(self, wanted, send):
        self.wanted = set(wanted)
        self.send = send

    def pytest_collection_modifyitems(self, items):
        items[:] = [i for i in items if {i.nodeid, i.nodeid.split("::")[0]} & self.wanted]

    def pytest_runtest_logstart(self, nodeid):
        builtins.NEEDS.clear()
        self.send(law=nodeid, outcome="not finished")

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            needs, text = sorted(builtins.NEEDS), str(report.longrepr)[-6000:]
            self.send(law=report.nodeid, outcome=report.outcome, text=text, needs=needs)


def child(folder, wanted, profile, connection, nonce):
    """Runs laws, or all of a file, with pytest in a folder. Its JSON is not trusted."""

    def send(**message):
        connection.send_bytes(json.dumps({"text": "", **message, "nonce": nonce}).encode())

    limit()
    os.chdir(folder)
    sys.path[:0] = [folder, f"{folder}/tests"]
    sys.dont_write_bytecode = True
    import pytest

    builtins.NEEDS = set()  # noted by functions that `cut.instrument` has changed
    raises = pytest.raises  # the kind of an error counts, not its words
    pytest.raises = lambda *kinds, match=None, **more: raises(*kinds, **more)
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", f"--rootdir={folder}", *profile]
    files = sorted({law.split("::")[0] for law in wanted})
    pytest.main([*options, *files], plugins=[Reporter(wanted, send)])
    send(law="", outcome=canary(raises), text=f"{time.process_time():.1f} s")
    os._exit(0)


def limit():
    """Bounds what this process may use, where the system can. What it prints is not kept."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    if os.name == "posix":
        import resource

        os.setsid()
        for what, most in (("CPU", SECONDS), ("DATA", 6 * 2**30), ("FSIZE", 2**26)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, most))


def canary(raises):
    """Whether torch and pytest still tell right from wrong: "done" if so."""
    import torch

    zero, one = torch.zeros(1), torch.ones(1)
    with raises(AssertionError):
        torch.testing.assert_close(zero, one)
    alike = torch.equal(zero, one) or torch.allclose(zero, one) or bool((zero == one).all())
    usual = torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    return "done" if usual and not alike else "torch or pytest is not what it was"


def prepare():
    """Where processes come from: on Linux a server that has imported torch, or begins to now."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "pytest", "hypothesis.extra"])
    multiprocessing.forkserver.ensure_running()
    return context


def run_laws(folder, wanted, profile=("--hypothesis-profile=quick",)):
    """Runs laws, "<file>::<test>", or all of a "<file>", in a process of its own.

    Returns {law: {"outcome", "text", "needs"}}; and why the process ended early, or "".
    """
    nonce = secrets.token_hex()
    ours, theirs = prepare().Pipe(duplex=False)
    arguments = (str(folder), list(wanted), list(profile), theirs, nonce)
    process = prepare().Process(target=child, args=arguments)
    process.start()
    theirs.close()
    results = {law: {"outcome": "not reached", "text": ""} for law in wanted if "::" in law}
    last = {"law": "none"}
    deadline = time.monotonic() + 4 * SECONDS  # `limit` bounds its computing; this, its waiting
    with contextlib.suppress(EOFError, OSError, ValueError):
        while last["law"] and ours.poll(max(0, deadline - time.monotonic())):
            message = json.loads(ours.recv_bytes(2**20))
            if message.pop("nonce", None) == nonce:
                last = message
                if last["law"] and results.get(last["law"], {}).get("outcome") != "failed":
                    results[last["law"]] = message
    with contextlib.suppress(AttributeError, ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # with all that it may have started
    process.kill()
    process.join()
    if not last["law"]:
        return results, "" if last["outcome"] == "done" else last["outcome"]
    return results, f"ended early, or over {SECONDS} s of computing; in: {sentence(last['law'])}"


def sentence(law):
    """A law's name as a sentence, with its case behind it."""
    name, _, case = law.split("::")[-1].partition("[")
    return name.removeprefix("test_").replace("_", " ") + (f"  [{case}" if case else "")


def hint(task, law):
    """What to look at when a law breaks: the first entry whose word is in its name."""
    return next((text for word, text in task["look"].items() if word in law), "")


def by_file(functions):
    """{file: names} of functions that are named "<file>::<name>"."""
    files = {}
    for function in functions:
        file, name = function.split("::")
        files.setdefault(file, []).append(name)
    return files


def screened(task, tasks, folder):
    """What the screen says about a task's functions and their helpers: a list of lines."""
    import screen  # and with it torch, for which a task that is not begun need not wait

    said = []
    later = {f for t in tasks if t["number"] > task["number"] for f in t["functions"]}
    for file, names in by_file(task["functions"]).items():
        source = (Path(folder) / file).read_text()
        known = cut.defined(source) - set(by_file(later).get(file, []))
        functions = [cut.find(cut.parse(source), name) for name in names]
        for function in (*functions, *cut.helpers(source, cut.parse(""))):
            said += [f"{file}, {line}" for line in screen.complaints(function, known)]
    return said


def report(task, results):
    """Prints each law that does not hold: it is broken, or waits for an earlier task."""
    for law in task["laws"]:
        text = results[law]["text"]
        missing = re.search(r"NotImplementedError: task (\d+)", text)
        if results[law]["outcome"] == "passed":
            continue
        if missing and int(missing[1]) != task["number"]:
            print(f"   . {sentence(law)}\n       waits for task {missing[1]}")
            continue
        print(f"   x {sentence(law)}\n       look at: {hint(task, law) or 'the law itself'}")
        print(f"       {law.split('::')[0]}")
        errors = [line[1:].strip() for line in text.splitlines() if line[:2] == "E "]
        for line in [line for line in errors if line][:8] or [results[law]["outcome"]]:
            print(f"         {line}")


def main(arguments):
    start = time.monotonic()
    tasks = json.loads((HERE / "tasks.json").read_text())
    chosen = [task for task in tasks if [str(task["number"])] == arguments]
    if not chosen:
        numbers = ", ".join(str(task["number"]) for task in tasks)
        raise ValueError(f"{' '.join(arguments) or 'nothing'} is no task; give one of {numbers}")
    (task,) = chosen
    print(f"{task['number']}. {task['title']}")
    files = by_file(task["functions"]).items()
    if files and all(
        cut.is_open((HERE / file).read_text(), name) for file, names in files for name in names
    ):
        print("   not begun: " + ", ".join(task["functions"]))
        return 3
    prepare()
    said = screened(task, tasks, HERE)
    if said:
        print(*(f"   ! {line}" for line in said), sep="\n")
        return 1
    results, problem = run_laws(HERE, task["laws"])
    report(task, results)
    held = sum(result["outcome"] == "passed" for result in results.values())
    seconds = f"{time.monotonic() - start:.1f} s"
    print(f"   {held} of {len(task['laws'])} laws hold     {seconds}     {problem}")
    if task["stands on"] and held < len(task["laws"]):
        print(f"   stands on {', '.join(map(str, task['stands on']))}: are these right?")
    if task["unseen"]:
        print(f"   graded, too, but not shown: {'; '.join(map(sentence, task['unseen'][:2]))}; ...")
    return int(held < len(task["laws"]) or bool(problem))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, SyntaxError) as problem:
        print(f"check.py: {problem}", file=sys.stderr)
        sys.exit(2)
