"""Makes the students' and the instructor's folders out of the code as it is; grades submissions."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import cut
from check import complaints, hint, open_functions, run_laws, sentence

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KNOWN = HERE / "made.json"  # in an instructor's folder: the tasks, and what `needs_of_laws` found
MADE = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
TABLE = tomllib.loads((HERE / "tasks.toml").read_text())
TASKS = TABLE["task"]
IGNORED = shutil.ignore_patterns("__pycache__", ".*", "runs", "data")


def key(law):
    """A law as the table names it: "<file>::<test>", both without `test_`."""
    file, name = law.split("[")[0].split("::")
    return f"{Path(file).stem.removeprefix('test_')}::{name.removeprefix('test_')}"


# ------------------------------------------------------------------------------ folders and tasks
def lay_out(folder):
    """A student's folder in which everything is solved and nothing hidden."""
    for target, source in TABLE["files"].items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copy if "." in target else partial(shutil.copytree, ignore=IGNORED)
        copy(ROOT / source, folder / target)
    return folder


def edit(folder, task, new, guards=False):
    """Gives each function of a task the body new(file, name); see `cut.replace_bodies`."""
    for file, names in task["functions"].items():
        bodies = {name: new(file, name) for name in names}
        source = cut.replace_bodies((folder / file).read_text(), bodies, guards)
        (folder / file).write_text(source)


def solve(folder, task, answers):
    """Takes the bodies of a task's functions from another folder."""
    edit(folder, task, lambda file, name: cut.body((answers / file).read_text(), name))


@cache
def needs_of_laws():
    """{law: numbers of the tasks whose functions it calls; 0 is for what is hidden}.

    Runs all laws once on the reference. Raises ValueError if one does not hold there.
    """
    if MADE:
        return MADE["needs"]
    needs = {}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder = lay_out(Path(temporary))
        for number, task in enumerate([TABLE["hidden"], *TASKS]):
            note = f'__import__("builtins").NEEDS.add({number})\n'
            edit(folder, task, lambda f, n, note=note: note + cut.body((folder / f).read_text(), n))
        files = dict.fromkeys(file for task in TASKS for file in task["laws"])
        for results, problem in pool.map(lambda file: run_laws(folder, [file]), files):
            broken = [law for law in results if results[law]["outcome"] == "failed"]
            if broken or problem:
                raise ValueError(f"the reference breaks laws: {problem} {broken}")
            needs |= {law: result["needs"] for law, result in results.items() if result["needs"]}
    return needs


def with_laws(chosen=()):
    """The tasks of the table with their laws: `laws` are shown, `unseen` are graded only.

    A law belongs to the last task that it needs.

    chosen: numbers of tasks; none: those that `make` was told, or all.
    Raises ValueError if there is no such task, or if an essential law is not one that is shown.
    """
    needs, tasks = needs_of_laws(), []
    for number, task in enumerate(TASKS, 1):
        mine = [law for law in needs if max(needs[law]) == number]
        mine = [law for law in mine if law.split("::")[0] in task["laws"]]
        mine = [law for law in mine if key(law) not in TABLE["spared"]] + task.get("measured", [])
        said = f'raise NotImplementedError("task {number}: {task["title"]}")'
        given = {
            "number": number,
            "hole": task.get("hole", said),
            "laws": [law for law in mine if 0 not in needs.get(law, [])],
            "unseen": [law for law in mine if 0 in needs.get(law, [])],
        }
        if not task["essential"] or not set(task["essential"]) <= set(map(key, given["laws"])):
            raise ValueError(f"task {number} lacks {task['essential']} in {given['laws']}")
        tasks.append(task | given)
    chosen = chosen or MADE.get("tasks", range(1, len(tasks) + 1))
    if not set(chosen) <= set(range(1, len(tasks) + 1)):
        raise ValueError(f"there are tasks 1 to {len(tasks)}; {list(chosen)} was given")
    return [task for task in tasks if task["number"] in chosen]


# --------------------------------------------------------------------------------------------- make
def write_student(folder, tasks):
    """The student's folder: with holes, and without what is hidden. Returns what was cut."""
    lay_out(folder)
    bodies, opened = [], {}
    for task in tasks:
        for file, names in task["functions"].items():
            bodies += [cut.body((folder / file).read_text(), name) for name in names]
            opened[file] = opened.get(file, []) + names
    for task in [*tasks, TABLE["hidden"]]:
        edit(folder, task, lambda *_, hole=task["hole"]: hole, task.get("guards", True))
    for law in {law.split("[")[0] for law, needs in needs_of_laws().items() if 0 in needs}:
        file, name = law.split("::")
        edit(folder, {"functions": {file: [name]}}, lambda *_: TABLE["hidden"]["hole"])
    around = {f: (names, cut.rest((folder / f).read_text(), names)) for f, names in opened.items()}
    (folder / "tasks.json").write_text(json.dumps({"tasks": tasks, "around": around}, indent=1))
    return bodies


def python(folder, *arguments):
    """Runs Python in a folder. Returns its exit code and what it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def prove(student, tasks, bodies, say):
    """Shows that a student's folder leaks nothing, is open, and is solved task by task.

    Raises ValueError on the first thing that is not so.
    """
    shown = [hit for hit in cut.leaks(bodies, student) if hit not in TABLE["allowed"]]
    if shown:
        raise ValueError("the student's folder shows answers:\n" + "\n".join(shown))
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        answers, work, checks = lay_out(Path(temporary) / "answers"), student, []
        for task in [task for task in tasks if task["functions"]]:
            checks.append((3, pool.submit(python, work, "check.py", task["number"])))
            work = shutil.copytree(work, Path(temporary) / str(task["number"]))
            solve(work, task, answers)
            checks.append((0, pool.submit(python, work, "check.py", task["number"])))
        for expected, check in checks:
            code, said = check.result()
            if code != expected:
                raise ValueError(f"check.py ends with {code} and not with {expected}:\n{said}")
            say(" ".join(said.split("\n")[:2]))


def make(out, tasks=(), say=print):
    """Writes out/student and out/grader. Raises ValueError if something is not right."""
    out = Path(out).resolve()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    tasks = with_laws(tasks)
    prove(out / "student", tasks, write_student(out / "student", tasks), say)

    def ignored(folder, names):
        return IGNORED(folder, names) | ({out.name} if Path(folder) == out.parent else set())

    grader = shutil.copytree(ROOT, out / "grader", ignore=ignored)
    shutil.copytree(HERE / "gradescope", grader, dirs_exist_ok=True)
    made = {"tasks": [task["number"] for task in tasks], "needs": needs_of_laws()}
    (grader / KNOWN.relative_to(ROOT)).write_text(json.dumps(made))
    say(f"done: {out}/student and {grader}")


# -------------------------------------------------------------------------------------------- grade
def grade_task(reference, submission, task, secret=0, laws=None):
    """The result of one task in a fresh reference, in which later tasks are open.

    Only the bodies of the task's functions, and runs/, are taken from the submission. Returns
    Gradescope's dict.
    Its share of the points: 0 without the essential laws, 0.4 with them, 0.7 with all that are
    shown, 1 with all.

    reference: a folder as `lay_out` writes it.
    laws: only these; None: all of the task.
    """
    laws = [*task["laws"], *task["unseen"]] if laws is None else laws
    names = [name for names in task["functions"].values() for name in names]
    options = ("--hypothesis-profile=graded", f"--hypothesis-seed={secret}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(reference, Path(temporary) / "reference")
        try:
            if names and open_functions(task, submission) == names:
                raise ValueError("not begun")
            refused = complaints(task, submission)
            if refused:
                raise ValueError("\n".join(refused))
            solve(folder, task, submission)
            for later in TASKS[task["number"] :]:
                edit(folder, later, lambda *_: "raise NotImplementedError")
            if "measured" in task:
                shutil.copytree(submission / "runs", folder / "runs", symlinks=True)
            results, problem = run_laws(folder, laws, options)
        except (ValueError, OSError, SyntaxError, MemoryError, RecursionError) as refused:
            results, problem = {}, str(refused) or type(refused).__name__
    broken = [law for law in laws if results.get(law, {}).get("outcome") != "passed"]
    lost = problem or set(map(key, broken)) & set(task["essential"])
    share = 0 if lost else 0.4 if set(broken) & set(task["laws"]) else 0.7 if broken else 1
    sentences = dict.fromkeys(law.split("[")[0] for law in broken)
    lines = [f"broken: {sentence(law)}\n  look at: {hint(task, law)}" for law in sentences]
    return {
        "number": str(task["number"]),
        "name": task["title"],
        "score": round(share * task["points"], 2),
        "max_score": task["points"],
        "output": problem or "\n".join(lines)[:4000] or "all laws hold",
        "extra_data": {"broken": broken},
    }


def grade(submissions, tasks=(), secret=0, json_file=None):
    """Grades submissions: a line for each task, and the sum; results.json is of the last.

    json_file: where it is written; None: nowhere.
    """
    tasks = with_laws(tasks)
    submissions = [Path(submission).resolve() for submission in submissions]
    json_file = json_file and Path(json_file).resolve()
    os.chdir(HERE)  # processes may import what lies in the working directory
    for submission in submissions:
        if not submission.is_dir():
            raise ValueError(f"{submission} is not a folder; name a student's folder")
        with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
            reference = lay_out(Path(temporary))
            graded = [pool.submit(grade_task, reference, submission, t, secret) for t in tasks]
            tests = [one.result() for one in graded]
        for test in tests:
            points = f"{test['score']:g} of {test['max_score']}"
            first = test["output"].splitlines()[0]
            print(f"{test['number']:>2}. {test['name']:40} {points:>10}   {first}")
        score, most = (sum(test[which] for test in tests) for which in ("score", "max_score"))
        print(f"{submission}: {score:g} of {most}")
        if json_file:
            json_file.write_text(json.dumps({"tests": tests}, indent=1))
