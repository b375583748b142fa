"""The classroom, tried out with right, wrong, trivial and hostile solutions.

`python -m pytest tests/assignments`. A wrong solution meets the law named beside it; with
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
    return making.lay_out(tmp_path_factory.mktemp("reference"))


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
        folder = shutil.copytree(self.reference, self.folder / str(len(self.waiting)))
        making.fill(folder, task, bodies)
        arguments = (self.reference, folder, task, self.tasks, 0, laws)
        self.waiting[name] = self.pool.submit(grading.grade_task, *arguments)

    def __getitem__(self, name):
        return self.waiting[name].result()


def named(task, law):
    """The laws of a task, one for each case, that a name stands for."""
    return [full for full in (*task["laws"], *task["unseen"]) if making.key(full) == law]


@pytest.fixture(scope="session")
def grades(tasks, reference, tmp_path_factory, request):
    """Begins all grades that the chosen tests ask for."""
    grades = Grades(tasks, reference, tmp_path_factory.mktemp("submissions"))
    for item in request.session.items:
        if not hasattr(item, "callspec"):
            continue
        name = item.callspec.params.get("name")
        if "wrong_solution" in item.name:
            solution, before, after, law = WRONG[name]
            laws = named(tasks[solution["task"] - 1], law)
            bodies = changed(solution, before, after)
            grades.begin(name, solution["task"], bodies, None if "ALL_LAWS" in os.environ else laws)
        elif "right_solution" in item.name:
            grades.begin("right " + name, RIGHT[name]["task"], RIGHT[name]["bodies"])
        elif "trivial" in item.name:
            number, function, answer = TRIVIAL[name]
            task = tasks[number - 1]
            laws = [full for law in task["essential"] for full in named(task, law)]
            body = answer.format(first=first_argument(reference, task, function))
            grades.begin(name, number, {function: body}, laws)
        elif "hostile" in item.name:
            number, function, body = HOSTILE[name]
            grades.begin(name, number, {function: body})
    yield grades
    if "ALL_LAWS" in os.environ:
        print(summary(grades, tasks))
    grades.pool.shutdown(cancel_futures=True)


def first_argument(reference, task, function):
    """The name of a function's first argument but `self`."""
    file = next(f.split("::")[0] for f in task["functions"] if f.split("::")[1] == function)
    tree = cut.parse((reference / file).read_text())
    names = [argument.arg for argument in cut.find(tree, function).args.args]
    return names[1] if names[0] == "self" and len(names) > 1 else names[0]


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


def some(cases):
    """All cases; in CI, which has a quarter of an hour for everything, every fourth."""
    return list(cases)[:: 4 if "CI" in os.environ else 1]


ANSWERS = ("return None", "return {first}", "return torch.zeros(2, 3)", "return 1")
TRIVIAL = {
    f"{function}: {answer}": (number, function, answer)
    for number, task in enumerate(making.TABLE["task"], 1)
    for function in (f.split("::")[1] for f in task["functions"])
    for answer in ANSWERS
}


# ------------------------------------------------------------------------ solutions of single tasks
@pytest.mark.parametrize("name", some(WRONG))
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
        shown += bool(
            set(named(tasks[solution["task"] - 1], law)) & set(tasks[solution["task"] - 1]["laws"])
        )
    assert shown >= 0.9 * len(WRONG)


@pytest.mark.parametrize("name", some(RIGHT))
def test_a_right_solution_has_all_points(name, grades):
    graded = grades["right " + name]
    assert graded["score"] == graded["max_score"], graded["output"]


def test_there_are_as_many_solutions_as_were_promised(tasks):
    wrong, right = ([s[0]["task"] for s in WRONG.values()], [s["task"] for s in SOLUTIONS])
    for task in tasks[:14]:
        assert wrong.count(task["number"]) >= 5, task["title"]
        assert right.count(task["number"]) >= 2, task["title"]


@pytest.mark.parametrize("name", some(TRIVIAL))
def test_a_trivial_answer_has_no_points(name, grades):
    assert grades[name]["score"] == 0, grades[name]["output"]


# ---------------------------------------------------------------------------------- what is hostile
REWARD = "reward"
HOSTILE = {
    "ends the process": (7, REWARD, "raise SystemExit(0)"),
    "loops for ever": (7, REWARD, "while True:\n    pass"),
    "counts for ever": (7, REWARD, "for i in iter(int, 1):\n    pass"),
    "takes all memory": (7, REWARD, "return torch.ones(10**6, 10**6)"),
    "imports": (7, REWARD, "import os\nos._exit(0)"),
    "imports by a call": (7, REWARD, "__import__('os')._exit(0)"),
    "evaluates": (7, REWARD, "return eval('1')"),
    "opens a file": (7, REWARD, "return open('/etc/passwd').read()"),
    "patches torch": (7, REWARD, "torch.equal = lambda a, b: True\nreturn correct.float()"),
    "patches by setattr": (7, REWARD, "setattr(torch, 'equal', lambda a, b: True)\nreturn u"),
    "another name for torch": (7, REWARD, "t = torch\nreturn t.utils.data"),
    "reads frames": (7, REWARD, "return (i for i in u).gi_frame.f_back.f_globals"),
    "an object that is equal to all": (
        7,
        REWARD,
        "class A:\n    def __eq__(self, o):\n        return True\nreturn A()",
    ),
    "reads the reference": (7, REWARD, "return reward.__globals__['check_policy']"),
    "turns gradients off": (7, REWARD, "torch.set_grad_enabled(False)\nreturn u"),
    "another default dtype": (7, REWARD, "torch.set_default_dtype(torch.float64)\nreturn u"),
    "loads code": (7, REWARD, "return torch.load('x', weights_only=False)"),
    "compiles C++": (7, REWARD, "return torch.utils.cpp_extension.load_inline('x', 'y')"),
    "catches everything": (
        7,
        REWARD,
        "try:\n    return u\nexcept BaseException:\n    return correct",
    ),
    "calls a later task": (2, "run_masked", "return run_sparse(block, x, keep.nonzero()[:, 0])"),
    "is always of the wrong shape": (
        8,
        "policy_loss",
        "return torch.full_like(s_bounded, torch.nan)",
    ),
    "no Python": (7, REWARD, "return ("),
}


@pytest.mark.parametrize("name", some(HOSTILE))
def test_a_hostile_function_has_no_points(name, grades):
    graded = grades[name]
    assert graded["score"] == 0, graded["output"]
    json.dumps(graded)


# -------------------------------------------------------------------------------- whole submissions
@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    making.make(out, say=lambda line: None)
    return out


def test_the_skeleton_has_no_points_and_valid_json(folders, tmp_path):
    assert run("grade", folders / "student", "--json", tmp_path / "results.json")[0] == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [test["score"] for test in results["tests"]] == [0] * 16
    assert [test["output"] for test in results["tests"]][:14] == ["not begun"] * 14


def test_a_mistake_costs_its_own_task_alone(tasks, reference, folders, tmp_path):
    """Every second task wrong or hostile, and edited tests: the others keep their points."""
    folder = tmp_path / "submission"
    shutil.copytree(folders / "student", folder)
    for task in tasks:
        making.solve(folder, task, reference)
    for task in tasks[1::2]:
        bodies = {f.split("::")[1]: "return None" for f in task["functions"]}
        making.fill(folder, task, bodies)
    (folder / "tests" / "conftest.py").write_text("import os\nos._exit(0)\n")
    (folder / "torch.py").write_text("raise SystemExit\n")
    (folder / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\naddopts = '--collect-only'\n"
    )
    with open(folder / "blockdrop_min" / "rewards.py", "a") as file:
        file.write("\nimport os\nos._exit(0)\n")
    assert run("grade", folder, "--json", tmp_path / "results.json")[0] == 0
    tests = json.loads((tmp_path / "results.json").read_text())["tests"]
    assert [test["score"] for test in tests] == [
        task["points"] * (task["number"] % 2 and task["number"] < 15) for task in tasks
    ], [test["output"] for test in tests]


def test_a_law_that_does_not_run_is_not_passed(tasks, reference):
    laws = [*tasks[6]["laws"], "tests/test_rewards.py::test_that_is_not_there"]
    graded = grading.grade_task(reference, reference, tasks[6], tasks, 0, laws)
    assert graded["score"] < graded["max_score"]
    assert graded["extra_data"]["broken"] == laws[-1:]


# ----------------------------------------------------------------------------- the student's folder
def test_check_tells_open_broken_waiting_and_right_apart(folders, reference, tasks, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(folders / "student", folder)
    assert making.python(folder, "check.py", 2)[0] == 3
    making.solve(folder, tasks[1], reference)
    code, said = making.python(folder, "check.py", 2)
    assert code == 1 and "waits for task 1" in said and "   x " not in said
    making.solve(folder, tasks[0], reference)
    assert making.python(folder, "check.py", 2)[0] == 0
    making.fill(folder, tasks[1], {"run_masked": "return block.shortcut(x)"})
    code, said = making.python(folder, "check.py", 2)
    assert (
        code == 1
        and "a kept block gives relu of shortcut plus F" in said
        and "look at: shortcut 1, 2, 3" in said
    )
    making.fill(folder, tasks[1], {"run_masked": "import os"})
    code, said = making.python(folder, "check.py", 2)
    assert code == 1 and "masked_resnet.py, line" in said and "Import is not needed here" in said
    assert making.python(folder, "check.py", 99)[0] == 2


def run(*arguments):
    return making.python(making.ROOT, HERE, *arguments)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "file").touch()
    said = f"tests/assignments: {tmp_path} is not empty; name a new folder\n"
    assert run("make", tmp_path) == (2, said)
