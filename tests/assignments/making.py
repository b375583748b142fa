"""`make`: the student's folder, the instructor's folder, and the proof that both are right."""

import builtins
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cut
import pytest
from check import end, prepare

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KNOWN = HERE / ".laws.json"  # which tasks each law needs, as long as no file changes
CONFIG = '[tool.pytest.ini_options]\ntestpaths = ["tests"]\npythonpath = [".", "tests"]\naddopts = "-q"\n'
OWN = ("answers.py", "test_answers.py", "test_measured.py")
AUTOGRADER = """#!/bin/sh
cd /autograder/source && python tests/assignments grade /autograder/submission --tasks {tasks} \\
    --json /autograder/results/results.json
"""
SETUP = "#!/bin/sh\npip install -r /autograder/source/requirements.txt pytest hypothesis\n"


def read_table():
    """tasks.toml: the tasks as dicts, numbered from 1; the files of laws; the names that leak, and laws that are spared."""
    table = tomllib.loads((HERE / "tasks.toml").read_text())
    for number, task in enumerate(table["task"], 1):
        task.update(number=number, guards=task.get("guards", True), runs=task.get("runs", []))
    return table["task"], table["laws"], set(table["leaks"]), set(table["spared"])


def by_file(functions):
    """{file: names} of functions that are named "<file>::<name>"."""
    files = {}
    for function in functions:
        file, name = function.split("::")
        files.setdefault(file, []).append(name)
    return files


def lay_out(folder, files):
    """A student's folder in which everything is solved and nothing trimmed: the project, but for what is about it."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "blockdrop_min", folder / "blockdrop_min", ignore=ignore)
    for name in ("train.py", "evaluate.py", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "pyproject.toml").write_text(CONFIG)
    for name in ("conftest.py", "helpers.py", "runs.py", *files):
        source = HERE / name if name in OWN else ROOT / "tests" / name
        (folder / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / "tests" / name)
    shutil.copy(HERE / "answers.py", folder)
    return folder


# Which tasks each law needs


class Noting:
    """A plugin of pytest: notes the tasks whose functions each law, and each of its fixtures, calls."""

    def __init__(self):
        self.needs, self.failed, self.fixtures = {}, [], {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before = set(builtins.NEEDS)
        builtins.NEEDS.clear()
        yield
        self.fixtures[fixturedef.argname] = set(builtins.NEEDS)
        builtins.NEEDS.update(before)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        builtins.NEEDS.clear()
        yield
        known = (self.fixtures.get(name, set()) for name in item.fixturenames)
        self.needs[item.nodeid] = sorted(builtins.NEEDS.union(*known))

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)


def note(folder, file, connection):
    """Runs the laws of one file in an instrumented folder; sends what they need, and which fail."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    builtins.NEEDS, plugin = set(), Noting()
    options = ["-p", "no:cacheprovider", "--hypothesis-profile=quick", f"--rootdir={folder}"]
    code = pytest.main([*options, str(folder / "tests" / file)], plugins=[plugin])
    broken = plugin.failed or ([file] if code not in (0, 1) else [])
    connection.send((plugin.needs, broken))


def needs_of_laws(tasks, files):
    """{law: numbers of the tasks that it needs}, found by running the laws once on the reference.

    Raises ValueError if a law does not hold there.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = lay_out(Path(temporary), files)
        digest = hashlib.sha256((HERE / "tasks.toml").read_bytes())
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
        known = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
        if known.get("digest") == digest.hexdigest():
            return known["needs"]
        for task in tasks:
            for file, names in by_file(task["functions"]).items():
                source = (folder / file).read_text()
                (folder / file).write_text(cut.instrument(source, names, task["number"]))
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda file: run_note(folder, file), files))
    broken = [law for _, laws in found for law in laws]
    if broken:
        raise ValueError(f"these laws do not hold for the reference: {', '.join(broken[:9])}")
    needs = {law: n for part, _ in found for law, n in part.items() if n}
    KNOWN.write_text(json.dumps({"digest": digest.hexdigest(), "needs": needs}))
    return needs


def run_note(folder, file):
    context = prepare()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=note, args=(folder, file, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return {}, [file]
    finally:
        end(process)


def unseen(files, leaks):
    """The laws, "<file>::<test>", whose code reaches a name that shows an answer."""
    found = set()
    for module in ("helpers.py", "runs.py"):
        source = (ROOT / "tests" / module).read_text()
        names = set().union(*map(cut.defines, cut.ast.parse(source).body))
        leaks = leaks | {name for name in names if cut.reach(source, {name}) & leaks}
    for file in files:
        source = ((HERE if file in OWN else ROOT / "tests") / file).read_text()
        for name in set().union(*map(cut.defines, cut.ast.parse(source).body)):
            if name.startswith("test_") and cut.reach(source, {name}) & leaks:
                found.add(f"tests/{file}::{name}")
    return found


def with_laws(chosen=None):
    """The tasks of the table, each with its laws: `laws` are shown, `unseen` are not, `needs` says what each stands on.

    chosen: numbers of tasks; the laws of others are left out. None: all.
    Raises ValueError if a task has no law, or an essential one does not exist.
    """
    tasks, files, leaks, spared = read_table()
    needs, hidden = needs_of_laws(tasks, files), unseen(files, leaks)
    needs = {law: numbers for law, numbers in needs.items() if key(law) not in spared}
    for task in tasks:
        mine = [law for law in needs if max(needs[law]) == task["number"]]
        task["laws"] = [law for law in mine if law.split("[")[0] not in hidden]
        task["unseen"] = [law for law in mine if law.split("[")[0] in hidden]
        task["needs"] = {law: needs[law] for law in mine}
        task["keys"] = {key(law) for law in mine}
        missing = set(task["essential"]) - task["keys"]
        if missing or not task["laws"] or not task["essential"]:
            raise ValueError(f"task {task['number']} lacks laws: {', '.join(missing) or 'all'}")
    for task in tasks:
        shown = (law for earlier in tasks[: task["number"] - 1] for law in earlier["laws"])
        stands_on = set().union(*task["needs"].values()) - {task["number"]}
        essential = {n: tasks[n - 1]["essential"] for n in stands_on}
        laws = [(max(needs[law]), law) for law in shown]
        task["earlier"] = {
            str(n): [law for number, law in laws if number == n and key(law) in essential[n]]
            for n in sorted(stands_on)
        }
    return [task for task in tasks if chosen is None or task["number"] in chosen]


def key(law):
    """A law as the table names it: "<file>::<test>", both without `test_`."""
    file, _, name = law.split("[")[0].partition("::")
    return f"{Path(file).stem.removeprefix('test_')}::{name.removeprefix('test_')}"


# Writing the folders


def solve(folder, tasks, answers):
    """Puts the bodies of tasks' functions in a folder's files, taken from the folder `answers`."""
    for file, names in by_file(f for task in tasks for f in task["functions"]).items():
        source = cut.splice((folder / file).read_text(), (answers / file).read_text(), names)
        (folder / file).write_text(source)


def write_student(folder, tasks, files):
    """The student's folder: holes, the laws that show no answer, the handout. Returns the functions cut."""
    lay_out(folder, files)
    removed = []
    for task in tasks:
        for file, names in by_file(task["functions"]).items():
            source = (folder / file).read_text()
            for name in names:
                function = cut.find(cut.ast.parse(source), name)
                removed.append(cut.ast.unparse(function))
            message = f"task {task['number']}: {task['title']}"
            (folder / file).write_text(cut.hollow(source, names, message, task["guards"]))
    shown = {law.split("[")[0] for task in tasks for law in task["laws"]}
    imported = set()
    for file in files:
        path = folder / "tests" / file
        wanted = {law.split("::")[1] for law in shown if law.startswith(f"tests/{file}::")}
        if not wanted:
            path.unlink()
            continue
        path.write_text(cut.trim(path.read_text(), wanted))
        imported |= imports(path)
    runs = folder / "tests" / "runs.py"
    runs.write_text(cut.trim(runs.read_text(), imported))
    helpers = folder / "tests" / "helpers.py"
    helpers.write_text(cut.trim(helpers.read_text(), imported | imports(runs)))
    for name in ("check.py", "cut.py", "screen.py"):
        shutil.copy(HERE / name, folder)
    shutil.copy(HERE / "handout.md", folder / "README.md")
    public = (
        "number",
        "title",
        "points",
        "functions",
        "laws",
        "unseen",
        "needs",
        "earlier",
        "look",
    )
    listed = [{name: task[name] for name in public} for task in tasks]
    (folder / "tasks.json").write_text(json.dumps(listed, indent=1))
    return removed


def imports(path):
    """The names that a file imports from other modules."""
    statements = cut.ast.parse(path.read_text()).body
    found = [s for s in statements if isinstance(s, cut.ast.ImportFrom)]
    return {alias.name for statement in found for alias in statement.names}


def write_grader(folder, numbers):
    """The instructor's folder: the project as it is, to be zipped for Gradescope."""
    for name in (
        "blockdrop_min",
        "tests",
        "train.py",
        "evaluate.py",
        "requirements.txt",
        "LICENSE",
        "pyproject.toml",
    ):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for path in folder.rglob("__pycache__"):
        shutil.rmtree(path)
    tasks = ",".join(map(str, numbers))
    for name, text in (("run_autograder", AUTOGRADER.format(tasks=tasks)), ("setup.sh", SETUP)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


# The proof


def run_check(folder, number):
    """Runs `python check.py N`. Returns its exit code and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "check.py", str(number)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def prove(student, tasks, removed, say):
    """Shows that the student's folder collects, leaks nothing, is open, and can be solved task by task.

    Raises ValueError on the first thing that is not so.
    """
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=student, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the student's tests are not collected:\n{done.stdout[-2000:]}")
    hits = [hit for hit in cut.leaks(removed, student) if hit not in allowed()]
    if hits:
        raise ValueError("the student's folder shows answers:\n" + "\n".join(hits))
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        answers = Path(temporary) / "answers"
        answers.mkdir()
        lay_out(answers, read_table()[1])

        def one(task):
            folder = Path(temporary) / str(task["number"])
            shutil.copytree(student, folder)
            opened = run_check(folder, task["number"])
            solve(folder, [t for t in tasks if t["number"] <= task["number"]], answers)
            return task, opened, run_check(folder, task["number"])

        for task, opened, solved in pool.map(one, tasks):
            if opened[0] != 3 or solved[0] != 0:
                raise ValueError(f"check.py {task['number']} says: {opened[1]} {solved[1]}")
            say(solved[1].splitlines()[0] + solved[1].splitlines()[1])


def allowed():
    """What the leak scan may find, each with its reason in allowed_leaks.txt."""
    lines = (HERE / "allowed_leaks.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def make(out, chosen=None, say=print):
    """Writes out/student and out/grader, and proves them. Raises ValueError if something is not right."""
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    tasks, files = with_laws(chosen), read_table()[1]
    for name in ("student", "grader"):
        (out / name).mkdir(parents=True)
    removed = write_student(out / "student", tasks, files)
    write_grader(out / "grader", [task["number"] for task in tasks])
    prove(out / "student", tasks, removed, say)
    say(f"done: {out}/student and {out}/grader")
