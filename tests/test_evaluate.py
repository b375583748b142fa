"""evaluate.py, as a user meets it: what it prints, what it writes, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import rng
from PIL import Image
from runs import contents, state_of, write_tree

import evaluate
from blockdrop_min import load, policy_cost, resnet_cost
from blockdrop_min.lab import evaluation, pictures
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, save
from blockdrop_min.lab.data import Split, load_data
from blockdrop_min.lab.enumeration import enumerate_policies
from blockdrop_min.lab.evaluation import Result, evaluate_policies, run_policy
from blockdrop_min.lab.log import safe_console
from blockdrop_min.lab.settings import Settings
from blockdrop_min.lab.shapes import SHAPES

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SMALL = {"image_size": 16, "train_images": 96, "val_images": 24, "device": "cpu"}
COMMAND = [sys.executable, "evaluate.py"]


@torch.no_grad()
def write_run(folder, stage="finetune", **changes):
    """A run's folder as train.py leaves it, of random networks; policies differ by image."""
    state, model = state_of(**SMALL, **changes)
    state["classes"] = tuple(SHAPES)
    if "policy" not in changes:
        x = model.prepare(load_data("shapes", None, 16, 96, 24).val.images)
        logits = model.policy.logit(model.policy.embed(x))
        model.policy.logit.weight /= logits.std(0)[:, None]
        model.policy.logit.bias.copy_((model.policy.logit.bias - logits.mean(0)) / logits.std(0))
        state["policy"] = model.policy.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, {**state, "stage": stage})
    save(folder, {**state, "stage": stage})  # and the one before
    return folder


@pytest.fixture
def run(tmp_path):
    torch.set_num_threads(1)
    return write_run(tmp_path / "run")


def evaluated(capsys, *arguments):
    """What evaluate.py prints with these arguments; it ends well and says nothing else."""
    assert evaluate.main([*map(str, arguments), "--device", "cpu"]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


def numbers(tmp_path, *arguments):
    """What --json writes."""
    path = tmp_path / "found.json"
    assert evaluate.main([*map(str, arguments), "--device", "cpu", "--json", str(path)]) == 0
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name}?"))


def refused(capsys, *arguments):
    """The one line on standard error with which evaluate.py ends with exit code 2."""
    try:
        code = evaluate.main([*map(str, arguments)])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("evaluate.py: ") and error.count("\n") == 1
    return error


def made_up(folder, accuracy=0.9, blocks=5.0, flops=4e7, seed=0, dealt=(0.05, 0.01), policies=3):
    """A `Run` with these numbers in the rows of BlockDrop and of the full network."""
    results = {}
    for name in ("full", "blockdrop", "best static", "blind"):
        result = Result(torch.ones(2).bool(), torch.ones(2, 9), torch.ones(2).double(), 8e7)
        result.accuracy, result.blocks_mean, result.blocks_std = accuracy, blocks, 0.71
        result.flops_mean, result.flops_std, result.flops_saved = flops, 3e6, 1 - flops / 8e7
        result.distinct_policies = policies
        results[name] = result
    results["full"].accuracy = 0.91
    found = {"dealt_loss": dealt[0], "dealt_loss_error": dealt[1]}
    return evaluate.Run(str(folder), Settings(seed=seed), None, results, found)


def printed(table, width=80):
    console = safe_console()
    console.width = width
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# ------------------------------------------------------------------------------------------- JSON
KEYS = {
    "accuracy", "full_accuracy", "blocks_mean", "blocks_std", "num_blocks", "flops_mean",
    "flops_std", "flops_full", "flops_saved", "distinct_policies", "images", "baselines",
    "rank_correlation", "blocks_by_difficulty", "dealt_loss", "dealt_loss_error", "run",
}  # fmt: skip


def test_the_json_has_every_key(run, tmp_path):
    assert set(numbers(tmp_path, run)) == KEYS


def test_the_json_holds_accuracy_blocks_and_flops_of_every_rival(run, tmp_path):
    rows = numbers(tmp_path, run)["baselines"]
    names = ["full", "blockdrop", "first", "random", "distribute", "best static", "blind"]
    assert set(rows) == set(names)
    assert all(set(row) == {"accuracy", "blocks", "flops"} for row in rows.values())


def test_the_numbers_are_those_of_the_model_run_by_hand(run, tmp_path):
    found = numbers(tmp_path, run)
    test = load_data("shapes", None, 16, 96, 24, with_test=True).test
    logits, u = load(run)(test.images)
    right = (logits.argmax(1) == test.labels).double().mean().item()
    assert found["accuracy"] == pytest.approx(right)
    assert found["blocks_mean"] == pytest.approx(u.sum(1).mean().item())
    assert found["distinct_policies"] == len(u.unique(dim=0)) > 1
    assert found["images"] == len(test)
    assert found["flops_saved"] == pytest.approx(1 - found["flops_mean"] / found["flops_full"])


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_without_a_learned_policy_is_measured_on_the_test_set(tmp_path, monkeypatch, stage):
    measured = []

    def noting(model, split, *arguments, **options):
        measured.append(split.images)
        return run_policy(model, split, *arguments, **options)

    monkeypatch.setattr(evaluation, "run_policy", noting)
    numbers(tmp_path, write_run(tmp_path / "run", stage, policy="first:2"))
    test = load_data("shapes", None, 16, 96, 24, with_test=True).test
    assert [torch.equal(images, test.images) for images in measured] == [True] * len(measured)
    assert len(measured) == (1 if stage == "pretrain" else 2)


def test_the_runs_own_seed_reaches_its_rivals(tmp_path):
    found = {}
    data = load_data("shapes", None, 16, 96, 24, with_test=True)
    for seed in (0, 1):
        folder = write_run(tmp_path / str(seed), seed=seed)
        found[seed] = numbers(tmp_path, folder)["baselines"]
        results = evaluate_policies(load(folder), data, seed)
        for name, result in results.items():
            assert found[seed][name]["accuracy"] == result.accuracy
            assert found[seed][name]["flops"] == result.flops_mean
    assert found[0]["blind"] != found[1]["blind"]


def test_the_json_of_several_runs_has_the_first_and_a_list_of_all(run, tmp_path):
    other = write_run(tmp_path / "other", seed=1)
    alone = [numbers(tmp_path, folder) for folder in (run, other)]
    both = numbers(tmp_path, run, other)
    assert both.pop("runs") == alone
    assert both == alone[0]


def test_a_single_run_has_no_list_of_runs(run, tmp_path):
    assert "runs" not in numbers(tmp_path, run)


def test_blocks_by_quarter_of_difficulty_are_means_over_its_images(run, tmp_path):
    test = load_data("shapes", None, 16, 96, 24, with_test=True).test
    blocks = load(run)(test.images)[1].sum(1)
    quarters = (4 * test.difficulty).floor().clamp(max=3)
    expected = [blocks[quarters == q].mean().item() for q in range(4)]
    assert numbers(tmp_path, run)["blocks_by_difficulty"] == pytest.approx(expected)


def test_a_quarter_of_difficulty_without_an_image_has_no_number(run, tmp_path, capsys, monkeypatch):
    def only_easy(*arguments, **options):
        data = load_data(*arguments, **options)
        return replace(data, test=replace(data.test, difficulty=data.test.difficulty / 4))

    monkeypatch.setattr(evaluate, "load_data", only_easy)
    first, *others = numbers(tmp_path, run)["blocks_by_difficulty"]
    assert first > 0 and others == [None] * 3
    assert ", none, none, none" in capsys.readouterr().out


def test_a_checkpoint_file_is_evaluated_like_its_folder(run, tmp_path):
    whole = numbers(tmp_path, run)
    assert numbers(tmp_path, run / NAME) == whole | {"run": str(run / NAME)}


@pytest.mark.parametrize("name", [NAME, "settings.json", "metrics.jsonl", "mine.json", "notes.txt"])
def test_json_overwrites_nothing_but_what_it_wrote_itself(run, capsys, name):
    path = run / name
    if not path.exists() or not path.stat().st_size:
        path.write_text('{"mine": 1}')
    before = contents(run)
    assert name in refused(capsys, run, "--json", path)
    assert contents(run) == before


def test_json_overwrites_an_earlier_result_and_an_empty_file(run, tmp_path):
    (tmp_path / "found.json").touch()
    assert numbers(tmp_path, run) == numbers(tmp_path, run)


def test_json_does_not_wait_for_a_pipe(run, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refused(capsys, run, "--json", tmp_path / "pipe")


def test_a_full_disk_leaves_the_older_json_and_the_table_is_printed(
    run, tmp_path, capsys, monkeypatch
):
    before = numbers(tmp_path, run)
    capsys.readouterr()

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(evaluate, "write_safely", full)
    assert evaluate.main([str(run), "--device=cpu", "--json", str(tmp_path / "found.json")]) == 2
    out, error = capsys.readouterr()
    assert "No space" in error and error.count("\n") == 1 and "BlockDrop" in out
    assert json.loads((tmp_path / "found.json").read_text()) == before


def test_a_json_file_in_no_folder_is_named(run, capsys):
    assert "found.json" in refused(capsys, run, "--json", run / "nowhere" / "found.json")


# ------------------------------------------------------------------------------------------ table
def test_the_mean_and_deviation_of_runs_by_hand():
    assert evaluate.mean_std([90.0, 92.0, 94.0], "{:.2f}") == "92.00 ± 2.00"
    assert evaluate.mean_std([90.0], "{:.2f}") == "90.00"
    assert evaluate.mean_std([90.0], "{:.2f}", 1.5) == "90.00 ± 1.50"


def test_the_table_of_three_runs_by_hand():
    runs = [made_up("r", a, b, f, policies=p) for a, b, f, p in
            [(0.90, 4, 4e7, 3), (0.92, 5, 4.4e7, 5), (0.94, 6, 4.8e7, 7)]]  # fmt: skip
    row = next(
        line for line in printed(evaluate.results_table(runs)).splitlines() if "BlockD" in line
    )
    expected = ["BlockDrop", "92.00 ± 2.00", "5.00 ± 1.00", "44.0 ± 4.0", "45.0 ± 5.0", "5 ± 2"]
    assert re.split(r"\s{2,}", row.strip()) == expected


@pytest.mark.parametrize("flops", [4e7, 1.25e10])
def test_the_table_is_whole_at_80_columns(flops):
    runs = [made_up("r", a, 24.77, flops, policies=p) for a, p in [(0.9, 484), (0.5, 93), (0.8, 7)]]
    for one in runs:
        one.results["full"].flops_full = flops
    text = printed(evaluate.results_table(runs))
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "73.33 ± 20.82" in text and "24.77 ± 0.00" in text and "195 ± 254" in text


def test_the_table_of_all_policies_is_whole_at_80_columns(run, capsys):
    lines = evaluated(capsys, run, "--enumerate").splitlines()
    tables = [line for line in lines if str(run) not in line]
    assert "…" not in "".join(tables) and max(map(len, tables)) <= 80
    assert sum(
        "±" in line and line.startswith(("by ", "learned", "each", "0", "1")) for line in tables
    )


def test_a_long_fixed_policy_wraps_and_its_numbers_are_whole():
    run = made_up("r")
    run.settings = Settings(depth=110, policy="10" * 27)
    console = safe_console(soft_wrap=True)
    console.width = 80
    with console.capture() as capture:
        evaluate.report(console, [run])
    lines = [line for line in capture.get().splitlines() if not line.startswith("r: ")]
    assert any("5.00 ± 0.71" in line for line in lines) and max(map(len, lines)) <= 80


def test_a_narrow_terminal_cuts_no_number(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert "…" not in evaluated(capsys, run)


def test_several_seeds_share_a_table_of_means_and_deviations(run, tmp_path, capsys):
    out = evaluated(capsys, run, write_run(tmp_path / "other", seed=1))
    assert "2 run(s)" in out and re.search(r"\nBlockDrop +\d+\.\d\d ± \d+\.\d\d ", out)


def test_runs_that_start_from_resnets_of_their_own_share_a_table(tmp_path, capsys):
    folders = [write_run(tmp_path / f"{s}", policy="first:2", resnet=f"{s}.pt") for s in (0, 1)]
    assert "2 run(s)" in evaluated(capsys, *folders)


def test_runs_that_differ_in_more_than_their_seed_get_tables_of_their_own(run, tmp_path, capsys):
    out = evaluated(capsys, run, write_run(tmp_path / "other", policy="first:2"))
    assert out.count("1 run(s)") == 2 and "first:2" in out


def test_a_run_in_pretraining_has_a_table_of_its_own_with_the_full_network(run, tmp_path, capsys):
    elsewhere = write_run(tmp_path / "elsewhere", workers=2)
    out = evaluated(capsys, run, write_run(tmp_path / "begun", "pretrain"), elsewhere)
    assert out.count("1 run(s)") == 1 and out.count("2 run(s)") == 1
    assert out.split("1 run(s)")[1].count("full network") == 1


def test_a_run_that_only_pretrained_has_no_rivals(tmp_path, capsys):
    out = evaluated(capsys, write_run(tmp_path / "begun", "pretrain"))
    assert "full network" in out and "FirstK" not in out and "BlockDrop" not in out


@pytest.mark.parametrize("name", ["exp[lr=0.1]", "a[/y]", "[red]x[/red]", ":smile:", "é"])
def test_what_a_user_named_is_no_markup(tmp_path, capsys, name):
    out = evaluated(capsys, write_run(tmp_path / name), "--enumerate")
    assert f"{tmp_path / name}: ResNet-8" in out
    assert out.count(str(tmp_path / name)) >= 4


# ------------------------------------------------------------------------------------- in words
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "saves 50 % of the FLOPs and loses 1.0 points; 3 policies; dealt to other images they "
             "lose 5.0 ± 1.0 points: the choice is one per image."),
        ({"dealt": (0.015, 0.01)}, "lose 1.5 ± 1.0 points: it is not per image."),
        ({"dealt": (-0.05, 0.01)}, "lose -5.0 ± 1.0 points: it is not per image."),
        ({"accuracy": 0.93}, "and gains 2.0 points;"),
        ({"flops": 1e8}, "adds 25 % of the FLOPs and"),
        ({"policies": 1}, "points; one policy for all images."),
    ],
)  # fmt: skip
def test_what_came_out_is_said_in_words(changes, words):
    text = evaluate.verdict(made_up("r", **changes))
    assert text.startswith("BlockDrop ") and words in text


def test_the_words_are_printed_with_the_numbers_of_the_json(run, tmp_path, capsys):
    found = numbers(tmp_path, run)
    loss = f"{100 * found['dealt_loss']:.1f} ± {100 * found['dealt_loss_error']:.1f} points"
    assert f"{found['distinct_policies']} policies; dealt to other images they lose {loss}" in (
        capsys.readouterr().out
    )


def test_the_best_static_policy_is_named(run, capsys):
    assert re.search(rf"{run}: best static policy [01]{{3}}\n", evaluated(capsys, run))


# ------------------------------------------------------------------------------------- enumerate
def test_enumeration_is_that_of_the_model_on_its_data(run, tmp_path):
    data = load_data("shapes", None, 16, 96, 24, with_test=True)
    settings = Settings(**state_of(**SMALL)[0]["settings"])
    expected = enumerate_policies(load(run), data, settings.finetune_gamma)
    found = numbers(tmp_path, run, "--enumerate")["enumeration"]
    assert found == json.loads(json.dumps(expected))
    assert {"gamma", "learned_reward", "best_static_reward", "informed_reward"} <= set(found)


@pytest.mark.parametrize(("stage", "gamma"), [("curriculum", 1.5), ("finetune", 2.5)])
def test_the_reward_has_the_gamma_of_the_stage_that_the_run_is_in(tmp_path, stage, gamma):
    run = write_run(tmp_path / "run", stage, curriculum_gamma=1.5, finetune_gamma=2.5)
    assert numbers(tmp_path, run, "--enumerate")["enumeration"]["gamma"] == gamma


def test_the_best_static_row_is_then_counted(run, tmp_path, capsys):
    found = numbers(tmp_path, run, "--enumerate")
    row = found["baselines"]["best static"]
    digits = list(found["enumeration"]["frontier"])[round(row["blocks"])]
    assert row["accuracy"] == found["enumeration"]["frontier"][digits]["accuracy"]
    assert f"best static policy {digits}" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"policy": "first:2"}, {"stage": "pretrain"}])
def test_without_a_learned_policy_the_others_are_counted(tmp_path, changes):
    found = numbers(tmp_path, write_run(tmp_path / "run", **changes), "--enumerate")["enumeration"]
    assert "learned_reward" not in found and "best_static_reward" in found
    assert (tmp_path / "run" / "enumeration.png").exists()


def test_more_blocks_than_can_be_counted_are_refused_in_a_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", depth=32)
    assert "K = 15" in refused(capsys, run, "--enumerate")


# --------------------------------------------------------------------------------------- pictures
def test_evaluating_changes_nothing_but_the_pictures(run, capsys):
    before = contents(run)
    evaluated(capsys, run, "--enumerate")
    new = {path.name for path in contents(run)} - {path.name for path in before}
    assert new == {"keep_rates.png", "extremes.png", "tradeoff.png", "enumeration.png"}
    assert {path: contents(run)[path] for path in before} == before


def test_the_folders_of_the_pictures_are_said_and_no_others(run, tmp_path, capsys):
    begun = write_run(tmp_path / "begun", "pretrain")
    assert evaluated(capsys, run, begun).splitlines()[-1] == f"pictures in {run}"


def drawn(monkeypatch, name):
    """The arguments with which this picture is drawn."""
    calls = []
    monkeypatch.setattr(pictures, name, lambda *arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize("policy", ["learned", "first:2"])
def test_a_point_of_the_tradeoff_is_a_row_of_the_table(tmp_path, monkeypatch, policy):
    calls = drawn(monkeypatch, "tradeoff")
    changes = {} if policy == "learned" else {"policy": policy}
    found = numbers(tmp_path, write_run(tmp_path / "run", **changes))
    points, path, lines = calls[0]
    assert path == tmp_path / "run" / "tradeoff.png" and lines == {}
    ours = "BlockDrop" if policy == "learned" else policy
    rows = {ours: "blockdrop", "full network": "full"}
    for name, key in rows.items():
        row = found["baselines"][key]
        assert points[name] == [(row["flops"], row["accuracy"])]


def test_several_runs_share_the_picture_of_the_first(run, tmp_path, monkeypatch):
    calls = drawn(monkeypatch, "tradeoff")
    other = write_run(tmp_path / "other", seed=1)
    found = numbers(tmp_path, run, other)["runs"]
    drawn_at = {path: points["BlockDrop"] for points, path, _ in calls}
    rows = [one["baselines"]["blockdrop"] for one in found]
    spots = [(row["flops"], row["accuracy"]) for row in rows]
    assert drawn_at == {run / "tradeoff.png": spots, other / "tradeoff.png": spots[1:]}


def test_the_picture_of_all_policies_has_the_frontier_as_a_line(run, tmp_path, monkeypatch):
    calls = drawn(monkeypatch, "tradeoff")
    found = numbers(tmp_path, run, "--enumerate")["enumeration"]
    points, _, lines = next(call for call in calls if call[1].name == "enumeration.png")
    frontier = [(row["flops"], row["accuracy"]) for row in found["frontier"].values()]
    assert lines == {"single policies": frontier} and len(frontier) == 4
    assert set(points) == set(found["policies"])


@pytest.mark.parametrize(("classes", "lines"), [(pictures.CIFAR10.split(), 6), (list("ab"), 0)])
def test_the_papers_points_are_drawn_for_the_ten_classes_of_cifar_alone(
    monkeypatch, classes, lines
):
    calls = drawn(monkeypatch, "tradeoff")
    run = made_up("r")
    run.data = replace(load_data("shapes", None, 16, 96, 24), classes=tuple(classes))
    evaluate.draw_tradeoff([run], Path("x.png"))
    assert len(calls[0][2]) == lines
    assert not lines or calls[0][2]["BlockDrop, paper"][0] == pytest.approx((0.87e8, 0.913))


def test_pictures_that_cannot_be_saved_are_said_in_a_line_and_the_table_is_printed(run, capsys):
    (run / "keep_rates.png").mkdir()
    assert evaluate.main([str(run), "--device=cpu"]) == 0
    out, error = capsys.readouterr()
    assert "not saved" in error and error.count("\n") == 1
    assert "keep_rates.png" in error and "BlockDrop" in out


def test_pictures_of_a_model_that_ships_go_into_a_folder_of_their_own(run, tmp_path, monkeypatch):
    read = evaluate.read
    monkeypatch.setattr(evaluate, "read", lambda name: read(run if name == "demo" else name))
    monkeypatch.chdir(tmp_path)
    found = numbers(tmp_path, "demo")
    assert found["run"] == "demo"
    names = {path.name for path in (tmp_path / "runs" / "demo-shipped").iterdir()}
    assert names == {"keep_rates.png", "extremes.png", "tradeoff.png"}


# -------------------------------------------------------------------------------- one's own images
@pytest.fixture
def photographs(tmp_path):
    """Three images of 16 x 16 pixels in a folder: path -> pixels [3, 16, 16]."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    found = {}
    for i in range(3):
        pixels = torch.randint(256, (16, 16, 3), generator=rng(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        found[str(folder / f"{i}.png")] = pixels.permute(2, 0, 1)
    return found


def test_each_image_gets_the_line_that_load_gives(run, capsys, photographs):
    lines = evaluated(capsys, run, "--images", *photographs).splitlines()
    model = load(run)
    cost = resnet_cost(model.resnet, 16)
    for line, (path, pixels) in zip(lines, photographs.items(), strict=False):
        logits, u = model(pixels[None])
        best = int(logits.argmax())
        name, probability = list(SHAPES)[best], 100 * logits.softmax(1)[0, best]
        saved = 1 - (cost.of(u).item() + policy_cost(model.policy, 16)) / cost.full
        bar = "".join("■" if keep else "□" for keep in u[0])
        words = f"{bar}  {int(u.sum())} of 3 blocks, {100 * saved:.0f} % saved"
        assert line == f"{path}  {words}: {name} {probability:.1f} %"


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"data": "imagenet", "image_size": 0}, (224, 256)),
        ({"data": "folder", "image_size": 0}, (0, None)),
        ({"data": "cifar10", "image_size": 0}, (32, None)),
        ({"data": "shapes", "image_size": 0}, (32, None)),
        ({"data": "folder", "image_size": 20}, (20, None)),
    ],
)
def test_an_image_is_prepared_as_the_data_of_the_run_is(
    tmp_path, capsys, photographs, monkeypatch, changes, sizes
):
    state, _ = state_of(**SMALL | changes)
    save(tmp_path, state)
    seen = []
    load_image = evaluate.images.load_image

    def noting(path, *size):
        seen.append(size)
        return load_image(path, *size)

    monkeypatch.setattr(evaluate.images, "load_image", noting)
    evaluated(capsys, tmp_path, "--images", *photographs)
    assert set(seen) == {sizes}


def test_a_folder_stands_for_the_images_in_it(run, capsys, photographs):
    folder = Path(next(iter(photographs))).parent
    (folder / "notes.txt").write_text("not an image")
    named = evaluated(capsys, run, "--images", *photographs)
    assert evaluated(capsys, run, "--images", folder) == named


def test_answers_are_drawn_beside_the_runs_pictures(run, capsys, photographs, monkeypatch):
    calls = drawn(monkeypatch, "answers")
    out = evaluated(capsys, run, "--images", *photographs)
    answered, path = calls[0]
    images, blocks, names = zip(*answered, strict=True)
    assert path == run / "images.png" and f"picture: {path}" in out
    assert [torch.equal(a, b) for a, b in zip(images, photographs.values(), strict=True)] == [
        True
    ] * 3
    results = [load(run)(image[None]) for image in images]
    assert blocks == tuple(int(u.sum()) for _, u in results)
    assert names == tuple(list(SHAPES)[logits.argmax()] for logits, _ in results)


def test_a_bad_file_is_one_line_and_does_not_stop_the_others(run, capsys, photographs, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG not really")
    first, *others = photographs
    code = evaluate.main([str(run), "--device=cpu", "--images", first, str(bad), *others])
    out, error = capsys.readouterr()
    assert code == 2 and error.count("\n") == 1 and "bad.png" in error
    assert all(path in out for path in photographs)


def test_a_folder_without_images_is_said_in_a_line(run, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, run, "--images", tmp_path / "empty")


@pytest.mark.parametrize("more", [["--enumerate"], ["--json=x.json"]])
def test_images_are_answered_and_nothing_else(run, capsys, photographs, more):
    assert "--images" in refused(capsys, run, *more, "--images", *photographs)


def test_images_take_a_single_run(run, capsys, photographs):
    assert "one RUN" in refused(capsys, run, run, "--images", *photographs)


def test_no_data_is_read_to_answer_for_images(run, capsys, photographs, monkeypatch):
    monkeypatch.setattr(evaluate, "load_data", lambda *given, **options: pytest.fail("read"))
    evaluated(capsys, run, "--images", *photographs)


def test_answers_that_cannot_be_drawn_are_still_given(run, capsys, photographs):
    (run / "images.png").mkdir()
    assert evaluate.main([str(run), "--device=cpu", "--images", *photographs]) == 0
    out, error = capsys.readouterr()
    assert all(path in out for path in photographs)
    assert "images.png" in error and error.count("\n") == 1


# ------------------------------------------------------------------------------------- as a process
def process(*arguments, **options):
    """evaluate.py as a process of its own."""
    environment = ENVIRONMENT | options.pop("env", {})
    command = [*COMMAND, *map(str, arguments), "--device=cpu"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, cwd=ROOT, env=environment, **streams)


def test_an_output_that_is_only_ascii_gets_everything_that_it_can_show(run, photographs):
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    with (
        process(run, env=plain) as table,
        process(run, "--images", *photographs, env=plain) as bars,
    ):
        out, error = table.communicate(timeout=120)
        assert (table.returncode, error) == (0, "") and out.isascii() and "BlockDrop" in out
        out, error = bars.communicate(timeout=120)
        assert (bars.returncode, error) == (0, "") and re.search(r"  [#.]{3}  \d of 3 blocks", out)


def test_a_reader_that_goes_away_and_no_reader_at_all_lose_no_result(run, tmp_path):
    for i, pipe in enumerate(["| head -1", ">&-"]):
        path = tmp_path / f"{i}.json"
        command = f"{sys.executable} evaluate.py {run} --device=cpu --json {path} {pipe}"
        ended = subprocess.run(
            command,
            shell=True,
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.stderr == "" and "baselines" in json.loads(path.read_text())


@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0])
def test_ctrl_c_is_one_line_and_exit_code_130_twice_and_while_importing_too(run, tmp_path, seconds):
    many = tmp_path / "many"  # more than can be answered before the signal
    many.mkdir()
    for i in range(9000):
        os.symlink(ROOT / "docs" / "demo.png", many / f"{i}.png")
    with process(run, "--images", many) as running:
        time.sleep(seconds)
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
    assert (running.returncode, error) == (130, "evaluate.py: stopped\n")


# --------------------------------------------------------------------------------------- bad input
def test_a_damaged_checkpoint_is_said_to_be_so_when_the_one_before_is_evaluated(run, capsys):
    (run / NAME).write_bytes(b"damaged")
    assert evaluate.main([str(run), "--device=cpu"]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"evaluate.py: {run / NAME}") and PREVIOUS in error
    assert error.count("\n") == 1


def test_a_run_that_is_not_there_is_named(capsys, tmp_path):
    assert "nowhere" in refused(capsys, tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"text"])
def test_a_folder_whose_checkpoints_are_damaged_is_refused(run, capsys, content):
    for name in (NAME, PREVIOUS):
        (run / name).write_bytes(content)
    assert str(run) in refused(capsys, run)


def test_a_run_whose_parts_do_not_fit_is_refused(capsys, tmp_path):
    state, _ = state_of()
    save(tmp_path, {**state, "classes": ("a", "b")})
    assert "fc.weight" in refused(capsys, tmp_path)


def test_data_whose_classes_are_not_those_of_the_checkpoint_is_refused(run, capsys, monkeypatch):
    data = load_data("shapes", None, 16, 96, 24, with_test=True)
    classes = replace(data, classes=("apple", "bee"))
    monkeypatch.setattr(evaluate, "load_data", lambda *given, **options: classes)
    assert "apple" in refused(capsys, run)


def test_data_of_another_folder_is_read_from_there(tmp_path, capsys):
    tree = write_tree(tmp_path / "images", size=(16, 16))
    state, _ = state_of(
        **SMALL | {"train_images": 0, "val_images": 4}, data="folder", data_dir="gone"
    )
    assert "gone" in json.dumps(state["settings"])
    save(tmp_path, {**state, "classes": tuple("abcdefghij")})
    assert "apple" in refused(capsys, tmp_path, "--data-dir", tree)


@pytest.mark.parametrize("device", ["nosuch", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(run, capsys, device):
    assert device in refused(capsys, run, "--device", device)


@pytest.mark.parametrize("flags", [["--nosuch"], ["--threshold", "1"], ["--bench"], ["--json"]])
def test_a_bad_command_line_is_refused(run, capsys, flags):
    assert flags[0] in refused(capsys, run, *flags)


def test_no_run_at_all_is_refused(capsys):
    assert "RUN" in refused(capsys)


KINDS = {  # changes of the run, and flags
    "learned": ({}, []),
    "fixed": ({"policy": "first:2"}, []),
    "pretrained": ({"stage": "pretrain"}, []),
    "counted": ({}, ["--enumerate"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_read_by_as_many_processes_as_the_run_has(tmp_path, monkeypatch, capsys, kind):
    asked = []
    batches = Split.batches

    def noted(self, batch_size, order=None, workers=0, part=slice):
        asked.append(workers)
        return batches(self, batch_size, order, 0, part)

    monkeypatch.setattr(Split, "batches", noted)
    changes, flags = KINDS[kind]
    evaluated(capsys, write_run(tmp_path / "run", workers=3, **changes), *flags)
    assert set(asked) == {3}


def test_a_run_is_measured_in_channels_last(run):
    _, _, model = evaluate.open_run(run, torch.device("cpu"))
    for name, p in model.named_parameters():
        if p.dim() == 4:
            assert p.is_contiguous(memory_format=torch.channels_last), name
