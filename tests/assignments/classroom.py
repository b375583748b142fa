"""Makes the students' and the instructor's folders out of the code as it is; grades submissions."""

import ast
import csv
import hashlib
import inspect
import itertools
import json
import operator
import os
import shutil
import subprocess
import sys
import tempfile
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cut
from check import AGAIN, SECONDS, apart, collect, complaints, functions, hint, holes, sentence

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KNOWN = HERE / "made.json"  # in an instructor's folder: tasks, secret, what `needs_of_laws` found
MADE = json.loads(KNOWN.read_text()) if KNOWN.exists() else {"secret": 0}
TABLE = tomllib.loads((HERE / "tasks.toml").read_text())
USUAL = {"guards": True, "files": [], "seconds": SECONDS, "measured": []}
TASKS = [
    USUAL | {"number": n, "hole": f'raise NotImplementedError("task {n}: {task["title"]}")'} | task
    for n, task in enumerate(TABLE["task"], 1)
]
EVERY = [TABLE["hidden"], *TASKS]  # by number
MEASURED = "tests/measured.py"  # its laws are about a submission's runs
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
    edit(folder, task, lambda file, name: cut.body(ast.parse((answers / file).read_text()), name))


def with_reference(work, secret=0):
    """What work(laws, trees) returns while the solved code is imported, its laws collected.

    trees: {file: its syntax tree} of the files that have functions of tasks.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = lay_out(Path(temporary).resolve())
        files = {file for task in EVERY for file in task["functions"]}
        trees = {file: ast.parse((folder / file).read_text()) for file in files}
        files = dict.fromkeys(file for task in TASKS for file in [*task["laws"], MEASURED])
        options = ("--hypothesis-profile=graded", f"--hypothesis-seed={secret}")
        return collect(folder, files, lambda laws: work(laws, trees), *options)


def put(trees, file, name, statements):
    """Gives a function of what is imported another body.

    trees: of the reference, in which the function is changed, too.
    """
    function = cut.find(trees[file], name)
    function.body = statements
    code = compile(ast.Module([function], []), file, "exec", dont_inherit=True)
    path = os.path.abspath(file)
    module = next(m for m in [*sys.modules.values()] if getattr(m, "__file__", None) == path)
    code = next(const for const in code.co_consts if isinstance(const, types.CodeType))
    inspect.unwrap(operator.attrgetter(name)(module)).__code__ = code


def needs_of_laws(laws, trees):
    """{law: numbers of the tasks whose functions it calls; 0 is for what is hidden}.

    Runs all laws once on the reference. Raises ValueError if one does not hold there, and
    TimeoutError if that is the machine's doing, as `prove`, too.
    """
    if "needs" in MADE:
        return MADE["needs"]

    def noted():
        for number, task in enumerate(EVERY):
            note = ast.parse(f'__import__("builtins").NEEDS.add({number})').body
            for file, name in functions(task):
                if not name.startswith("test_"):
                    put(trees, file, name, note + cut.statements(trees[file], name))
        return laws.run([law for law in laws.items if not law.startswith(MEASURED)])

    _, results, problem = next(apart([(0, noted, 60 * SECONDS, False)]))
    broken = [law for law in results or () if results[law]["outcome"] == "failed"]
    if broken or problem:
        again = TimeoutError if problem.startswith(AGAIN) else ValueError
        raise again(f"the reference breaks laws: {problem} {broken}")
    hidden = {"::".join(function) for function in functions(TABLE["hidden"])}
    needs = {law: results[law]["needs"] + [0] * (law.split("[")[0] in hidden) for law in results}
    return {law: needed for law, needed in needs.items() if needed}


def with_laws(needs, chosen=()):
    """The tasks of the table with their laws: `laws` are shown, `unseen` are graded only.

    A law belongs to the last task that it needs.

    needs: of laws; see `needs_of_laws`.
    chosen: numbers of tasks; none: those that `make` was told, or all.
    Raises ValueError if there is no such task, or if an essential law is not one that is shown.
    """
    tasks = []
    for task in TASKS:
        mine = [law for law in needs if max(needs[law]) == task["number"]]
        mine = [law for law in mine if law.split("::")[0] in task["laws"]]
        mine = [law for law in mine if not {key(law), law} & set(TABLE["spared"])]
        shown = [law for law in mine if 0 not in needs[law]] + task["measured"]
        tasks.append(task | {"laws": shown, "unseen": [law for law in mine if 0 in needs[law]]})
        if not task["essential"] or not set(task["essential"]) <= set(map(key, shown)):
            raise ValueError(f"task {task['number']} lacks {task['essential']} in {shown}")
    chosen = chosen or MADE.get("tasks", range(1, len(tasks) + 1))
    if not set(chosen) <= set(range(1, len(tasks) + 1)):
        raise ValueError(f"there are tasks 1 to {len(tasks)}; {list(chosen)} was given")
    return [task for task in tasks if task["number"] in chosen]


# --------------------------------------------------------------------------------------------- make
def write_student(folder, tasks, needs):
    """The student's folder: with holes, and without what is hidden. Returns what was cut."""
    lay_out(folder)
    bodies, opened = [], {}
    for file, name in [function for task in tasks for function in functions(task)]:
        bodies.append(cut.body(ast.parse((folder / file).read_text()), name))
        opened.setdefault(file, []).append(name)
    for task in [*tasks, TABLE["hidden"]]:
        edit(folder, task, lambda *_, hole=task["hole"]: hole, task["guards"])
    for law in {law.split("[")[0] for law in needs if 0 in needs[law]}:
        file, name = law.split("::")
        edit(folder, {"functions": {file: [name]}}, lambda *_: TABLE["hidden"]["hole"])
    around = {f: (names, cut.rest((folder / f).read_text(), names)) for f, names in opened.items()}
    (folder / "tasks.json").write_text(json.dumps({"tasks": tasks, "around": around}, indent=1))
    return bodies


def python(folder, *arguments, **environment):
    """Runs Python in a folder. Returns its exit code and what it printed."""
    options = {"cwd": folder, "env": os.environ | environment}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
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
                raise (TimeoutError if AGAIN in said else ValueError)(problem)
            say(" ".join(said.split("\n")[:2]))


def make(out, tasks=(), secret=None, say=print):
    """Writes out/student and out/grader. Raises ValueError if something is not right."""
    out = out.resolve()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    needs = with_reference(needs_of_laws)
    tasks = with_laws(needs, tasks)
    prove(out / "student", tasks, write_student(out / "student", tasks, needs), say)

    def ignored(folder, names):
        return IGNORED(folder, names) | ({out.name} if Path(folder) == out.parent else set())

    grader = shutil.copytree(ROOT, out / "grader", ignore=ignored)
    shutil.copytree(HERE / "gradescope", grader, dirs_exist_ok=True)
    made = {"tasks": [task["number"] for task in tasks], "needs": needs, "secret": secret or 0}
    (grader / KNOWN.relative_to(ROOT)).write_text(json.dumps(made))
    say(f"done: {out}/student and {grader}")
    return 0


# -------------------------------------------------------------------------------------------- grade
def is_plain(one):
    """Whether it is a file, and no link to one."""
    return one.is_file() and (isinstance(one, zipfile.Path) or one.resolve() == one)


def opened(place, depth=8):
    """The folder of a submission in which the files are: it, or the only folder or zip in it."""
    place = place if place.is_dir() else zipfile.Path(place.open("rb"))
    if any((place / name).exists() for name in ("answers.py", "blockdrop_min", "runs")):
        return place
    inner = [one for one in place.iterdir() if not one.name.startswith((".", "__MACOSX"))]
    inner = [one for one in inner if one.is_dir() or (one.name.endswith(".zip") and is_plain(one))]
    if len(inner) != 1 or not depth:
        raise ValueError("hand in the folder that has check.py in it, as it is or as a zip")
    return opened(inner[0], depth - 1)


def taken(path):
    """{file: bytes} of all that is graded in a submission, a folder or a zip.

    A file that is missing, no plain one or too large is left out. Raises ValueError if nothing is
    there.
    """
    place = opened(path.resolve(strict=True))
    most = {file: 2**20 for task in TASKS for file in task["functions"]}
    most |= {file: 100 * 2**20 for task in TASKS for file in task["files"]}
    found = {}
    for file in [file for file in most if is_plain(place / file)]:
        with (place / file).open("rb") as data:
            found[file] = data.read(most[file] + 1)
    return {file: data for file, data in found.items() if len(data) <= most[file]}


def attempt(laws, trees, task, files):
    """Runs laws on a submission in this process: (why it is refused or "", see `Laws.run`).

    The task's functions get the submission's bodies; those of later tasks become open.

    files: as `taken` gives them, or why there are none.
    """
    missing = [file for file in [*task["functions"], *task["files"]] if file not in files]
    try:
        if missing:
            given = ", ".join(missing) + ": missing, not a plain file, or too large"
            raise ValueError(given if isinstance(files, dict) else files)
        theirs = {file: ast.parse(files[file], file) for file in task["functions"]}
        left, _ = holes(task, theirs)
        if left and len(left) == len(functions(task)):
            raise ValueError("not begun")
        if complaints(task, theirs):
            raise ValueError("\n".join(complaints(task, theirs)))
        for file, name in functions(task):
            put(trees, file, name, cut.statements(theirs[file], name))
    except (ValueError, SyntaxError, MemoryError, RecursionError) as problem:
        return str(problem) or type(problem).__name__, {}
    for later in TASKS[task["number"] :]:
        for file, name in functions(later):
            put(trees, file, name, ast.parse("raise NotImplementedError").body)
    os.chdir(tempfile.mkdtemp(dir="."))
    for file in task["files"]:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(files[file])
    return "", laws.run([*task["laws"], *task["unseen"]])


def judged(task, broken, problem=""):
    """Gradescope's dict of a task.

    Its share of the points: 0 without the essential laws, 0.4 with them, 0.7 with all that are
    shown, 1 with all.

    broken: the laws that do not hold.
    problem: why none counts.
    """
    lost = problem or set(map(key, broken)) & set(task["essential"])
    share = 0 if lost else 0.4 if set(broken) & set(task["laws"]) else 0.7 if broken else 1
    names = dict.fromkeys(law.split("[")[0] for law in broken if not problem)
    shown = [law for law in names if not any(one.startswith(law) for one in task["unseen"])]
    lines = [f"broken: {sentence(law)}\n  look at: {hint(task, law)}" for law in shown]
    unseen = [sentence(law) for law in names if law not in shown]
    lines += [f"broken: {len(unseen)} of the laws that are not shown"] if unseen else []
    return {
        "number": str(task["number"]),
        "name": task["title"],
        "score": None if problem.startswith(AGAIN) else round(share * task["points"], 2),
        "max_score": task["points"],
        "output": problem or "\n".join(lines)[:4000] or "all laws hold",
        "extra_data": {"broken": broken, "unseen": unseen},
    }


def graded(laws, trees, jobs, at_once=1):
    """Grades tasks in processes of their own. Yields (name, Gradescope's dict) as each is done.

    jobs: (name, task, files as `taken` gives them).
    """

    def started(name, task, files):
        work = partial(attempt, laws, trees, task, files)
        return (name, task), work, task["seconds"], not task["files"]

    for (name, task), found, problem in apart(itertools.starmap(started, jobs), at_once):
        refused, results = found or ("", {})
        wanted = [*task["laws"], *task["unseen"]]
        broken = [law for law in wanted if results.get(law, {}).get("outcome") != "passed"]
        yield name, judged(task, broken, problem or refused)


def write_results(file, tests):
    """Writes Gradescope's results.json. Broken unseen laws stand in an entry of their own."""
    unseen = [f"broken: {t['name']}: {law}" for t in tests for law in t["extra_data"]["unseen"]]
    late = {"name": "Laws that are not shown", "score": 0, "max_score": 0}
    late |= {"output": "\n".join(unseen), "visibility": TABLE["unseen_visibility"]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"tests": [*tests, *([late] if unseen else [])]}, indent=1))


def table(tasks, found, notes):
    """Rows: what the columns are, what they are worth, and one for each submission.

    found: {submission: {number of a task: Gradescope's dict}}.
    """
    rows = [["submission", *[task["number"] for task in tasks], "sum", "note"]]
    scores = {"points": [task["points"] for task in tasks]}
    for name, tests in found.items():
        scores[name] = [tests.get(str(task["number"]), {}).get("score") for task in tasks]
    for name, points in scores.items():
        cells = [*points, None if None in points else sum(points)]
        cells = ["?" if points is None else f"{points:g}" for points in cells]
        rows.append([name, *cells, notes.get(name, "")])
    return rows


def grade(submissions, tasks=(), secret=None, json_path=None, csv_file=None, at_once=1):
    """Grades submissions, folders or zips, and prints their points.

    json_path: Gradescope's file; of several submissions a folder for these.
    csv_file: for the table.
    Returns 0; 2 if a submission cannot be read; 4 if a task must be graded again.
    """
    paths = {path.absolute().name.removesuffix(".zip"): path.absolute() for path in submissions}
    if len(paths) < len(submissions):
        raise ValueError("two submissions have one name, by which they are told apart")
    found, notes, runs = {name: {} for name in paths}, dict.fromkeys(paths, ""), {}

    def jobs(chosen):
        for name, path in paths.items():
            try:
                files = taken(path)
            except OSError as problem:
                notes[name] = f"cannot be read: {problem}"
                continue
            except Exception as problem:  # whatever a zip may raise
                files = notes[name] = f"nothing taken: {problem}"
            for file in [file for file in files if file.endswith(".pt")]:
                same = runs.setdefault(hashlib.sha256(files[file]).digest(), name)
                notes[name] += f"{file} is that of {same}. " if same != name else ""
            yield from ((name, task, files) for task in chosen)

    def work(laws, trees):
        chosen = with_laws(needs_of_laws(laws, trees), tasks)
        for name, test in graded(laws, trees, jobs(chosen), at_once):
            found[name][test["number"]] = test
            if len(found[name]) == len(chosen):
                finish(name, [found[name][str(task["number"])] for task in chosen])
        return chosen

    def finish(name, tests):
        done = sum(len(others) == len(tests) for others in found.values())
        print(f"{done} of {len(found)}: {name}", file=sys.stderr, flush=True)
        if json_path and None not in [test["score"] for test in tests]:
            write_results(json_path if len(found) == 1 else json_path / f"{name}.json", tests)
        for test in tests if len(found) == 1 else ():
            print(f"{test['number']:>2}. {test['name']:40} {test['output'].splitlines()[0]}")

    secret = MADE["secret"] if secret is None else secret
    rows = table(with_reference(work, secret), found, notes)
    if csv_file:
        with csv_file.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    wide = max(len(name) for name, *_ in rows)
    for name, *cells, note in rows:
        print(name.ljust(wide), *(f"{cell:>4}" for cell in cells), "", note)
    again = any(test["score"] is None for tests in found.values() for test in tests.values())
    return 4 if again else 0 if all(found.values()) else 2
