"""`grade`: each task of a submission alone in a fresh reference; results.json for Gradescope."""

import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cut
from check import by_file, hint, run_laws, screened, sentence
from making import key, lay_out, solve, with_laws

MEASURED = ("*/checkpoint.pt", "*/claims.json", "verdict.json")
MOST_BYTES = 2**24  # of one of these


def put(folder, submission, task, tasks):
    """Puts one task's functions and measurements of a submission into a fresh reference.

    Raises ValueError if something is missing, or refused by the screen.
    """
    solve(folder, task, submission)
    files = by_file(task["functions"]).items()
    if files and all(
        cut.is_open((folder / file).read_text(), name) for file, names in files for name in names
    ):
        raise ValueError("not begun")
    said = screened(task, tasks, submission)
    if said:
        raise ValueError("not allowed:\n" + "\n".join(said[:9]))
    for path in (path for name in MEASURED for path in submission.glob(f"runs/{name}")):
        if path.is_symlink() or path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.name} is not a file of at most {MOST_BYTES} bytes")
        copy = folder / path.relative_to(submission)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def grade_task(reference, submission, task, tasks, secret=0, laws=None):
    """The result of one task, as Gradescope's dict.

    reference: a folder as `lay_out` writes it.
    laws: only these; None: all of the task.
    """
    start = time.monotonic()
    laws = [*task["laws"], *task["unseen"]] if laws is None else laws
    results = {}
    profile = ("--hypothesis-profile=default", f"--hypothesis-seed={secret}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(reference, Path(temporary) / "reference")
        try:
            put(folder, Path(submission), task, tasks)
            results, problem = run_laws(folder, laws, profile)
        except (ValueError, OSError, SyntaxError, RecursionError) as refused:
            problem = str(refused) or type(refused).__name__
    broken = [law for law in laws if results.get(law, {}).get("outcome") != "passed"]
    share = 0 if problem else share_of(task, broken)
    lines = [problem] if problem else []
    for law in dict.fromkeys(law.split("[")[0] for law in broken if results):
        lines.append(f"broken: {sentence(law)}\n  look at: {hint(task, law)}")
    return {
        "number": str(task["number"]),
        "name": task["title"],
        "score": round(share * task["points"], 2),
        "max_score": task["points"],
        "status": "passed" if share == 1 else "failed",
        "output": "\n".join(lines)[:4000] or "all laws hold",
        "visibility": "visible",
        "extra_data": {"broken": broken, "seconds": round(time.monotonic() - start, 1)},
    }


def share_of(task, broken):
    """0 without the essential laws, 0.4 with them, 0.7 with all that are shown, 1 with all."""
    if set(map(key, broken)) & set(task["essential"]):
        return 0
    if set(broken) & set(task["laws"]):
        return 0.4
    return 0.7 if broken else 1


def grade(submission, tasks, secret):
    """The results of all tasks, as Gradescope's dict; two tasks at a time."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        reference = lay_out(Path(temporary))
        graded = pool.map(lambda t: grade_task(reference, submission, t, tasks, secret), tasks)
        tests = list(graded)
    return {"execution_time": round(time.monotonic() - start, 1), "tests": tests}


def grade_all(submissions, chosen, secret, path, say=print):
    """Grades submissions: a table of one, or a line for each; the JSON is of the last."""
    write(path, {"score": 0, "output": "the grader did not finish", "tests": []})
    tasks = with_laws(chosen)
    for submission in submissions:
        if not Path(submission).is_dir():
            raise ValueError(f"{submission} is not a folder")
        results = grade(submission, tasks, secret)
        for test in results["tests"] if len(submissions) == 1 else []:
            points = f"{test['score']:g} of {test['max_score']}"
            first = test["output"].splitlines()[0]
            say(f"{test['number']:>2}. {test['name']:32} {points:>10}   {first}")
        total = sum(test["score"] for test in results["tests"])
        most = sum(task["points"] for task in tasks)
        say(f"{submission}: {total:g} of {most}, {results['execution_time']} s")
        write(path, results)


def write(path, results):
    """Writes a results.json, if asked for, as a whole or not at all."""
    if path:
        Path(f"{path}.part").write_text(json.dumps(results, indent=1))
        os.replace(f"{path}.part", path)
