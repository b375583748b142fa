"""`grade`: each task of a submission alone in a fresh reference, the table, and Gradescope's results.json."""

import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cut
from check import hint, run_laws, screened, sentence, sources
from making import by_file, key, lay_out, read_table, with_laws

EXAMPLES, SECONDS, MOST_BYTES = 15, 30, 2**24


def prepare(folder, submission, task, tasks):
    """Puts one task's functions, and its measurements, of a submission into a fresh reference.

    Raises ValueError if something is missing, no Python, or refused by the screen.
    """
    found = sources(submission, task["functions"])
    for file, names in by_file(task["functions"]).items():
        open_ones = [name for name in names if cut.is_open(found[file], name)]
        if len(open_ones) == len(names):
            raise ValueError("not begun")
        (folder / file).write_text(cut.splice((folder / file).read_text(), found[file], names))
    complaints = screened(task, tasks, found)
    if complaints:
        raise ValueError("not allowed:\n" + "\n".join(complaints[:9]))
    for pattern in task["runs"]:
        for path in sorted(submission.glob(pattern)):
            if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
                raise ValueError(f"{path.name} is not a file of at most {MOST_BYTES} bytes")
            copy = folder / path.relative_to(submission)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def grade_task(reference, submission, task, tasks, seed, laws=None):
    """The result of one task, as Gradescope's dict.

    reference: a folder as `lay_out` writes it.
    laws: only these; None: all of the task.
    """
    start = time.monotonic()
    laws = [*task["laws"], *task["unseen"]] if laws is None else laws
    results, problem, copied = {}, "", False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "reference"
        shutil.copytree(reference, folder)
        try:
            prepare(folder, Path(submission), task, tasks)
            results, problem = run_laws(folder, laws, EXAMPLES, seed, SECONDS)
            copied = all(
                cut.same((reference / f).read_text(), (Path(submission) / f).read_text(), names)
                for f, names in by_file(task["functions"]).items()
            )
        except (ValueError, OSError, RecursionError) as refused:
            problem = str(refused) or type(refused).__name__
    broken = [law for law in laws if results.get(law, ("",))[0] != "passed"]
    share = 0 if problem else share_of(task, broken)
    lines = [problem] if problem else []
    for law in dict.fromkeys(law.split("[")[0] for law in broken if results):
        lines.append(f"broken: {sentence(law)}")
        if hint(task, law):
            lines.append(f"  look at: {hint(task, law)}")
    return {
        "number": str(task["number"]),
        "name": task["title"],
        "score": round(share * task["points"], 2),
        "max_score": task["points"],
        "status": "passed" if share == 1 else "failed",
        "output": "\n".join(lines)[:4000] or "all laws hold",
        "visibility": "visible",
        "tags": task["functions"],
        "extra_data": {
            "laws": len(laws),
            "held": len(laws) - len(broken),
            "broken": broken,
            "as_in_the_reference": copied,
            "seconds": round(time.monotonic() - start, 1),
        },
    }


def share_of(task, broken):
    """Of the points: nothing, unless the essential laws hold; then 0.4; 0.7 with all that are shown; 1 with all."""
    if any(key(law) in task["essential"] for law in broken):
        return 0
    if not broken:
        return 1
    return 0.4 if set(broken) & set(task["laws"]) else 0.7


def grade(submission, tasks, seed, workers=2):
    """The results of all tasks, as Gradescope's dict."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(workers) as pool:
        reference = lay_out(Path(temporary), read_table()[1])
        graded = pool.map(lambda t: grade_task(reference, submission, t, tasks, seed), tasks)
        tests = list(graded)
    return {
        "execution_time": round(time.monotonic() - start, 1),
        "output": f"each task alone in the reference; seed {seed}",
        "output_format": "text",
        "tests": tests,
    }


def write_json(path, results):
    """Writes a results.json as a whole or not at all."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(results, indent=1))
    os.replace(part, path)


def grade_all(submissions, chosen, seed, path, say=print):
    """Grades submissions; prints a table, or a line each if there are several; writes the JSON of the last."""
    unfinished = {"score": 0, "output": "the grader did not finish", "tests": []}
    if path:
        write_json(path, unfinished)
    tasks = with_laws(chosen)
    for submission in submissions:
        if not Path(submission).is_dir():
            raise ValueError(f"{submission} is not a folder")
        results = grade(submission, tasks, seed)
        total = sum(test["score"] for test in results["tests"])
        most = sum(test["max_score"] for test in results["tests"])
        if len(submissions) == 1:
            for test in results["tests"]:
                points = f"{test['score']:g} of {test['max_score']}"
                first = test["output"].splitlines()[0]
                say(f"{test['number']:>2}. {test['name']:32} {points:>12}   {first}")
        copied = [t["number"] for t in results["tests"] if t["extra_data"]["as_in_the_reference"]]
        note = f"   as in the reference: {', '.join(copied)}" if copied else ""
        say(f"{submission}: {total:g} of {most}   {results['execution_time']} s{note}")
        if path:
            write_json(path, results)
