"""Makes the students' and the instructor's folders out of the code as it is; grades submissions."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import cut
from check import hint, refusal, run_laws, sentence

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KNOWN = HERE / "laws.json"  # in an instructor's folder: what `needs_of_laws` found
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
    if KNOWN.exists():
        return json.loads(KNOWN.read_text())
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

    chosen: numbers of tasks; none: all.
    Raises ValueError if a task has no essential law, or one that is not its.
    """
    needs, tasks = needs_of_laws(), []
    for number, task in enumerate(TASKS, 1):
        mine = [law for law in needs if max(needs[law]) == number]
        mine = [law for law in mine if law.split("::")[0] in task["laws"]]
        mine = [law for law in mine if key(law) not in TABLE["spared"]] + task.get("measured", [])
        if not task["essential"] or not set(task["essential"]) <= set(map(key, mine)):
            raise ValueError(f"task {number} lacks laws: {task['essential']}, of {mine}")
        said = f'raise NotImplementedError("task {number}: {task["title"]}")'
        sources = {file: ROOT / TABLE["files"].get(file, file) for file in task["functions"]}
        given = {
            "number": number,
            "hole": task.get("hole", said),
            "sizes": {file: len(cut.parse(sources[file].read_text()).body) for file in sources},
            "laws": [law for law in mine if 0 not in needs.get(law, [])],
            "unseen": [law for law in mine if 0 in needs.get(law, [])],
        }
        tasks.append(task | given)
    return [task for task in tasks if not chosen or task["number"] in chosen]


# --------------------------------------------------------------------------------------------- make
def write_student(folder, tasks):
    """The student's folder: with holes, and without what is hidden. Returns what was cut."""
    lay_out(folder)
    bodies = []
    for task in [*tasks, TABLE["hidden"]]:
        for file, names in task["functions"].items():
            bodies += [cut.body((folder / file).read_text(), name) for name in names]
        edit(folder, task, lambda *_, hole=task["hole"]: hole, task.get("guards", True))
    for law in {law.split("[")[0] for law, needs in needs_of_laws().items() if 0 in needs}:
        file, name = law.split("::")
        edit(folder, {"functions": {file: [name]}}, lambda *_: TABLE["hidden"]["hole"])
    (folder / "tasks.json").write_text(json.dumps(tasks, indent=1))
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
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    tasks = with_laws(tasks)
    prove(out / "student", tasks, write_student(out / "student", tasks), say)
    grader = shutil.copytree(ROOT, out / "grader", ignore=IGNORED)
    shutil.copytree(HERE / "gradescope", grader, dirs_exist_ok=True)
    (grader / HERE.relative_to(ROOT) / KNOWN.name).write_text(json.dumps(needs_of_laws()))
    say(f"done: {out}/student and {grader}")


# -------------------------------------------------------------------------------------------- grade
def put(folder, submission, task):
    """Puts one task's functions and runs of a submission into a fresh reference.

    What later tasks ask for is open there. Raises ValueError if something is missing or refused.
    """
    refused = refusal(task, submission)
    if refused:
        raise ValueError(refused)
    solve(folder, task, submission)
    for later in TASKS[task["number"] :]:
        edit(folder, later, lambda *_: "raise NotImplementedError")
    if "measured" in task:
        shutil.copytree(submission / "runs", folder / "runs")


def grade_task(reference, submission, task, secret=0, laws=None):
    """The result of one task, as Gradescope's dict.

    Its share of the points: 0 without the essential laws, 0.4 with them, 0.7 with all that are
    shown, 1 with all.

    reference: a folder as `lay_out` writes it.
    laws: only these; None: all of the task.
    """
    laws = [*task["laws"], *task["unseen"]] if laws is None else laws
    options = ("--hypothesis-profile=default", f"--hypothesis-seed={secret}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(reference, Path(temporary) / "reference")
        try:
            put(folder, Path(submission), task)
            results, problem = run_laws(folder, laws, options)
        except (ValueError, OSError, SyntaxError, RecursionError) as refused:
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
    for submission in submissions:
        if not Path(submission).is_dir():
            raise ValueError(f"{submission} is not a folder; name a student's folder")
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
            reference = lay_out(Path(temporary))
            graded = [pool.submit(grade_task, reference, submission, t, secret) for t in tasks]
            tests = [one.result() for one in graded]
        for test in tests:
            points = f"{test['score']:g} of {test['max_score']}"
            first = test["output"].splitlines()[0]
            print(f"{test['number']:>2}. {test['name']:40} {points:>10}   {first}")
        score, most = (sum(test[which] for test in tests) for which in ("score", "max_score"))
        seconds = round(time.monotonic() - start, 1)
        print(f"{submission}: {score:g} of {most}, {seconds} s")
        if json_file:
            results = {"execution_time": seconds, "tests": tests}
            Path(json_file).write_text(json.dumps(results, indent=1))
