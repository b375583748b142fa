"""`make`: the student's folder, the instructor's folder, and the proof that both are right."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cut
from check import by_file, run_laws

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KNOWN = HERE / ".laws.json"  # what each law needs, as long as no file changes
PROGRAMS = ("train.py", "evaluate.py", "requirements.txt", "LICENSE")
CONFIG = '[tool.pytest.ini_options]\npythonpath = [".", "tests"]\n'
TABLE = tomllib.loads((HERE / "tasks.toml").read_text())
for _number, _task in enumerate(TABLE["task"], 1):
    _task.update(number=_number, guards=_task.get("guards", True))


def key(law):
    """A law as the table names it: "<file>::<test>", both without `test_`."""
    file, _, name = law.split("[")[0].partition("::")
    return f"{Path(file).stem.removeprefix('test_')}::{name.removeprefix('test_')}"


def source_of(name):
    """Where a file of tests stands in the project."""
    own = name in ("test_answers.py", "test_measured.py")
    return HERE / name if own else ROOT / "tests" / name


def lay_out(folder):
    """A student's folder in which everything is solved and nothing trimmed."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "blockdrop_min", folder / "blockdrop_min", ignore=ignore)
    for name in PROGRAMS:
        shutil.copy(ROOT / name, folder)
    (folder / "pyproject.toml").write_text(CONFIG)
    for name in ("conftest.py", "helpers.py", "runs.py", "test_measured.py", *TABLE["laws"]):
        (folder / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source_of(name), folder / "tests" / name)
    shutil.copy(HERE / "answers.py", folder)
    return folder


def needs_of_laws():
    """{law: numbers of the tasks whose functions it calls}: runs all laws once on the reference.

    Raises ValueError if one does not hold there.
    """
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder = lay_out(Path(temporary))
        digest = hashlib.sha256(repr(TABLE).encode())
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
        known = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
        if known.get("digest") == digest.hexdigest():
            return known["needs"]
        for task in TABLE["task"]:
            for file, names in by_file(task["functions"]).items():
                source = (folder / file).read_text()
                (folder / file).write_text(cut.instrument(source, names, task["number"]))
        found = pool.map(lambda name: run_laws(folder, [f"tests/{name}"]), TABLE["laws"])
        needs = {}
        for name, (results, problem) in zip(TABLE["laws"], found, strict=True):
            broken = [law for law in results if results[law]["outcome"] == "failed"]
            if broken or problem or not results:
                raise ValueError(f"{name} does not hold for the reference: {problem} {broken}")
            needs |= {law: result["needs"] for law, result in results.items() if result["needs"]}
    KNOWN.write_text(json.dumps({"digest": digest.hexdigest(), "needs": needs}))
    return needs


def not_shown():
    """The laws, as the table names them, whose code reaches a name that shows an answer."""
    leaks, found = set(TABLE["leaks"]), set()
    for name in ("helpers.py", "runs.py", *TABLE["laws"]):
        source = source_of(name).read_text()
        telling = {n for n in cut.defined(source) if cut.reach(source, {n}) & leaks}
        leaks |= telling if name in ("helpers.py", "runs.py") else set()
        found |= {key(f"{name}::{law}") for law in telling if law.startswith("test_")}
    return found


def with_laws(chosen=None):
    """The tasks of the table with their laws: `laws` are shown, `unseen` are graded only.

    A law belongs to the last task that it needs.

    chosen: numbers of tasks; None: all.
    Raises ValueError if a task has no law, or an essential one is none of its laws.
    """
    needs, hidden = needs_of_laws(), not_shown()
    for task in TABLE["task"]:
        number = task["number"]
        mine = [law for law in needs if max(needs[law]) == number]
        mine = [law for law in mine if key(law) not in TABLE["spared"]]
        mine = [law for law in mine if key(law).startswith(task.get("only", ""))]
        others = {t["only"] for t in TABLE["task"] if "only" in t and t is not task}
        mine = [law for law in mine if key(law).split("::")[0] not in others]
        mine += [f"tests/test_measured.py::{name}" for name in task.get("measured", [])]
        task["laws"] = [law for law in mine if key(law) not in hidden]
        task["unseen"] = [law for law in mine if key(law) in hidden]
        task["stands on"] = sorted({n for law in mine for n in needs.get(law, [])} - {number})
        missing = set(task["essential"]) - set(map(key, mine))
        if missing or not task["essential"]:
            raise ValueError(f"task {number} lacks essential laws: {', '.join(missing) or 'all'}")
    return [task for task in TABLE["task"] if chosen is None or task["number"] in chosen]


def fill(folder, task, bodies):
    """Writes bodies {name: text} into a folder's files, in the places of a task's functions."""
    for file, names in by_file(task["functions"]).items():
        new = {name: bodies[name] for name in names if name in bodies}
        source = cut.replace_bodies((folder / file).read_text(), new, task["guards"])
        (folder / file).write_text(source)


def solve(folder, task, answers):
    """Takes the bodies of a task's functions from another folder."""
    for file, names in by_file(task["functions"]).items():
        source = cut.splice((folder / file).read_text(), (answers / file).read_text(), names)
        (folder / file).write_text(source)


def write_student(folder, tasks):
    """The student's folder: holes, laws that show no answer, the handout. Returns what was cut."""
    lay_out(folder)
    bodies = []
    for task in tasks:
        said = f"task {task['number']}: {task['title']}"
        hole = task.get("hole", f'raise NotImplementedError("{said}")')
        for file, names in by_file(task["functions"]).items():
            source = (folder / file).read_text()
            bodies += [cut.body(source, name) for name in names]
            (folder / file).write_text(cut.hollow(source, names, hole, task["guards"]))
    wanted = by_file(law.split("[")[0] for task in tasks for law in task["laws"])
    imported = set()
    for name in (*TABLE["laws"], "runs.py", "helpers.py"):
        path, laws = folder / "tests" / name, set(wanted.get(f"tests/{name}", []))
        path.write_text(cut.trim(path.read_text(), laws or imported))
        statements = cut.parse(path.read_text()).body
        imported |= {name for s in statements if hasattr(s, "names") for name in cut.defines(s)}
        if name in TABLE["laws"] and not laws:
            path.unlink()
    for name in ("check.py", "cut.py", "screen.py"):
        shutil.copy(HERE / name, folder)
    shutil.copy(HERE / "handout.md", folder / "README.md")
    public = ["number", "title", "points", "functions", "laws", "unseen", "look", "stands on"]
    listed = [{name: task[name] for name in public} for task in tasks]
    (folder / "tasks.json").write_text(json.dumps(listed, indent=1))
    return bodies


def python(folder, *arguments):
    """Runs Python in a folder. Returns its exit code and what it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def prove(student, tasks, bodies, say):
    """Shows that a student's folder collects, leaks nothing, is open, and is solved task by task.

    Raises ValueError on the first thing that is not so.
    """
    code, said = python(student, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider")
    if code:
        raise ValueError(f"the student's laws are not collected:\n{said[-2000:]}")
    shown = [hit for hit in cut.leaks(bodies, student) if hit not in TABLE["allowed"]]
    if shown:
        raise ValueError("the student's folder shows answers:\n" + "\n".join(shown))
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        answers = Path(temporary) / "answers"
        answers.mkdir()
        lay_out(answers)

        def tried(task):
            folder = Path(temporary) / str(task["number"])
            shutil.copytree(student, folder)
            opened = python(folder, "check.py", task["number"])
            for earlier in tasks[: tasks.index(task) + 1]:
                solve(folder, earlier, answers)
            return opened, python(folder, "check.py", task["number"])

        for opened, solved in pool.map(tried, [t for t in tasks if t["functions"]]):
            if opened[0] != 3 or solved[0] != 0:
                raise ValueError(f"check.py says: {opened[1]}\nand when solved: {solved[1]}")
            say(" ".join(solved[1].split("\n")[:2]))


def make(out, chosen=None, say=print):
    """Writes out/student and out/grader. Raises ValueError if something is not right."""
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    tasks = with_laws(chosen)
    (out / "student").mkdir(parents=True)
    prove(out / "student", tasks, write_student(out / "student", tasks), say)
    ignore = shutil.ignore_patterns("__pycache__", ".git", ".hypothesis", "runs", "data")
    shutil.copytree(ROOT, out / "grader", ignore=ignore)
    for name in ("setup.sh", "run_autograder"):
        shutil.copy(HERE / "gradescope" / name, out / "grader")
    say(f"done: {out}/student and {out}/grader")
