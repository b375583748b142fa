"""The classroom is tried out: with right and wrong solutions, trivial and hostile ones, and a whole submission.

`python -m pytest tests/assignments`. A wrong solution is run against the law that is named beside it; with
ALL_LAWS=1 in the environment against all of its task, as README.md reports.
"""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cut  # noqa: E402
import grading  # noqa: E402
import making  # noqa: E402

SOLUTIONS = making.tomllib.loads((HERE / "solutions.toml").read_text())["right"]
WRONG = {
    f"{solution['task']}, {name}": (solution, *change)
    for solution in SOLUTIONS
    for name, change in solution.get("wrong", {}).items()
}
RIGHT = {f"{solution['task']}, {solution['name']}": solution for solution in SOLUTIONS}


@pytest.fixture(scope="session")
def tasks():
    return making.with_laws()


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return making.lay_out(folder, making.read_table()[1])


def submission(reference, folder, task, bodies):
    """A submission: the reference, but for these bodies of one task's functions."""
    for file, names in making.by_file(task["functions"]).items():
        source = (reference / file).read_text()
        for name in names:
            if name in bodies:
                source = fill(source, name, bodies[name], task["guards"])
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(source)
    return folder


def fill(source, name, body, guards):
    return cut.replace_bodies(source, [name], lambda f: (cut.body_after(f, guards), body))


def changed(solution, before, after):
    """The bodies of a right solution with one piece replaced."""
    found = sum(body.count(before) for body in solution["bodies"].values())
    assert found == 1, f"{before!r} stands {found} times in the bodies"
    return {name: body.replace(before, after) for name, body in solution["bodies"].items()}


class Grades:
    """Grades that are computed two at a time while the tests wait for them in turn."""

    def __init__(self, tasks, reference, folder):
        self.tasks, self.reference, self.folder = tasks, reference, folder
        self.pool, self.waiting = ThreadPoolExecutor(2), {}

    def begin(self, name, number, bodies, laws=None):
        task = self.tasks[number - 1]
        folder = submission(self.reference, self.folder / str(len(self.waiting)), task, bodies)
        arguments = (self.reference, folder, task, self.tasks, 0, laws)
        self.waiting[name] = self.pool.submit(grading.grade_task, *arguments)

    def __getitem__(self, name):
        return self.waiting[name].result()


def named(task, law):
    """The laws of a task, one for each case, that a name stands for."""
    return [full for full in task["needs"] if making.key(full) == law]


@pytest.fixture(scope="session")
def grades(tasks, reference, tmp_path_factory, request):
    """Begins all grades that the chosen tests ask for."""
    grades = Grades(tasks, reference, tmp_path_factory.mktemp("submissions"))
    for item in request.session.items:
        if not hasattr(item, "callspec"):
            continue
        name = item.callspec.params["name"]
        if "wrong_solution" in item.name:
            solution, before, after, law = WRONG[name]
            laws = named(tasks[solution["task"] - 1], law)
            bodies = changed(solution, before, after)
            grades.begin(name, solution["task"], bodies, None if "ALL_LAWS" in os.environ else laws)
        elif "right_solution" in item.name:
            grades.begin("right " + name, RIGHT[name]["task"], RIGHT[name]["bodies"])
        elif "trivial" in item.name:
            number, function, answer = name
            task = tasks[number - 1]
            laws = [law for law in task["needs"] if making.key(law) in task["essential"]]
            grades.begin(name, number, {function: answer}, laws)
    yield grades
    if "ALL_LAWS" in os.environ:
        print(summary(grades, tasks))
    grades.pool.shutdown(cancel_futures=True)


def summary(grades, tasks):
    """How the wrong solutions fared: a line."""
    graded = {name: grades[name] for name in WRONG if name in grades.waiting}
    none = [name for name, grade in graded.items() if grade["score"] == 0]
    passed = [
        name
        for name, grade in graded.items()
        if not set(grade["extra_data"]["broken"]) & set(tasks[int(grade["number"]) - 1]["laws"])
    ]
    line = f"{len(graded)} wrong solutions: {len(none)} have no points"
    return f"{line}, {len(passed)} pass the student's own check: {'; '.join(passed)}"


# ------------------------------------------------------------------------------- solutions of single tasks
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_solution_breaks_the_law_that_is_named(name, grades, tasks):
    solution, _, _, law = WRONG[name]
    assert named(tasks[solution["task"] - 1], law), f"{law} is no law of task {solution['task']}"
    graded = grades[name]
    broken = {making.key(full) for full in graded["extra_data"]["broken"]}
    assert law in broken, f"broken: {broken}; {graded['output']}"
    assert graded["score"] < graded["max_score"]


def test_at_least_90_percent_of_the_wrong_solutions_break_a_law_that_is_shown(tasks):
    shown = 0
    for solution, _, _, law in WRONG.values():
        shown += bool(set(named(tasks[solution["task"] - 1], law)) & set(tasks[solution["task"] - 1]["laws"]))
    assert shown >= 0.9 * len(WRONG)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_solution_has_all_points(name, grades):
    graded = grades["right " + name]
    assert graded["score"] == graded["max_score"], graded["output"]


def test_there_are_as_many_solutions_as_were_promised(tasks):
    wrong, right = ([s[0]["task"] for s in WRONG.values()], [s["task"] for s in SOLUTIONS])
    for task in tasks:
        assert wrong.count(task["number"]) >= 5, task["title"]
        assert right.count(task["number"]) >= 2, task["title"]
