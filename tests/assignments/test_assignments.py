"""The classroom, tried out with right, wrong, trivial and hostile solutions.

`python -m pytest tests/assignments`. A wrong solution meets the law named beside it; with
ALL_LAWS=1 in the environment it meets all of its task, and -s shows how it fared.
"""

import ast
import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import check  # noqa: E402
import classroom  # noqa: E402
import cut  # noqa: E402
import screen  # noqa: E402

SOLUTIONS = classroom.tomllib.loads((HERE / "solutions.toml").read_text())
each_task = pytest.mark.parametrize("number", range(1, 15))


def filled(folder, task, bodies):
    """A task's files with bodies {name: text}, as `classroom.taken` gives them."""
    found = {}
    for file, names in task["functions"].items():
        mine = {name: bodies[name] for name in names if name in bodies}
        source = cut.replace_bodies((folder / file).read_text(), mine, task["guards"])
        found[file] = source.encode()
    return found


def fill(folder, task, bodies):
    """Writes bodies {name: text} in the places of a task's functions."""
    for file, source in filled(folder, task, bodies).items():
        (folder / file).write_bytes(source)


def named(task, law):
    """The laws of a task, one for each case, that a name stands for."""
    return [full for full in (*task["laws"], *task["unseen"]) if classroom.key(full) == law]


def some(task, names):
    """A task that has the laws of these names only; all, if none is named."""
    laws = [law for name in names for law in named(task, name) or [name]]
    return task | {"laws": laws, "unseen": []} if names else task


def grade_apart(jobs, tasks):
    """{name: result} of jobs (name, number of a task, files, names of laws; (): all).

    For a process of its own: modules of that name are imported here already.
    """

    def work(laws, trees):
        each = [(name, some(tasks[n - 1], names), files) for name, n, files, names in jobs]
        return dict(classroom.graded(laws, trees, each, os.cpu_count()))

    return classroom.with_reference(work)


def elsewhere(function, *arguments):
    """What a function returns in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# ------------------------------------------------------------------------ solutions of single tasks
def right_solutions(number):
    return [solution for solution in SOLUTIONS["right"] if solution["task"] == number]


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


def trivial_answers(number, folder):
    """{name: bodies} that answer None, zeros, 1 or the first argument."""
    answers = {}
    for file, name in check.functions(classroom.TASKS[number - 1]):
        function = cut.find(ast.parse((folder / file).read_text()), name)
        first = [a.arg for a in function.args.args if a.arg != "self"][:1]
        for answer in ("None", "torch.zeros(2, 3)", "1", *first):
            answers[f"{name}: {answer}"] = {name: f"return {answer}"}
    return answers


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return classroom.lay_out(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    code, said = classroom.python(HERE.parent, HERE, "make", out, "--secret", 2026)
    assert code == 0, said
    return out


@pytest.fixture(scope="session")
def tasks(folders):
    made = json.loads((folders / "grader/tests/assignments/made.json").read_text())
    return classroom.with_laws(made["needs"])


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """See `artificial.submissions`. What it imports must not be imported in other processes."""
    return import_module("artificial").submissions(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def graded(reference, tasks, runs):
    """{(kind, number, name): result} of all solutions, in one process."""
    cases = {}
    for number, task in enumerate(classroom.TASKS[:14], 1):
        for solution in right_solutions(number):
            cases["right", number, solution["name"]] = solution["bodies"], ()
        for name, (bodies, law) in wrong_solutions(number).items():
            cases["wrong", number, name] = bodies, () if "ALL_LAWS" in os.environ else [law]
        for name, bodies in trivial_answers(number, reference).items():
            cases["trivial", number, name] = bodies, task["essential"]
    for name, (number, function, body, _) in SOLUTIONS["hostile"].items():
        cases["hostile", number, name] = {function: body}, ()
    jobs = [
        (case, case[1], filled(reference, classroom.TASKS[case[1] - 1], bodies), laws)
        for case, (bodies, laws) in cases.items()
    ]
    right = dict(filled(reference, classroom.TASKS[6], {}))
    marked = {file: b"\xef\xbb\xbf" + source for file, source in right.items()}
    latin = {f: b"# coding: latin-1 \xe9\n" + s.replace(b"\n", b"\r\n") for f, s in right.items()}
    jobs += [("marked", 7, marked, ()), ("latin", 7, latin, ())]
    jobs += [("missing", 7, right, ["rewards::two_images_by_hand", "rewards::that_is_not_there"])]
    jobs += [(name, number, files, laws) for name, (number, files, laws, _) in runs.items()]
    return elsewhere(grade_apart, jobs, tasks)


def of_kind(graded, kind, number=None):
    return {c[2]: r for c, r in graded.items() if c[0] == kind and c[1] == (number or c[1])}


@each_task
def test_each_wrong_solution_breaks_the_law_that_is_named(number, graded, tasks):
    task, wrong = tasks[number - 1], wrong_solutions(number)
    results = of_kind(graded, "wrong", number)
    assert len(wrong) >= 5
    assert not [law for _, law in wrong.values() if not named(task, law)], "not laws of this task"
    broken = {name: set(result["extra_data"]["broken"]) for name, result in results.items()}
    assert not [n for n in wrong if not broken[n] & set(named(task, wrong[n][1]))]
    assert not [n for n, r in results.items() if not r["output"].startswith("broken")]
    assert not [n for n, r in results.items() if r["score"] == r["max_score"]]
    if "ALL_LAWS" in os.environ:
        none = sum(result["score"] == 0 for result in results.values())
        passed = [name for name in results if not broken[name] & set(task["laws"])]
        print(f"task {number}: {len(results)} wrong, {none} without points; check passes {passed}")


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
        hints = [check.hint(task, law) for law in (*task["laws"], *task["unseen"])]
        assert set(hints) == set(task["look"].values()), task["title"]


@each_task
def test_right_solutions_have_all_points(number, graded):
    results = of_kind(graded, "right", number)
    assert len(results) >= 2
    for name, result in results.items():
        assert result["score"] == result["max_score"], (name, result["output"])


@pytest.mark.parametrize("name", ["marked", "latin"])
def test_a_file_may_have_a_byte_order_mark_or_an_encoding(name, graded):
    assert graded[name]["score"] == 5, graded[name]["output"]


@each_task
def test_trivial_answers_have_no_points(number, graded):
    for name, result in of_kind(graded, "trivial", number).items():
        assert result["score"] == 0, name
        assert result["output"].startswith("broken"), (name, result["output"])


def test_hostile_functions_have_no_points(graded):
    for name, result in of_kind(graded, "hostile").items():
        assert result["score"] == 0, name
        assert result["output"].startswith(SOLUTIONS["hostile"][name][3]), (name, result["output"])


def test_runs_are_those_asked_for_and_claims_are_measured(graded, runs):
    assert {name: graded[name]["score"] for name in runs} == {name: runs[name][3] for name in runs}
    assert "broken: the verdict" in graded["another verdict"]["output"]


def test_a_law_that_does_not_run_is_not_passed(graded):
    assert graded["missing"]["extra_data"]["broken"] == ["rewards::that_is_not_there"]
    assert graded["missing"]["score"] == 0.4 * 5


def failing_examples(secret):
    """Where a reward that is right for few blocks breaks a law, twice. For a process of its own."""

    def work(laws, trees):
        law = next(law for law in laws.items if law.endswith("whatever_was_kept"))
        right = "return torch.where(correct, 1 - u.mean(1).square(), -gamma)"
        body = f"if u.numel() > 6:\n    raise ValueError(u.tolist())\n{right}"
        classroom.put(trees, "blockdrop_min/rewards.py", "reward", ast.parse(body).body)
        runs = [laws.run([law])[law]["text"] for _ in range(2)]
        return [re.findall(r"ValueError: (\[.*)", text) for text in runs]

    return classroom.with_reference(work, secret)


def test_the_secret_draws_the_examples():
    (first, again), (other, _) = (elsewhere(failing_examples, secret) for secret in (1, 2))
    assert first and first == again != other


def refused(body):
    function = ast.parse("def f(x):\n" + textwrap.indent(body, "    "))
    return screen.complaints(function.body[0])


def test_the_screen_knows_every_module_that_a_function_of_a_task_can_name():
    for file in {file for task in classroom.TASKS for file in task["functions"]} - {"answers.py"}:
        names = vars(import_module(file.removesuffix(".py").replace("/", ".")))
        modules = [name for name in names if isinstance(names[name], ModuleType)]
        assert [n for n in modules if not n.startswith("__") and not refused(f"return {n}")] == []


def test_no_module_but_those_of_the_screen_can_be_taken_from_one_of_them():
    for name, allowed in screen.MODULES.items():
        for inner in allowed:
            inside = isinstance(getattr(import_module(name), inner), ModuleType)
            assert not inside or f"{name}.{inner}" in screen.MODULES


@pytest.mark.parametrize("body", SOLUTIONS["screen"]["refused"])
def test_the_screen_refuses(body):
    assert refused(body)


@pytest.mark.parametrize("body", SOLUTIONS["screen"]["accepted"])
def test_the_screen_accepts(body):
    assert refused(body) == []


# --------------------------------------------------------------------------------- how it is judged
TASK = {
    "number": 1,
    "title": "A task",
    "points": 10,
    "laws": ["test_a.py::test_one", "test_a.py::test_two[1]", "test_a.py::test_two[2]"],
    "unseen": ["test_a.py::test_three", "test_a.py::test_four"],
    "essential": ["a::one"],
    "look": {"": "the docstring"},
}


@pytest.mark.parametrize(
    ("broken", "score"),
    [
        ([], 10),
        (TASK["unseen"][:1], 7),
        (TASK["unseen"], 7),
        (TASK["laws"][1:2], 4),
        (TASK["laws"][1:] + TASK["unseen"], 4),
        (TASK["laws"][:1], 0),
        (TASK["laws"] + TASK["unseen"], 0),
    ],
)
def test_the_steps_of_the_points(broken, score):
    assert classroom.judged(TASK, broken)["score"] == score


def test_a_law_is_named_once_and_an_unseen_one_not_at_all():
    said = classroom.judged(TASK, TASK["laws"][1:] + TASK["unseen"])["output"]
    assert said.splitlines() == [
        "broken: two",
        "  look at: the docstring",
        "broken: 2 of the laws that are not shown",
    ]


def test_the_handout_promises_the_points_and_the_steps():
    text = (HERE / "handout.md").read_text()
    said = re.findall(r"^\*\*(\d+)\. (.+?)\*\* \((\d+) points", text, re.MULTILINE)
    table = [(str(n), t["title"], str(t["points"])) for n, t in enumerate(classroom.TASKS, 1)]
    assert said == table
    for part, tasks in (("First", classroom.TASKS[:12]), ("Second", classroom.TASKS[12:])):
        total = sum(task["points"] for task in tasks)
        assert re.search(rf"^## {part} assignment: .*\({total} points", text, re.MULTILINE)
    workflow = (HERE / "classroom.yml").read_text()
    checks = re.findall(r"command: python check\.py (\d+), .*max-score: (\d+)", workflow)
    assert checks == [(number, points) for number, _, points in table[:14]]
    steps = "with them 40 %, with all laws that are shown 70 %, with all 100 %"
    assert steps in " ".join(text.split())


def busy():
    while True:
        pass


def opens_a_file():
    with pytest.raises(OSError, match="Too many open files"):
        os.open(__file__, os.O_RDONLY)
    return "closed"


@pytest.mark.parametrize(
    ("work", "expected", "problem"),
    [
        (lambda: time.sleep(2.5), None, ""),  # waiting costs nothing
        (busy, None, "ended early: an endless loop"),
        (lambda: os._exit(3), None, "ended early: a crash"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), None, check.AGAIN),
        (opens_a_file, "closed", ""),
    ],
)
def test_processor_time_decides_and_what_the_machine_does_is_nobodys_fault(work, expected, problem):
    ((key, found, said),) = check.apart([("key", work, 1, True)])
    assert (key, found) == ("key", expected)
    assert said.startswith(problem) and bool(said) == bool(problem)


def test_out_of_patience_is_not_graded(monkeypatch):
    monkeypatch.setattr(check, "PATIENCE", 1)
    ((_, found, said),) = check.apart([("key", lambda: time.sleep(20), 1, True)])
    assert found is None and said.startswith(check.AGAIN)


# -------------------------------------------------------------------------------- what is handed in
ANSWERS = {"answers.py": b"x = 1\n"}


@pytest.fixture
def answers(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "answers.py").write_bytes(ANSWERS["answers.py"])
    return folder


def test_a_submission_may_lie_in_folders_and_zips(answers, tmp_path):
    nested = tmp_path / "nested" / "deeper"
    shutil.copytree(answers, nested / "work")
    (nested / "essay.pdf").touch()
    (tmp_path / "nested" / "__MACOSX").mkdir()
    zipped = shutil.make_archive(tmp_path / "zipped", "zip", tmp_path / "nested")
    (tmp_path / "moodle").mkdir()
    shutil.copy(zipped, tmp_path / "moodle")
    for name in ("work", "nested", "zipped.zip", "moodle"):
        assert classroom.taken(tmp_path / name) == ANSWERS, name


def test_only_plain_files_of_a_submission_are_taken(answers, tmp_path):
    secret = tmp_path / "secret"
    (secret / "lab").mkdir(parents=True)
    for file in ("rewards.py", "lab/cost.py"):
        (secret / file).write_text("the answer")
    package = answers / "blockdrop_min"
    package.mkdir()
    (package / "rewards.py").symlink_to(secret / "rewards.py")
    (package / "lab").symlink_to(secret / "lab")
    (package / "curriculum.py").symlink_to("/dev/zero")
    (answers / "runs").symlink_to(secret)
    os.mkfifo(package / "finetuning.py")
    (package / "policy_network.py").write_bytes(b"#" * (2**20 + 1))
    assert classroom.taken(answers) == ANSWERS


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("answers.py", b"#" * 2**24)
    assert classroom.taken(tmp_path / "bomb.zip") == {}


@pytest.mark.parametrize("kind", ["loose", "pipe", "linked", "deep"])
def test_what_is_no_submission_is_told_what_to_hand_in(answers, tmp_path, kind):
    place = tmp_path / kind
    place.mkdir()
    if kind == "loose":
        (place / "masked_resnet.py").touch()
    if kind == "pipe":
        os.mkfifo(place / "work.zip")
    if kind == "linked":
        zipped = shutil.make_archive(tmp_path / "zipped", "zip", answers)
        (place / "work.zip").symlink_to(zipped)
    if kind == "deep":  # a zip can hold itself
        shutil.copytree(answers, place.joinpath(*"abcdefghijkl"))
    with pytest.raises(ValueError, match=r"hand in the folder that has check\.py in it"):
        classroom.taken(place)


# -------------------------------------------------------------------------------- whole submissions
def run_tool(folders, folder, *arguments, **environment):
    """Runs the instructor's tool: (exit code, what it printed)."""
    tool = folders / "grader" / "tests" / "assignments"
    return classroom.python(folder, tool, "grade", *arguments, **environment)


def points(folders, submission, folder):
    code, said = run_tool(folders, folder, submission, "--json", "results.json")
    assert code == 0, said
    tests = json.loads((folder / "results.json").read_text())["tests"]
    return [test["score"] for test in tests if "number" in test]  # the last may name unseen laws


def test_the_skeleton_has_no_points_and_valid_json(folders, tmp_path):
    assert points(folders, folders / "student", tmp_path) == [0] * 16


def test_a_students_folder_holds_what_the_table_says_and_nothing_else(folders):
    named = {Path(file).parts[0] for file in classroom.TABLE["files"]}
    assert {path.name for path in (folders / "student").iterdir()} - {"tasks.json"} == named


@pytest.mark.parametrize("place", ["leak.py", "blockdrop_min/lab/leak.py"])
def test_a_leak_is_found_wherever_it_is(folders, reference, tmp_path, place):
    folder = shutil.copytree(folders / "student", tmp_path / "work")
    shutil.copy(reference / "blockdrop_min" / "curriculum.py", folder / place)
    body = cut.body(ast.parse((folder / place).read_text()), "curriculum_step")
    assert all(hit.startswith(place) for hit in cut.leaks([body], folder))
    assert cut.leaks([body], folder)


def test_a_mistake_costs_its_own_task_alone(tasks, reference, folders, tmp_path):
    """Every second task wrong, and tests, config and modules edited: the others keep theirs."""
    folder = shutil.copytree(folders / "student", tmp_path / "submission")
    for task in tasks:
        classroom.solve(folder, task, reference)
    for task in tasks[1::2]:
        names = [name for _, name in check.functions(task)]
        fill(folder, task, dict.fromkeys(names, "return None"))
    (folder / "tests" / "conftest.py").write_text("import os\nos._exit(0)\n")
    (folder / "torch.py").write_text("raise SystemExit\n")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    with open(folder / "blockdrop_min" / "rewards.py", "a") as file:
        file.write("\nimport os\nos._exit(0)\n")
    expected = [t["points"] if t["number"] % 2 and t["number"] < 15 else 0 for t in tasks]
    assert points(folders, ".", folder) == expected


def test_a_class_is_graded_whatever_one_of_it_hands_in(folders, reference, tmp_path):
    for name in ("right", "zipped"):
        folder = shutil.copytree(folders / "student", tmp_path / name)
        classroom.solve(folder, classroom.TASKS[6], reference)
    shutil.make_archive(tmp_path / "zipped", "zip", tmp_path / "zipped")
    (tmp_path / "broken.zip").write_bytes((tmp_path / "zipped.zip").read_bytes()[:1000])
    names = ["right", "zipped.zip", "broken.zip", "missing"]
    long = tmp_path / ("x" * 120)
    long.mkdir()
    options = ["--tasks", 7, 13, "--csv", "table.csv", "--json", "results"]
    code, said = run_tool(folders, tmp_path, *names, *options, TMPDIR=str(long))
    assert code == 2 and "cannot be read" in said
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["submission", "7", "13", "sum", "note"]
    assert [row[:4] for row in rows[1:]] == [
        ["points", "5", "5", "10"],
        ["right", "5", "0", "5"],
        ["zipped", "5", "0", "5"],
        ["broken", "0", "0", "0"],
        ["missing", "?", "?", "?"],
    ]
    assert rows[4][4].startswith("nothing taken") and rows[5][4].startswith("cannot be read")
    written = sorted(file.name for file in (tmp_path / "results").iterdir())
    assert written == ["broken.json", "right.json", "zipped.json"]


@pytest.fixture
def pretended(monkeypatch, answers):
    """`grade` of one task, in no process, with these problems {name: text}: (code, secret)."""

    def grade(problems, **options):
        def graded(laws, trees, jobs, at_once):
            for name, task, _ in jobs:
                yield name, classroom.judged(task, TASK["unseen"], problems[name])

        def with_reference(work, secret):
            secrets.append(secret)
            return work(None, None)

        secrets = []
        monkeypatch.setattr(classroom, "graded", graded)
        monkeypatch.setattr(classroom, "with_reference", with_reference)
        monkeypatch.setattr(classroom, "with_laws", lambda needs, chosen: [TASK])
        monkeypatch.setattr(classroom, "MADE", {"secret": 2026, "needs": {}})
        for name in problems:
            shutil.copytree(answers, answers.parent / name, dirs_exist_ok=True)
        return classroom.grade([answers.parent / name for name in problems], **options), *secrets

    return grade


def test_what_is_not_graded_has_a_code_of_its_own_and_no_results(pretended, tmp_path, capsys):
    code, _ = pretended({"a": "", "b": check.AGAIN}, json_path=tmp_path / "out")
    assert code == 4
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.json"]
    assert re.search(r"^b +\? +\?", capsys.readouterr().out, re.MULTILINE)


def test_the_secret_is_that_of_make_or_the_one_given(pretended):
    assert pretended({"a": ""}) == (0, 2026)
    assert pretended({"a": ""}, secret=7) == (0, 7)


def test_unseen_laws_are_named_where_students_see_them_late(pretended, tmp_path):
    pretended({"a": ""}, json_path=tmp_path / "results.json")
    task, late = json.loads((tmp_path / "results.json").read_text())["tests"]
    assert "three" not in task["output"] and "visibility" not in task
    assert late["output"].splitlines() == ["broken: A task: three", "broken: A task: four"]
    assert late["visibility"] == "after_published" and late["max_score"] == 0


def test_two_students_with_one_run_are_told_apart_by_a_note(pretended, answers, capsys):
    (answers / "runs" / "gamma1").mkdir(parents=True)
    (answers / "runs" / "gamma1" / "checkpoint.pt").touch()
    pretended({"a": "", "b": ""})
    assert "runs/gamma1/checkpoint.pt is that of a" in capsys.readouterr().out


def test_two_submissions_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two submissions have one name"):
        classroom.grade([tmp_path / "ann" / "hw.zip", tmp_path / "bob" / "hw"])


# ----------------------------------------------------------------------------- the student's folder
def test_check_tells_open_broken_waiting_and_right_apart(folders, reference, tasks, tmp_path):
    folder = shutil.copytree(folders / "student", tmp_path / "work")

    def check(number):
        return classroom.python(folder, "check.py", number)

    assert check(2)[0] == 3
    classroom.solve(folder, tasks[1], reference)
    code, said = check(2)
    assert code == 1 and "waits for task 1" in said and "   x " not in said
    assert said.count("waits for") == 1
    classroom.solve(folder, tasks[0], reference)
    assert check(2)[0] == 0
    fill(folder, tasks[1], {"run_masked": "return block.shortcut(x)"})
    code, said = check(2)
    assert code == 1 and "look at: shortcut 1, 2, 3" in said
    assert "x a kept block gives relu of shortcut plus F" in said
    fill(folder, tasks[1], {"run_masked": f"y = block.shoortcut(x)\n{tasks[1]['hole']}"})
    code, said = check(2)
    assert code == 1 and "still stands in run_masked" in said
    assert said.count("'BasicBlock' object has no attribute 'shoortcut'") == 1
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


def test_an_instructors_folder_grades_the_tasks_that_were_made(monkeypatch, tasks, folders):
    made = json.loads((folders / "grader/tests/assignments/made.json").read_text())
    assert made["secret"] == 2026
    monkeypatch.setattr(classroom, "MADE", made | {"tasks": [13, 14]})
    assert [task["number"] for task in classroom.with_laws(made["needs"])] == [13, 14]
    with pytest.raises(ValueError, match="there are tasks 1 to 16"):
        classroom.with_laws(made["needs"], [17])
