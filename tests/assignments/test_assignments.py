"""The classroom, tried out with right, wrong, trivial and hostile solutions.

`python -m pytest tests/assignments`. A wrong solution meets the law named beside it; with
ALL_LAWS=1 in the environment it meets all of its task, and -s shows how it fared.
"""

import itertools
import json
import os
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import classroom  # noqa: E402
import cut  # noqa: E402
import screen  # noqa: E402

TABLE = classroom.tomllib.loads((HERE / "solutions.toml").read_text())
each_task = pytest.mark.parametrize("number", range(1, 15))


@pytest.fixture(scope="session")
def tasks():
    return classroom.with_laws()


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return classroom.lay_out(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    classroom.make(out, say=lambda line: None)
    return out


def fill(folder, task, bodies):
    """Writes bodies {name: text} in the places of a task's functions."""
    for file, names in task["functions"].items():
        functions = {file: [name for name in names if name in bodies]}
        new = {"functions": functions}
        classroom.edit(folder, new, lambda _, name: bodies[name], task.get("guards", True))


def named(task, law):
    """The laws of a task, one for each case, that a name stands for."""
    return [full for full in (*task["laws"], *task["unseen"]) if classroom.key(full) == law]


@pytest.fixture
def grades(tasks, reference, tmp_path):
    """Grades solutions {name: (task, bodies, names of laws; none: all)}: {name: result}.

    In CI, which has a quarter of an hour for everything, about every fourth.
    """

    def one(name, number, bodies, laws):
        task = tasks[number - 1]
        folder = shutil.copytree(reference, tmp_path / str(next(numbers)))
        fill(folder, task, bodies)
        laws = [full for law in laws for full in named(task, law)] or None
        return name, classroom.grade_task(reference, folder, task, 0, laws)

    def grade(solutions):
        cases = [(name, *solution) for name, solution in solutions.items()]
        if "CI" in os.environ:
            cases = cases[len(cases[0][0]) % min(4, len(cases)) :: 4]
        with ThreadPoolExecutor(2) as pool:
            return dict(pool.map(lambda case: one(*case), cases))

    numbers = itertools.count()
    return grade


def right_solutions(number):
    return [solution for solution in TABLE["right"] if solution["task"] == number]


def wrong_solutions(number):
    """{name: (bodies, the law that must break)}: right ones with one piece replaced."""
    wrong = {}
    for solution in right_solutions(number):
        for name, (before, after, law) in solution.get("wrong", {}).items():
            found = sum(body.count(before) for body in solution["bodies"].values())
            assert found == 1, f"{before!r} stands {found} times in the bodies"
            changed = {f: body.replace(before, after) for f, body in solution["bodies"].items()}
            wrong[name] = (changed, law)
    return wrong


# ------------------------------------------------------------------------ solutions of single tasks
@each_task
def test_each_wrong_solution_breaks_the_law_that_is_named(number, grades, tasks):
    task, wrong = tasks[number - 1], wrong_solutions(number)
    assert len(wrong) >= 5
    assert all(named(task, law) for _, law in wrong.values()), "not a law of this task"
    every = "ALL_LAWS" in os.environ
    graded = grades(
        {n: (number, bodies, () if every else [law]) for n, (bodies, law) in wrong.items()}
    )
    broken = {name: set(grade["extra_data"]["broken"]) for name, grade in graded.items()}
    assert not [n for n in graded if not broken[n] & set(named(task, wrong[n][1]))]
    for name, grade in graded.items():
        assert grade["score"] < grade["max_score"], name
        assert grade["output"].startswith("broken"), (name, grade["output"])
    if every:
        none = sum(grade["score"] == 0 for grade in graded.values())
        passed = [name for name in graded if not broken[name] & set(task["laws"])]
        print(f"task {number}: {len(graded)} wrong, {none} without points; check passes {passed}")


def test_at_least_90_percent_of_the_wrong_solutions_break_a_law_that_is_shown(tasks):
    shown = [
        bool(set(named(task, law)) & set(task["laws"]))
        for task in tasks
        for _, law in wrong_solutions(task["number"]).values()
    ]
    assert sum(shown) >= 0.9 * len(shown)
    assert len(shown) >= 70


def test_every_law_has_a_hint_and_every_hint_a_law(tasks):
    for task in tasks:
        hints = [classroom.hint(task, law) for law in (*task["laws"], *task["unseen"])]
        assert set(hints) == set(task["look"].values()), task["title"]


@each_task
def test_right_solutions_have_all_points(number, grades):
    solutions = {s["name"]: (number, s["bodies"], ()) for s in right_solutions(number)}
    assert len(solutions) >= 2
    for name, grade in grades(solutions).items():
        assert grade["score"] == grade["max_score"], (name, grade["output"])


@each_task
def test_trivial_answers_have_no_points(number, grades, tasks, reference):
    solutions, task = {}, tasks[number - 1]
    for file, names in task["functions"].items():
        tree = cut.parse((reference / file).read_text())
        for name in names:
            first = [a.arg for a in cut.find(tree, name).args.args if a.arg != "self"][:1]
            for answer in ("None", "torch.zeros(2, 3)", "1", *first):
                body = {name: f"return {answer}"}
                solutions[f"{name}: {answer}"] = (number, body, task["essential"])
    for name, grade in grades(solutions).items():
        assert grade["score"] == 0, name
        assert grade["output"].startswith("broken"), (name, grade["output"])


def test_hostile_functions_have_no_points(grades):
    hostile = {name: (n, {f: body}, ()) for name, (n, f, body, _) in TABLE["hostile"].items()}
    for name, grade in grades(hostile).items():
        assert grade["score"] == 0, name
        assert grade["output"].startswith(TABLE["hostile"][name][3]), (name, grade["output"])


def test_the_screen_lets_nobody_go_from_torch_to_a_module_of_pythons():
    seen, new = set(), {torch, torch.nn, torch.nn.functional}
    while new:
        seen |= new
        inner = [item for module in new for item in vars(module).items()]
        inner = [(name, thing) for name, thing in inner if isinstance(thing, types.ModuleType)]
        new = {thing for name, thing in inner if not refused(name)} - seen
    found = {module.__name__ for module in seen if not module.__name__.startswith("torch")}
    assert len(seen) > 3 and found <= {"typing_extensions", "collections.abc", "copy"}  # harmless


def refused(attribute):
    tree = cut.parse(f"def f(x):\n    return x.{attribute}")
    return screen.complaints(cut.find(tree, "f"))


# -------------------------------------------------------------------------------- whole submissions
def test_the_skeleton_has_no_points_and_valid_json(folders, tmp_path):
    assert grade(folders, folders / "student", tmp_path) == [0] * 16


def grade(folders, submission, folder):
    """The points of all tasks, as the instructor's folder gives them."""
    tool = folders / "grader" / "tests" / "assignments"
    code, said = classroom.python(folder, tool, "grade", submission, "--json", "results.json")
    assert code == 0, said
    return [test["score"] for test in json.loads((folder / "results.json").read_text())["tests"]]


def test_a_mistake_costs_its_own_task_alone(tasks, reference, folders, tmp_path):
    """Every second task wrong, and tests, config and modules edited: the others keep theirs."""
    folder = shutil.copytree(folders / "student", tmp_path / "submission")
    for task in tasks:
        classroom.solve(folder, task, reference)
    for task in tasks[1::2]:
        names = [name for names in task["functions"].values() for name in names]
        fill(folder, task, dict.fromkeys(names, "return None"))
    (folder / "tests" / "conftest.py").write_text("import os\nos._exit(0)\n")
    (folder / "torch.py").write_text("raise SystemExit\n")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    with open(folder / "blockdrop_min" / "rewards.py", "a") as file:
        file.write("\nimport os\nos._exit(0)\n")
    points = [t["points"] if t["number"] % 2 and t["number"] < 15 else 0 for t in tasks]
    assert grade(folders, ".", folder) == points


def test_an_instructors_folder_grades_the_tasks_that_were_made(monkeypatch):
    monkeypatch.setattr(classroom, "MADE", {"tasks": [13, 14], "needs": classroom.needs_of_laws()})
    assert [task["number"] for task in classroom.with_laws()] == [13, 14]
    with pytest.raises(ValueError, match="there are tasks 1 to 16"):
        classroom.with_laws([17])


def test_a_law_that_does_not_run_is_not_passed(tasks, reference):
    laws = [*tasks[6]["laws"], "tests/test_rewards.py::test_that_is_not_there"]
    graded = classroom.grade_task(reference, reference, tasks[6], 0, laws)
    assert graded["score"] < graded["max_score"]
    assert graded["extra_data"]["broken"] == laws[-1:]


# ----------------------------------------------------------------------------- the student's folder
def test_check_tells_open_broken_waiting_and_right_apart(folders, reference, tasks, tmp_path):
    folder = shutil.copytree(folders / "student", tmp_path / "work")

    def check(number):
        return classroom.python(folder, "check.py", number)

    assert check(2)[0] == 3
    classroom.solve(folder, tasks[1], reference)
    code, said = check(2)
    assert code == 1 and "waits for task 1" in said and "   x " not in said
    classroom.solve(folder, tasks[0], reference)
    assert check(2)[0] == 0
    fill(folder, tasks[1], {"run_masked": "return block.shortcut(x)"})
    code, said = check(2)
    assert code == 1 and "look at: shortcut 1, 2, 3" in said
    assert "x a kept block gives relu of shortcut plus F" in said
    fill(folder, tasks[1], {"run_masked": "import os"})
    code, said = check(2)
    assert code == 1 and "masked_resnet.py, line" in said and "`import os` is not needed" in said
    assert check(99)[0] == 2


CHANGES = [
    ("def run_masked", "@torch.no_grad()\ndef run_masked"),
    ("(block, x, keep)", "(block, x, kept)"),
    ("import torch\n", "import torch, math\n"),
    ("class BasicBlock", "def helper(x):\n    return x\n\n\nclass BasicBlock"),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_check_says_what_grading_would_not_take(folders, reference, tasks, tmp_path, before, after):
    folder = shutil.copytree(folders / "student", tmp_path / "work")
    for task in tasks[:2]:
        classroom.solve(folder, task, reference)
    path = folder / "blockdrop_min" / "masked_resnet.py"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    code, said = classroom.python(folder, "check.py", 2)
    assert code == 1 and "masked_resnet.py: only bodies count; take back what you changed" in said


def test_check_names_the_file_of_a_syntax_error_in_another_task(folders, tmp_path):
    folder = shutil.copytree(folders / "student", tmp_path / "work")
    fill(folder, classroom.TASKS[6], {"reward": "return u"})
    fill(folder, classroom.TASKS[5], {"free_blocks": "return ("})
    code, said = classroom.python(folder, "check.py", 7)
    assert code == 2 and "'(' was never closed (curriculum.py, line" in said


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "file").touch()
    code, said = classroom.python(HERE.parent, HERE, "make", tmp_path)
    assert code == 2 and said == f"tests/assignments: {tmp_path} is not empty; name a new folder\n"


def test_a_submission_that_is_not_there_is_refused(folders, tmp_path):
    tool = folders / "grader" / "tests" / "assignments"
    code, said = classroom.python(tmp_path, tool, "grade", "nowhere")
    assert code == 2
    assert said.endswith("nowhere is not a folder; name a student's folder\n")
