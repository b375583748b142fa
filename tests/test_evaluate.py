"""evaluate.py, as a user meets it: what it prints, what it writes, what it refuses."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import rng
from PIL import Image
from runs import contents, state_of, write_tree

import evaluate
from blockdrop_min import load, policy_cost, resnet_cost
from blockdrop_min.lab import pictures, report
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, save
from blockdrop_min.lab.data import Split, load_data
from blockdrop_min.lab.enumeration import enumerate_policies
from blockdrop_min.lab.evaluation import Result, run_policy
from blockdrop_min.lab.program import console
from blockdrop_min.lab.rivals import dealt_loss, measure_rivals, worth_of_looking
from blockdrop_min.lab.settings import Settings
from blockdrop_min.lab.shapes import SHAPES

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SMALL = {"image_size": 16, "train_images": 96, "val_images": 24, "device": "cpu"}
UNTRAINED = ["first", "random", "distribute", "best static", "blind"]


def shapes():
    """The data of a run: 72 images to learn from, 24 to validate on and 24 to test on."""
    return load_data("shapes", None, 16, 96, 24, with_test=True)


@torch.no_grad()
def write_run(folder, stage="finetune", epoch=1, **changes):
    """A run's folder as train.py leaves it, of random networks; policies differ by image."""
    state, model = state_of(**SMALL | changes)
    state["classes"] = tuple(SHAPES)
    if "policy" not in changes:
        x = model.prepare(shapes().val.images)
        logits = model.policy.logit(model.policy.embed(x))
        model.policy.logit.weight /= logits.std(0)[:, None]
        model.policy.logit.bias.copy_((model.policy.logit.bias - logits.mean(0)) / logits.std(0))
        state["policy"] = model.policy.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(2):  # the one before, too
        save(folder, {**state, "stage": stage, "epoch": epoch})
    return folder


def write_rivals(run, *policies, **changes):
    """Fair rivals in a run's folder."""
    for digits in policies:
        flags = {"policy": digits, "stages": "finetune", "resnet": str(run / "resnet.pt")}
        write_run(run / f"static-{digits}", **flags | changes)
    return run


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


def made_up(accuracy=0.9, blocks=5.0, flops=4e7, policies=3, dealt=(0.05, 0.01), **more):
    """A `Run` called r with these numbers in all rows."""
    results = {}
    for name in ("full", "blockdrop", "trained static", "best static"):
        result = Result(torch.ones(2).bool(), torch.ones(2, 9), torch.ones(2).double(), 8e7)
        result.accuracy, result.blocks_mean, result.blocks_std = accuracy, blocks, 0.71
        result.flops_mean, result.flops_std, result.flops_saved = flops, 3e6, 1 - flops / 8e7
        result.distinct_policies = policies
        results[name] = result
    results["full"].accuracy = 0.91
    more = {"worth_of_looking": None} | more
    found = {"dealt_loss": dealt, "baselines": {"best static": {"policy": "000011111"}}} | more
    return report.Run("r", Settings(), None, results, found)


def printed(group):
    """The lines about a group of runs on a terminal of 80 columns, with its table apart."""
    screen = console(soft_wrap=True)
    screen.width = 80
    with screen.capture() as capture:
        report.tell(screen, group)
    lines = capture.get().splitlines()
    return [line for line in lines if not line.startswith("r: ")], lines


# ------------------------------------------------------------------------------------------- JSON
def test_the_json_has_the_numbers_of_the_model_run_by_hand(run, tmp_path):
    found = numbers(tmp_path, run)
    data, model = shapes(), load(run)
    logits, u = model(data.test.images)
    flops = resnet_cost(model.resnet, 16).of(u) + policy_cost(model.policy, 16)
    quarters = (4 * data.test.difficulty).floor().clamp(max=3)
    ours, full = run_policy(model, data.test, 16), run_policy(model, data.test, 16, torch.ones(3))
    assert found["accuracy"] == (logits.argmax(1) == data.test.labels).double().mean().item()
    assert found["full_accuracy"] == full.accuracy != found["accuracy"]
    assert found["blocks_mean"] == pytest.approx(u.sum(1).mean().item())
    assert found["flops_mean"] == pytest.approx(flops.mean().item())
    assert found["flops_saved"] == pytest.approx(1 - flops.mean().item() / full.flops_full)
    assert found["blocks_by_difficulty"] == [
        pytest.approx(u[quarters == quarter].sum(1).mean().item()) for quarter in range(4)
    ]
    rho = report.rank_correlation(u.sum(1), data.test.difficulty)
    assert found["rank_correlation"] == pytest.approx(rho)
    rows = {"full": full, "blockdrop": ours} | measure_rivals(model, data, ours)
    assert found["baselines"] == {name: result.row() for name, result in rows.items()}
    others = {"blocks_std", "flops_std", "flops_full", "distinct_policies"}
    assert {name: found[name] for name in others} == {name: getattr(ours, name) for name in others}
    assert found["images"] == 24 and found["num_blocks"] == 3 and found["run"] == str(run)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_without_a_learned_policy_is_measured_on_the_test_set(tmp_path, stage):
    folder = write_run(tmp_path / "run", stage, policy="first:2")
    found = numbers(tmp_path, folder)
    u = torch.ones(3) if stage == "pretrain" else torch.tensor([1.0, 1, 0])
    expected = run_policy(load(folder), shapes().test, 16, u)
    assert list(found["baselines"]) == (["full"] if stage == "pretrain" else ["full", "blockdrop"])
    assert found["accuracy"] == expected.accuracy and found["flops_mean"] == expected.flops_mean
    assert "dealt_loss" not in found


def test_the_runs_own_seed_reaches_its_rivals_and_deals_its_policies(tmp_path):
    found = [numbers(tmp_path, write_run(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    model, data = load(tmp_path / "1"), shapes()
    ours = run_policy(model, data.test, 16)
    blind = measure_rivals(model, data, ours, 1)["blind"].row()
    assert found[1]["baselines"]["blind"] == blind != found[0]["baselines"]["blind"]
    assert tuple(found[1]["dealt_loss"]) == dealt_loss(model, data, ours, 1)
    assert found[0]["dealt_loss"] != found[1]["dealt_loss"]


def test_a_small_test_set_has_its_own_number_of_images_and_quarters_without_any(run):
    test = shapes().test.subset(torch.arange(17))
    test = replace(test, difficulty=test.difficulty / 4)
    found = report.numbers_of(test, {"full": run_policy(load(run), test, 16)})
    assert found["images"] == 17 and found["blocks_by_difficulty"][1:] == [None] * 3


def test_the_json_of_several_runs_has_the_first_and_a_list_of_all(run, tmp_path):
    other = write_run(tmp_path / "other", seed=1)
    alone = [numbers(tmp_path, folder) for folder in (run, other)]
    assert not any("runs" in one for one in alone)
    both = numbers(tmp_path, run, other)
    assert both.pop("runs") == alone and both == alone[0]


def test_a_checkpoint_file_is_evaluated_like_its_folder(run, tmp_path):
    write_rivals(run, "110")
    assert numbers(tmp_path, run / NAME) == numbers(tmp_path, run) | {"run": str(run / NAME)}


@pytest.mark.parametrize("name", [NAME, "settings.json", "mine.json"])
def test_json_overwrites_nothing_but_what_it_wrote_itself(run, capsys, name):
    path = run / name
    if not path.exists():
        path.write_text('{"mine": 1}')
    before = contents(run)
    assert name in refused(capsys, run, "--json", path)
    assert contents(run) == before


def test_json_overwrites_an_earlier_result_and_an_empty_file(run, tmp_path):
    (tmp_path / "found.json").touch()
    assert numbers(tmp_path, run) == numbers(tmp_path, run)


@pytest.mark.parametrize("name", ["pipe", "nowhere/x.json"])
def test_a_json_file_that_cannot_be_written_is_named_after_the_table(run, tmp_path, capsys, name):
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    assert evaluate.main([str(run), "--device=cpu", "--json", str(path)]) == 2
    out, error = capsys.readouterr()
    assert path.name in error and error.count("\n") == 1 and "\nBlockDrop " in out


def test_paths_begin_at_home_if_they_say_so(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    evaluated(capsys, "~/run", "--json=~/found.json")
    assert (tmp_path / "found.json").exists()


# ------------------------------------------------------------------------------------ fair rivals
def test_fair_rivals_are_rows_with_the_numbers_of_their_own_runs(run, tmp_path, capsys):
    write_rivals(run, "110", "111")
    found = numbers(tmp_path, run)
    data = shapes()
    ours = run_policy(load(run), data.test, 16)
    fair = [run_policy(load(run / f"static-{u}"), data.test, 16) for u in ("110", "111")]
    nearest, other = sorted(fair, key=lambda rival: abs(rival.flops_mean - ours.flops_mean))
    rows = found["baselines"]
    assert list(rows) == ["full", "blockdrop", "trained static", "trained static 1", *UNTRAINED]
    assert rows["trained static"] == nearest.row() and rows["trained static 1"] == other.row()
    assert rows["trained static"]["policy"] in ("110", "111")
    worth, error = worth_of_looking(ours, fair)
    assert found["worth_of_looking"] == [worth, error]
    text = " ".join(capsys.readouterr().out.split())
    points = f"{100 * worth:.1f} ± {100 * error:.1f} points"
    assert f"At equal FLOPs, looking at the image is worth {points}" in text
    assert "one policy of 2 blocks" in text and "one policy of 3 blocks" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"finetune_epochs": 2, "epoch": 2}, "another finetune"), ({"seed": 1}, "another seed"),
     ({"train_images": 90}, "another train_images"), ({"epoch": 0}, "not come to its end"),
     ({"stage": "pretrain"}, "not come to its end"), ({"policy": "learned"}, "kind of policy"),
     ({"width": 4, "seed": 1}, "another width, seed"), (None, "no whole checkpoint")],
)  # fmt: skip
def test_a_rival_that_does_not_compare_is_said_in_a_line_and_left_out(
    run, tmp_path, capsys, changes, words
):
    alone = numbers(tmp_path, run)
    rival = write_rivals(run, "110", **changes or {}) / "static-110"
    if changes is None:
        save(rival, {**state_of()[0], "resnet": {}})
    capsys.readouterr()
    assert numbers(tmp_path, run) == alone
    error = capsys.readouterr().err
    assert f"{rival} is not compared: " in error and words in error and error.count("\n") == 1


def test_a_run_that_has_not_come_to_its_end_has_no_fair_rivals(run, tmp_path, capsys):
    write_run(write_rivals(run, "110"), epoch=0)
    assert "trained static" not in numbers(tmp_path, run)["baselines"]
    assert capsys.readouterr().err.count("is not compared") == 1


def test_the_fair_rivals_are_a_line_of_the_tradeoff(run, monkeypatch, capsys):
    write_rivals(run, "110", "111")
    [(series, _)] = drawn(monkeypatch, run, capsys)
    data = shapes()
    fair = [run_policy(load(run / f"static-{u}"), data.test, 16) for u in ("110", "111")]
    assert series["one policy, trained as long"] == [(r.flops_mean, r.accuracy) for r in fair]


def test_runs_that_differ_in_gamma_or_policy_are_drawn_as_two_lines(tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)
    dear, cheap = (write_run(tmp_path / n, finetune_gamma=float(n)) for n in ("9", "2"))
    fixed = write_run(tmp_path / "fixed", policy="100")
    write_rivals(dear, "110", finetune_gamma=9.0)
    calls = drawn(monkeypatch, dear, capsys, cheap, fixed)
    curve, path = calls[-1]
    assert path == dear / "curve.png" and len(calls) == 4
    data = shapes()

    def spot(folder):
        found = run_policy(load(folder), data.test, 16)
        return found.flops_mean, found.accuracy

    assert curve == {
        "BlockDrop": sorted([spot(dear), spot(cheap)]),
        "one policy, trained as long": sorted([spot(dear / "static-110"), spot(fixed)]),
    }


# ------------------------------------------------------------------------------------------ table
def test_the_table_of_three_runs_by_hand():
    rows = [(0.90, 4, 4e7, 3), (0.92, 5, 4.4e7, 5), (0.94, 6, 4.8e7, 7)]
    runs = [made_up(*row) for row in rows]
    table, _ = printed(runs)
    expected = ["BlockDrop", "92.00 ± 2.00", "5.00 ± 1.00", "44.0 ± 4.0", "45.0 ± 5.0", "5 ± 2"]
    assert re.split(r"\s{2,}", table[4].strip()) == expected
    heads = ["policy", "accuracy %", "blocks", "FLOPs (M)", "saved %", "policies"]
    assert re.split(r"\s{2,}", table[1].strip()) == heads
    assert " ".join(line.split()[0] for line in table[3:]).startswith("full BlockDrop one")
    assert any(line.startswith("one policy of 5") for line in table)


def test_each_row_has_the_name_of_its_policy():
    names = {"full": "full network", "blockdrop": "BlockDrop", "first": "FirstK", "blind": "same"}
    names |= {"random": "RandomK", "distribute": "DistributeK", "best static": "best static"}
    run = made_up()
    run.results = {n: made_up(i / 100).results["blockdrop"] for i, n in enumerate(names)}
    table, _ = printed([run])
    for i, name in enumerate(names.values()):
        [line] = [line for line in table if line.startswith(name)]
        assert f" {i}.00 " in line and ("untrained" in line) == (i > 1)


@pytest.mark.parametrize("flops", [4e7, 1.25e10])
def test_the_table_is_whole_at_80_columns(flops):
    runs = [made_up(a, 24.77, flops, p) for a, p in [(0.9, 484), (0.5, 93), (0.8, 7)]]
    text = "\n".join(printed(runs)[0])
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "73.33 ± 20.82" in text and "24.77 ± 0.00" in text and "195 ± 254" in text
    runs[0].settings = Settings(depth=110, policy="10" * 27)  # which wraps
    lines = printed(runs[:1])[0]
    assert any("24.77 ± 0.71" in line for line in lines) and max(map(len, lines)) <= 80


def test_a_narrow_terminal_cuts_no_number(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert "…" not in evaluated(capsys, run)


def test_runs_that_differ_in_what_may_differ_share_a_table(run, tmp_path, capsys):
    changes = {"seed": 1, "resnet": "r.pt", "workers": 2, "data_dir": "d", "rivals": 1}
    others = [write_run(tmp_path / name, **{name: value}) for name, value in changes.items()]
    out = evaluated(capsys, run, *others)
    assert "6 run(s)" in out and re.search(r"\nBlockDrop +\d+\.\d\d ± \d+\.\d\d ", out)


def test_runs_that_differ_in_more_get_tables_of_their_own(run, tmp_path, capsys):
    fixed = write_run(tmp_path / "fixed", policy="first:2")
    begun = write_run(tmp_path / "begun", "pretrain")
    out = evaluated(capsys, run, fixed, begun)
    assert out.count("1 run(s)") == 3 and "\nfirst:2 " in out
    last = out.split("1 run(s)")[3]
    assert "full network" in last and "FirstK" not in last and "BlockDrop" not in last


def test_each_run_has_a_line_on_its_own_best_static_policy():
    runs = [made_up(baselines={"best static": {"policy": u}}) for u in ("000011111", "110011001")]
    lines = printed(runs)[1]
    assert [line for line in lines if line.startswith("r: best static")] == [
        "r: best static policy 000011111", "r: best static policy 110011001"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["exp[lr=0.1]", "a[/y]", ":smile:", "é", "a\nb\x1b[31m"])
def test_names_are_shown_as_they_are_or_escaped(tmp_path, capsys, name):
    out = evaluated(capsys, write_run(tmp_path / name))
    name = name.replace("\n", r"\n").replace("\x1b", r"\x1b")
    assert f"{tmp_path}/{name}: ResNet-8 on shapes, 1 run(s)" in out and "\x1b" not in out
    assert out.count(f"{tmp_path}/{name}") == 5


# ------------------------------------------------------------------------------------- in words
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "BlockDrop saves 50 % of the FLOPs at -1.0 points; 3 policies, which lose 5.0 ± 1.0 "
             "points if they are dealt to other images: the choice is one per image."),
        ({"dealt": (0.015, 0.01)}, "1.5 ± 1.0 points if they are dealt to other images: it is"),
        ({"dealt": (-0.05, 0.01)}, "-5.0 ± 1.0 points if they are dealt to other images: it is"),
        ({"accuracy": 0.93, "flops": 1e8}, "saves -25 % of the FLOPs at +2.0 points;"),
        ({"worth_of_looking": (0.014, 0.0025)},
         "image. At equal FLOPs, looking at the image is worth 1.4 ± 0.2 points."),
    ],
)  # fmt: skip
def test_what_came_out_is_said_in_words(changes, words):
    assert words in report.verdict(made_up(**changes))


# -------------------------------------------------------------------------------------- enumerate
def test_enumeration_is_that_of_the_model_on_its_data(run, tmp_path):
    data, model = shapes(), load(run)
    learned = run_policy(model, data.test, 16)
    expected = enumerate_policies(model, data, Settings().finetune.gamma, learned)
    found = numbers(tmp_path, run, "--enumerate")["enumeration"]
    assert found == json.loads(json.dumps(expected))
    assert {"gamma", "learned_reward", "best_static_reward", "informed_reward"} <= set(found)


@pytest.mark.parametrize(("stage", "gamma"), [("curriculum", 1.5), ("finetune", 2.5)])
def test_the_reward_has_the_gamma_of_the_stage_that_the_run_is_in(tmp_path, stage, gamma):
    run = write_run(tmp_path / "run", stage, curriculum_gamma=1.5, finetune_gamma=2.5)
    assert numbers(tmp_path, run, "--enumerate")["enumeration"]["gamma"] == gamma


def test_the_table_of_all_policies_has_its_numbers_under_their_headings(run, tmp_path, capsys):
    found = numbers(tmp_path, run, "--enumerate")["enumeration"]
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("chosen"))
    assert lines[start].split() == [
        "chosen",
        "reward",
        "acc.",
        "%",
        "blocks",
        "FLOPs",
        "(M)",
        "needs",
    ]
    for name, row in (found["policies"] | found["frontier"]).items():
        [line] = [line for line in lines[start:] if line.startswith(f"{name} ")]
        reward = "{:.3f} ± {:.3f}".format(*row["reward"])
        cells = [name, reward, f"{100 * row['accuracy']:.2f}", f"{row['blocks']:.2f}"]
        assert re.split(r"\s{2,}", line.strip()) == [
            *cells,
            f"{row['flops'] / 1e6:.1f}",
            row["needs"],
        ]
        assert len(line) <= 80
    for key, rival in (("static", "one for all"), ("informed", "by confidence")):
        regret = "{:.3f} ± {:.3f}".format(*found[f"regret_{key}"])
        assert any(
            line.endswith(f"reward {rival} less the learned one: {regret}") for line in lines
        )


@pytest.mark.parametrize("changes", [{"policy": "first:2"}, {"stage": "pretrain"}])
def test_without_a_learned_policy_the_others_are_counted(tmp_path, changes):
    found = numbers(tmp_path, write_run(tmp_path / "run", **changes), "--enumerate")["enumeration"]
    assert "learned_reward" not in found and "best_static_reward" in found


def test_more_blocks_than_can_be_counted_are_refused_in_a_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", depth=32)
    assert "K = 15" in refused(capsys, run, "--enumerate")


# --------------------------------------------------------------------------------------- pictures
def drawn(monkeypatch, run, capsys, *arguments):
    """The arguments (series, path) of each trade-off picture that evaluating draws."""
    calls = []
    monkeypatch.setattr(pictures, "tradeoff", lambda *given: calls.append(given))
    evaluated(capsys, run, *arguments)
    return calls


def test_evaluating_changes_nothing_but_the_pictures(run, tmp_path, capsys):
    begun = write_run(tmp_path / "begun", "pretrain")
    before = contents(tmp_path)
    assert evaluated(capsys, run, begun).splitlines()[-1] == f"pictures in {run}"
    after = contents(tmp_path)
    assert after.keys() - before.keys() == {Path("run/extremes.png"), Path("run/tradeoff.png")}
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("policy", ["learned", "first:2"])
def test_a_point_of_the_tradeoff_is_a_row_of_the_table(tmp_path, monkeypatch, capsys, policy):
    changes = {} if policy == "learned" else {"policy": policy}
    run = write_run(tmp_path / "run", **changes)
    rows = numbers(tmp_path, run, "--enumerate")
    [(series, path)] = drawn(monkeypatch, run, capsys, "--enumerate")
    found = {name: [(row["flops"], row["accuracy"])] for name, row in rows["baselines"].items()}
    assert path == run / "tradeoff.png"
    ours = "BlockDrop" if policy == "learned" else "one policy, trained as long"
    assert series[ours] == found["blockdrop"] and series["full network"] == found["full"]
    if policy == "learned":
        assert series["best static, untrained"] == found["best static"]
        assert series["FirstK, untrained"] == found["first"]
    frontier = rows["enumeration"]["frontier"].values()
    assert series["best static, counted"] == [(row["flops"], row["accuracy"]) for row in frontier]
    assert next(iter(series)) == ours  # on top


def test_several_runs_share_the_picture_of_the_first(run, tmp_path, monkeypatch, capsys):
    other = write_run(tmp_path / "other", seed=1)
    found = numbers(tmp_path, run, other)["runs"]
    calls = drawn(monkeypatch, run, capsys, other)
    spots = torch.tensor([[one["flops_mean"], one["accuracy"]] for one in found]).double()
    paths = {path: series["BlockDrop"][0] for series, path in calls}
    assert paths[run / "tradeoff.png"] == pytest.approx(spots.mean(0).tolist())
    assert paths[other / "tradeoff.png"] == pytest.approx(spots[1].tolist()) and len(paths) == 2


@pytest.mark.parametrize(("classes", "lines"), [(pictures.CIFAR10.split(), 2), (list(SHAPES), 0)])
def test_the_papers_points_are_drawn_for_the_ten_classes_of_cifar_alone(
    run, monkeypatch, classes, lines
):
    measured = report.measure(run, torch.device("cpu"))
    measured.data = replace(measured.data, classes=tuple(classes))
    calls = []
    monkeypatch.setattr(pictures, "tradeoff", lambda *given: calls.append(given))
    report.draw([measured])
    assert len(calls[0][0].keys() & pictures.PUBLISHED.keys()) == lines


def test_pictures_that_cannot_be_saved_are_said_in_a_line_and_the_table_is_printed(run, capsys):
    (run / "extremes.png").mkdir()
    assert evaluate.main([str(run), "--device=cpu"]) == 2
    out, error = capsys.readouterr()
    assert "extremes.png" in error and error.count("\n") == 1 and "\nBlockDrop " in out


def test_pictures_of_a_model_that_ships_go_into_a_folder_of_their_own(run, tmp_path, monkeypatch):
    read = report.read
    monkeypatch.setattr(report, "read", lambda name: read(run if name == "demo" else name))
    monkeypatch.chdir(tmp_path)
    assert numbers(tmp_path, "demo")["run"] == "demo"
    names = {path.name for path in (tmp_path / "runs" / "demo-shipped").iterdir()}
    assert names == {"extremes.png", "tradeoff.png"}


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


def test_each_image_gets_the_line_that_load_gives(run, capsys, photographs, monkeypatch):
    monkeypatch.setattr(report, "load_data", lambda *given, **options: pytest.fail("read"))
    lines = evaluated(capsys, run, "--images", *photographs).splitlines()
    model = load(run)
    cost = resnet_cost(model.resnet, 16)
    for line, (path, pixels) in zip(lines, photographs.items(), strict=True):
        logits, u = model(pixels[None])
        best = int(logits.argmax())
        name, probability = list(SHAPES)[best], 100 * logits.softmax(1)[0, best]
        saved = 1 - (cost.of(u).item() + policy_cost(model.policy, 16)) / cost.full
        bar = "".join("■" if keep else "□" for keep in u[0])
        words = f"{bar}  {int(u.sum())} of 3 blocks, {100 * saved:.0f} % saved"
        assert line == f"{path}  {words}: {name} {probability:.1f} %"


@pytest.mark.parametrize(
    ("data", "side", "sizes"),
    [("imagenet", 0, (224, 256)), ("folder", 0, (0, None)), ("folder", 20, (20, None)),
     ("cifar10", 0, (32, None)), ("shapes", 0, (32, None))],
)  # fmt: skip
def test_an_image_is_prepared_as_the_data_of_the_run_is(
    tmp_path, capsys, photographs, monkeypatch, data, side, sizes
):
    save(tmp_path, state_of(**SMALL | {"data": data, "image_size": side})[0])
    seen = []
    read = report.load_image
    monkeypatch.setattr(report, "load_image", lambda *given: seen.append(given[1:]) or read(*given))
    evaluated(capsys, tmp_path, "--images", *photographs)
    assert set(seen) == {sizes}


def test_an_output_that_is_only_ascii_gets_what_it_can_show(run, photographs, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding="ascii"))
    for more in ([], ["--images", *photographs]):
        assert evaluate.main([str(run), "--device=cpu", *more]) == 0
    text = content.getvalue().decode("ascii")
    assert "\nBlockDrop " in text and re.search(r"  [#.]{3}  \d of 3 blocks", text)


def test_a_folder_stands_for_the_images_in_it(run, capsys, photographs):
    folder = Path(next(iter(photographs))).parent
    (folder / "notes.txt").write_text("not an image")
    named = evaluated(capsys, run, "--images", *photographs)
    assert evaluated(capsys, run, "--images", folder) == named


def test_a_bad_file_is_one_line_and_does_not_stop_the_others(run, capsys, photographs, tmp_path):
    bad = tmp_path / "bad\n.png"
    bad.write_bytes(b"\x89PNG not really")
    first, *others = photographs
    code = evaluate.main([str(run), "--device=cpu", "--images", first, str(bad), *others])
    out, error = capsys.readouterr()
    assert code == 2 and error.count("\n") == 1 and "bad" in error
    assert all(path in out for path in photographs) and out.count("\n") == 3


def test_classes_and_files_cannot_forge_lines(run, capsys, photographs):
    state, _ = state_of(**SMALL)
    save(run, {**state, "classes": tuple(f"{i}\nevil: all blocks \x1b[2J" for i in range(10))})
    first = Path(next(iter(photographs)))
    other = first.rename(first.with_name("a\nb.png"))
    out = evaluated(capsys, run, "--images", other)
    assert out.count("\n") == 1 and r"a\nb.png" in out and r"\nevil: all blocks \x1b[2J" in out


def test_an_answer_that_is_not_finite_is_none(run, capsys, photographs):
    state, model = state_of(**SMALL)
    model.resnet.bn1.weight.data.fill_(1e38)
    save(run, {**state, "resnet": model.resnet.state_dict()})
    assert "no finite answer" in refused(capsys, run, "--images", *photographs)


def test_a_folder_without_images_is_said_in_a_line(run, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, run, "--images", tmp_path / "empty")


@pytest.mark.parametrize("more", [["--enumerate"], ["--json=x.json"], ["another"]])
def test_images_are_answered_by_one_run_and_nothing_else(run, capsys, photographs, more):
    assert "--images takes one RUN" in refused(capsys, run, *more, "--images", *photographs)


# ------------------------------------------------------------------------------------- as a process
COMMAND = [sys.executable, "evaluate.py", "--device=cpu"]


def test_readers_that_go_away_lose_no_result(run, tmp_path):
    (run / NAME).write_bytes(b"damaged")  # a warning, for standard error
    path = tmp_path / "found.json"
    command = (
        f"{' '.join(COMMAND)} {run} --json {path} 2>/dev/full | head -1; exit ${{PIPESTATUS[0]}}"
    )
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENVIRONMENT, timeout=120)
    assert ended.returncode == 0 and "baselines" in json.loads(path.read_text())


def test_ctrl_c_is_one_line_and_exit_code_130(run, tmp_path):
    many = tmp_path / "many"  # more than can be answered before the signal
    many.mkdir()
    for i in range(9000):
        os.symlink(ROOT / "docs" / "demo.png", many / f"{i}.png")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [*COMMAND, run, "--images", many]
    # A process that a shell has put into the background ignores the signal, and so would its child.
    streams["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **streams) as running:
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        try:
            _, error = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, error) == (130, "evaluate.py: stopped\n")


# --------------------------------------------------------------------------------------- bad input
def test_a_damaged_checkpoint_is_said_to_be_so_when_the_one_before_is_evaluated(run, capsys):
    (run / NAME).write_bytes(b"damaged")
    assert evaluate.main([str(run), "--device=cpu"]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"evaluate.py: {run / NAME}") and PREVIOUS in error
    assert error.count("\n") == 1


def test_runs_that_are_not_there_damaged_or_do_not_fit_are_named(run, capsys, tmp_path):
    assert "nowhere" in refused(capsys, tmp_path / "nowhere")
    for name in (NAME, PREVIOUS):
        (run / name).write_bytes(b"damaged")
    assert str(run) in refused(capsys, run)
    save(tmp_path, {**state_of()[0], "classes": ("a", "b")})
    assert "fc.weight" in refused(capsys, tmp_path)


def test_data_whose_classes_are_not_those_of_the_checkpoint_is_refused(tmp_path, capsys):
    tree = write_tree(tmp_path / "images", size=(16, 16))
    changes = {"train_images": 0, "val_images": 4, "data": "folder", "data_dir": "gone"}
    save(tmp_path, {**state_of(**SMALL | changes)[0], "classes": ("a\nb", *"bcdefghij")})
    error = refused(capsys, tmp_path, "--data-dir", tree)  # and that folder is the one that is read
    assert r"the classes a\nb, b, c" in error and "apple, bee" in error


@pytest.mark.parametrize("device", ["nosuch", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(run, capsys, device):
    assert device in refused(capsys, run, "--device", device)


@pytest.mark.parametrize("problem", [MemoryError(), RuntimeError("could not create a primitive")])
def test_memory_that_does_not_suffice_is_said_in_a_line(run, capsys, monkeypatch, problem):
    def fail(*given, **options):
        raise problem

    monkeypatch.setattr(report, "measure_rivals", fail)
    assert "memory" in refused(capsys, run)


@pytest.mark.parametrize("flags", [["--nosuch"], ["--threshold", "1"], ["--json"], ["--json=--"]])
def test_a_bad_command_line_is_refused(run, capsys, flags):
    assert flags[0] in refused(capsys, run, *flags)


def test_no_run_at_all_is_refused(capsys):
    assert "RUN" in refused(capsys)


@pytest.mark.parametrize("changes", [{}, {"policy": "first:2"}, {"stage": "pretrain"}])
def test_images_are_read_by_as_many_processes_as_the_run_has(
    tmp_path, monkeypatch, capsys, changes
):
    asked = []
    batches = Split.batches

    def noted(self, batch_size, order=None, workers=0, part=slice):
        asked.append(workers)
        return batches(self, batch_size, order, 0, part)

    monkeypatch.setattr(Split, "batches", noted)
    run = write_run(tmp_path / "run", workers=3, **changes)
    evaluated(capsys, write_rivals(run, "110", workers=3), "--enumerate")
    assert set(asked) == {3}


def test_a_run_is_measured_in_channels_last(run):
    _, _, model = report.open_run(run, torch.device("cpu"))
    for name, p in model.named_parameters():
        if p.dim() == 4:
            assert p.is_contiguous(memory_format=torch.channels_last), name
