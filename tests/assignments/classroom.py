"""Makes the students' and the instructor's folders out of the code as it is; grades submissions."""

import ast
import csv
import hashlib
import inspect
import json
import operator
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cut
from check import AGAIN, SECONDS, apart, collect, complaints, hint, holes, sentence

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KNOWN = HERE / "made.json"  # in an instructor's folder: tasks, secret, what `needs_of_laws` found
MADE = json.loads(KNOWN.read_text()) if KNOWN.exists() else {"secret": 0}
TABLE = tomllib.loads((HERE / "tasks.toml").read_text())
TASKS = TABLE["task"]
IGNORED = shutil.ignore_patterns("__pycache__", ".*", "runs", "data")


class NotGraded(Exception):
    """The machine, and not the work, is why there is no result. Another try may give one."""


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
    edit(folder, task, lambda file, name: cut.body(ast.parse((answers / file).read_text()), name))


def with_reference(work, secret=0):
    """What work(laws, sources) returns while the solved code is imported, its laws collected.

    sources: {file: text} of the files that have functions of tasks.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = lay_out(Path(temporary).resolve())
        files = {file for task in [TABLE["hidden"], *TASKS] for file in task["functions"]}
        sources = {file: (folder / file).read_text() for file in files}
        files = dict.fromkeys(file for task in TASKS for file in task["laws"])
        options = ("--hypothesis-profile=graded", f"--hypothesis-seed={secret}")
        return collect(folder, files, lambda laws: work(laws, sources), *options)


def function_of(file, name):
    """A function of what is imported from a file of the working directory."""
    path = os.path.abspath(file)
    modules = [m for m in [*sys.modules.values()] if getattr(m, "__file__", None) == path]
    return inspect.unwrap(operator.attrgetter(name)(modules[0]))


def put(sources, functions, new):
    """Gives functions {file: names} of what is imported the bodies new(file, name)."""
    for file, names in functions.items():
        source = cut.replace_bodies(sources[file], {name: new(file, name) for name in names})
        code = compile(source, file, "exec", dont_inherit=True)
        for name in names:
            function_of(file, name).__code__ = cut.code_of(code, name)


def needs_of_laws(laws, sources):
    """{law: numbers of the tasks whose functions it calls; 0 is for what is hidden}.

    Runs all laws once on the reference. Raises ValueError if one does not hold there.
    """
    if "needs" in MADE:
        return MADE["needs"]
    hidden = [f"{f}::{name}" for f, names in TABLE["hidden"]["functions"].items() for name in names]

    def noted(wanted):
        trees = {file: ast.parse(source) for file, source in sources.items()}
        for number, task in enumerate([TABLE["hidden"], *TASKS]):
            note = f'__import__("builtins").NEEDS.add({number})\n'
            called = {
                file: [name for name in names if not name.startswith("test_")]
                for file, names in task["functions"].items()
            }
            put(sources, called, lambda f, n, note=note: note + cut.body(trees[f], n))
        return laws.run(wanted)

    jobs, needs = {}, {}
    for law in laws.items:
        jobs.setdefault(law.split("::")[0], []).append(law)
    jobs = [(file, partial(noted, found), 20 * SECONDS, False) for file, found in jobs.items()]
    for file, results, problem in apart(jobs, 2):
        if problem.startswith(AGAIN):
            raise NotGraded(problem)
        broken = [law for law in results or () if results[law]["outcome"] == "failed"]
        if broken or problem:
            raise ValueError(f"the reference breaks laws of {file}: {problem} {broken}")
        for law, result in results.items():
            needed = [*result["needs"], *[0] * (law.split("[")[0] in hidden)]
            needs |= {law: needed} if needed else {}
    return needs


def with_laws(needs, chosen=()):
    """The tasks of the table with their laws: `laws` are shown, `unseen` are graded only.

    A law belongs to the last task that it needs.

    needs: of laws; see `needs_of_laws`.
    chosen: numbers of tasks; none: those that `make` was told, or all.
    Raises ValueError if there is no such task, or if an essential law is not one that is shown.
    """
    tasks = []
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
def write_student(folder, tasks, needs):
    """The student's folder: with holes, and without what is hidden. Returns what was cut."""
    lay_out(folder)
    bodies, opened = [], {}
    for task in tasks:
        for file, names in task["functions"].items():
            tree = ast.parse((folder / file).read_text())
            bodies += [cut.body(tree, name) for name in names]
            opened[file] = opened.get(file, []) + names
    for task in [*tasks, TABLE["hidden"]]:
        edit(folder, task, lambda *_, hole=task["hole"]: hole, task.get("guards", True))
    for law in {law.split("[")[0] for law in needs if 0 in needs[law]}:
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
                problem = f"check.py ends with {code} and not with {expected}:\n{said}"
                raise (NotGraded if AGAIN in said else ValueError)(problem)
            say(" ".join(said.split("\n")[:2]))


def make(out, tasks=(), secret=0, say=print):
    """Writes out/student and out/grader. Raises ValueError if something is not right."""
    out = Path(out).resolve()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    needs = with_reference(needs_of_laws)
    tasks = with_laws(needs, tasks)
    prove(out / "student", tasks, write_student(out / "student", tasks, needs), say)

    def ignored(folder, names):
        return IGNORED(folder, names) | ({out.name} if Path(folder) == out.parent else set())

    grader = shutil.copytree(ROOT, out / "grader", ignore=ignored)
    shutil.copytree(HERE / "gradescope", grader, dirs_exist_ok=True)
    made = {"tasks": [task["number"] for task in tasks], "needs": needs, "secret": secret}
    (grader / KNOWN.relative_to(ROOT)).write_text(json.dumps(made))
    say(f"done: {out}/student and {grader}")
    return 0


# -------------------------------------------------------------------------------------- submissions
def files_in(path):
    """{name: how to open it} of the plain files in a folder or a zip; links are not followed."""
    if path.is_dir():
        found = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
        plain = [file for file in found if stat.S_ISREG(file.lstat().st_mode)]
        return {file.relative_to(path).as_posix(): partial(file.open, "rb") for file in plain}
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path.name} is neither a folder nor a zip")
    archive = zipfile.ZipFile(path)
    return {info.filename: partial(archive.open, info) for info in archive.infolist()}


def taken(path):
    """{file: bytes} of all that is graded in a submission, a folder or a zip.

    It may lie in the only folder, or zip, of the submission. A file that is missing, no plain one
    or too large is left out. Raises ValueError if nothing is there.
    """
    path.stat()  # OSError if it is not there
    wanted = {file: 2**20 for task in TASKS for file in task["functions"]}
    wanted |= {file: 100 * 2**20 for task in TASKS for file in task.get("files", [])}
    names = {n: o for n, o in files_in(path).items() if not re.search(r"(^|/)(\.|__MACOSX)", n)}
    top = ""
    while not wanted.keys() & {name.removeprefix(top) for name in names}:
        inner = {name.removeprefix(top).partition("/") for name in names if name.startswith(top)}
        folders, zips = (
            {n for n, slash, _ in inner if slash},
            [n for n in names if n.endswith(".zip")],
        )
        if len(folders) == 1:
            top += f"{folders.pop()}/"
        elif len(zips) == 1 and path.is_dir():
            return taken(path / zips[0])
        else:
            raise ValueError("hand in the folder that has check.py in it, as it is or as a zip")
    found = {}
    for file, most in wanted.items():
        if top + file in names:
            with names[top + file]() as opened:
                data = opened.read(most + 1)
            found |= {file: data} if len(data) <= most else {}
    return found


def attempt(laws, sources, task, files, wanted):
    """Runs laws on a submission in this process: {"refused": why, "results": see `Laws.run`}.

    The task's functions get the submission's bodies; those of later tasks become open.
    """

    def hole(*_, **__):
        raise NotImplementedError

    absent = [f for f in [*task["functions"], *task.get("files", [])] if f not in files]
    try:
        if isinstance(files, str):
            raise ValueError(files)
        if absent:
            raise ValueError(f"{', '.join(absent)}: missing, not a plain file, or too large")
        trees = {file: ast.parse(files[file], file) for file in task["functions"]}
        left, _ = holes(task, trees)
        if left and len(left) == sum(map(len, task["functions"].values())):
            raise ValueError("not begun")
        refused = complaints(task, trees)
        if refused:
            raise ValueError("\n".join(refused))
        put(sources, task["functions"], lambda file, name: cut.body(trees[file], name))
    except (ValueError, SyntaxError, MemoryError, RecursionError) as problem:
        return {"refused": str(problem) or type(problem).__name__, "results": {}}
    for later in TASKS[task["number"] :]:
        for file, names in later["functions"].items():
            for name in names:
                function_of(file, name).__code__ = hole.__code__
    os.chdir(tempfile.mkdtemp(dir="."))
    for file in task.get("files", []):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(files[file])
    return {"refused": "", "results": laws.run(wanted)}


def judged(task, wanted, broken, problem=""):
    """Gradescope's dict of a task.

    Its share of the points: 0 without the essential laws, 0.4 with them, 0.7 with all that are
    shown, 1 with all.

    wanted: the laws that were to run.
    broken: those of them that do not hold.
    problem: why none counts.
    """
    lost = problem or set(map(key, broken)) & set(task["essential"])
    share = 0 if lost else 0.4 if set(broken) & set(task["laws"]) else 0.7 if broken else 1
    shown = dict.fromkeys(law.split("[")[0] for law in broken if law not in task["unseen"])
    lines = [f"broken: {sentence(law)}\n  look at: {hint(task, law)}" for law in shown]
    unseen = dict.fromkeys(sentence(law.split("[")[0]) for law in broken if law in task["unseen"])
    lines += [f"broken: {len(unseen)} of the laws that are not shown"] * bool(unseen)
    return {
        "number": str(task["number"]),
        "name": task["title"],
        "score": None if problem.startswith(AGAIN) else round(share * task["points"], 2),
        "max_score": task["points"],
        "output": problem or "\n".join(lines)[:4000] or "all laws hold",
        "extra_data": {"broken": broken, "unseen": list(unseen)},
    }


def graded(laws, sources, jobs, at_once=1):
    """Grades tasks in processes of their own. Yields (key, Gradescope's dict) as each is done.

    jobs: (key, task, files as `taken` gives them, laws; none: all of the task).
    """
    tried = {}

    def attempts():
        for name, task, files, only in jobs:
            tried[name] = task, only or [*task["laws"], *task["unseen"]]
            work = partial(attempt, laws, sources, task, files, tried[name][1])
            yield name, work, task.get("seconds", SECONDS), "files" not in task

    for name, found, problem in apart(attempts(), at_once):
        task, wanted = tried.pop(name)
        results = found["results"] if found else {}
        broken = [law for law in wanted if results.get(law, {}).get("outcome") != "passed"]
        yield name, judged(task, wanted, broken, problem or found["refused"])


def results_json(tests):
    """Gradescope's results.json, in which broken unseen laws stand in an entry of their own."""
    unseen = [(test["name"], law) for test in tests for law in test["extra_data"]["unseen"]]
    late = {"name": "Laws that are not shown", "score": 0, "max_score": 0}
    late |= {"output": "\n".join(map("broken: {0[0]}: {0[1]}".format, unseen))}
    late |= {"visibility": TABLE["unseen_visibility"]}
    return json.dumps({"tests": [*tests, *[late] * bool(unseen)]}, indent=1)


def table(tasks, found, notes):
    """Rows: what the columns are, what they are worth, and one for each submission.

    found: {submission: {number of a task: Gradescope's dict}}.
    """
    rows = [["submission", *[task["number"] for task in tasks], "sum", "note"]]
    scores = {"points": [task["points"] for task in tasks]}
    for name, tests in found.items():
        scores[name] = [tests.get(task["number"], {}).get("score") for task in tasks]
    for name, points in scores.items():
        cells = ["?" if one is None else f"{one:g}" for one in points]
        total = "?" if None in points else f"{sum(points):g}"
        rows.append([name, *cells, total, notes.get(name, "")])
    return rows


def grade(submissions, tasks=(), secret=None, json_path=None, csv_file=None, at_once=1):
    """Grades submissions {name: folder or zip} and prints their points.

    json_path: Gradescope's file; of several submissions a folder for these.
    csv_file: for the table.
    Returns 0; 2 if a submission cannot be read; 4 if a task must be graded again.
    """
    found, notes, runs = {name: {} for name in submissions}, dict.fromkeys(submissions, ""), {}

    def jobs(chosen):
        for name, path in submissions.items():
            try:
                files = taken(path)
            except OSError as problem:
                notes[name] = f"cannot be read: {problem}"
                print(f"{name} {notes[name]}", file=sys.stderr)
                continue
            except Exception as problem:  # whatever a zip may raise
                files = notes[name] = f"nothing taken: {problem}"
            for file in [file for file in files if file.endswith(".pt")]:
                same = runs.setdefault(hashlib.sha256(files[file]).hexdigest(), name)
                notes[name] += f"{file} is that of {same}. " if same != name else ""
            yield from (((name, task["number"]), task, files, ()) for task in chosen)

    def work(laws, sources):
        chosen = with_laws(needs_of_laws(laws, sources), tasks)
        for (name, number), test in graded(laws, sources, jobs(chosen), at_once):
            found[name][number] = test
            if len(found[name]) == len(chosen):
                found[name] = {task["number"]: found[name][task["number"]] for task in chosen}
                tell(name, [*found[name].values()])
        return chosen

    def tell(name, tests):
        scores = [test["score"] for test in tests]
        done = sum(len(tests) == len(scores) for tests in found.values())
        print(f"graded {name}, {done} of {len(found)}", file=sys.stderr, flush=True)
        if json_path and None not in scores:
            several = len(submissions) > 1 or json_path.is_dir()
            file = json_path / f"{name}.json" if several else json_path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(results_json(tests))

    secret = MADE["secret"] if secret is None else secret
    rows = table(with_reference(work, secret), found, notes)
    if csv_file:
        with csv_file.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    if len(found) > 1:
        wide = max(len(row[0]) for row in rows)
        for name, *cells, note in rows:
            print(name.ljust(wide), *(str(cell).rjust(4) for cell in cells), "", note)
    else:
        for test in [test for tests in found.values() for test in tests.values()]:
            score = "?" if test["score"] is None else f"{test['score']:g}"
            first = test["output"].splitlines()[0]
            print(
                f"{test['number']:>2}. {test['name']:40} {score:>4} of {test['max_score']:<4}{first}"
            )
        print(f"{rows[-1][0]}: {rows[-1][-2]} of {rows[1][-2]}   {rows[-1][-1]}")
    graded_all = all(len(tests) == len(rows[0]) - 3 for tests in found.values())
    again = any(test["score"] is None for tests in found.values() for test in tests.values())
    return 4 if again else 0 if graded_all else 2
