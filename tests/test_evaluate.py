"""evaluate.py, as a user meets it: what it prints, what it writes, what it refuses."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from helpers import rng
from PIL import Image
from runs import contents, state_of, workers_asked, write_tree

import evaluate
from blockdrop_min import load, policy_cost, resnet_cost
from blockdrop_min.lab import pictures, report
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, save
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.enumeration import enumerate_policies
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.program import console
from blockdrop_min.lab.rivals import dealt_loss, measure_rivals, worth_of_looking
from blockdrop_min.lab.settings import Settings
from blockdrop_min.lab.shapes import SHAPES

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


def on_test(folder, u=None):
    """The `Result` of a run's model on the test set."""
    return run_policy(load(folder), shapes().test, 16, u)


@pytest.fixture
def run(tmp_path):
    torch.set_num_threads(1)
    return write_run(tmp_path / "run")


def ended(capsys, *arguments):
    """evaluate.py with these arguments: exit code, output, and the lines on standard error."""
    capsys.readouterr()
    try:
        code = evaluate.main([*map(str, arguments), "--device", "cpu"])
    except SystemExit as stopped:
        code = stopped.code
    out, error = capsys.readouterr()
    return code, out, error.splitlines()


def evaluated(capsys, *arguments):
    """What evaluate.py prints with these arguments; it ends well and says nothing else."""
    code, out, problems = ended(capsys, *arguments)
    assert (code, problems) == (0, [])
    return out


def refused(capsys, *arguments):
    """The one line on standard error with which evaluate.py ends with exit code 2."""
    code, _, [problem] = ended(capsys, *arguments)
    assert code == 2 and problem.startswith("evaluate.py: ")
    return problem


def numbers(tmp_path, *arguments):
    """What --json writes."""
    path = tmp_path / "found.json"
    assert evaluate.main([*map(str, arguments), "--device", "cpu", "--json", str(path)]) == 0
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name}?"))


def made_up(accuracy=0.9, blocks=5.0, flops=4e7, policies=3, dealt=(0.05, 0.01), begun=0, **more):
    """A `Run` called r with these numbers in all rows."""
    row = {"accuracy": accuracy, "blocks_mean": blocks, "blocks_std": 0.71, "flops_mean": flops}
    row |= {"flops_std": 3e6, "flops_saved": 1 - flops / 8e7, "distinct_policies": policies}
    names = ("full", "blockdrop", "trained static", "best static")
    results = {name: SimpleNamespace(**row) for name in names}
    results["full"].accuracy = 0.91
    results |= {"pretrained": SimpleNamespace(**row | {"accuracy": begun})} if begun else {}
    found = {"worth_of_looking": None, "baselines": {"best static": {"policy": "000011111"}}}
    return report.Run("r", Settings(), None, results, {"dealt_loss": dealt} | found | more)


def printed(group):
    """The lines about a group of runs on a terminal of 80 columns; first its table, then all."""
    screen = console(soft_wrap=True)
    screen.width = 80
    with screen.capture() as capture:
        report.tell(screen, group)
    lines = capture.get().splitlines()
    return [line for line in lines if not line.startswith("r: ")], lines


def cells(line):
    return re.split(r"\s{2,}", line.strip())


# ------------------------------------------------------------------------------------------- JSON
def test_the_json_has_the_numbers_of_the_model_run_by_hand(run, tmp_path):
    found = numbers(tmp_path, run)
    data, model = shapes(), load(run)
    logits, u = model(data.test.images)
    flops = resnet_cost(model.resnet, 16).of(u) + policy_cost(model.policy, 16)
    quarters = (4 * data.test.difficulty).floor().clamp(max=3)
    ours, full = on_test(run), on_test(run, torch.ones(3))
    rows = {"full": full, "blockdrop": ours} | measure_rivals(model, data, ours)
    expected = {
        "accuracy": (logits.argmax(1) == data.test.labels).double().mean().item(),
        "full_accuracy": full.accuracy,
        "blocks_mean": u.sum(1).mean().item(),
        "flops_mean": flops.mean().item(),
        "flops_saved": 1 - flops.mean().item() / full.flops_full,
        "rank_correlation": report.rank_correlation(u.sum(1), data.test.difficulty),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["full_accuracy"] != found["accuracy"]
    by_quarter = [u[quarters == quarter].sum(1).mean().item() for quarter in range(4)]
    assert found["blocks_by_difficulty"] == pytest.approx(by_quarter)
    assert found["baselines"] == {name: result.row() for name, result in rows.items()}
    others = {"blocks_std", "flops_std", "flops_full", "distinct_policies"}
    assert {name: found[name] for name in others} == {name: getattr(ours, name) for name in others}
    assert (found["images"], found["num_blocks"], found["run"]) == (24, 3, str(run))
    assert numbers(tmp_path, run) == found, "an earlier result is overwritten, and is the same"


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_without_a_learned_policy_has_its_own_rows_and_no_rivals(tmp_path, stage):
    folder = write_run(tmp_path / "run", stage, policy="first:2")
    found = numbers(tmp_path, folder, "--enumerate")
    expected = on_test(folder, torch.ones(3) if stage == "pretrain" else torch.tensor([1.0, 1, 0]))
    assert list(found["baselines"]) == (["full"] if stage == "pretrain" else ["full", "blockdrop"])
    assert found["accuracy"] == expected.accuracy and found["flops_mean"] == expected.flops_mean
    assert "dealt_loss" not in found and "learned_reward" not in found["enumeration"]


@pytest.mark.parametrize("where", ["the folder", "another", "gone", "not a ResNet"])
def test_the_full_network_before_finetuning_is_a_row_where_its_file_is(tmp_path, capsys, where):
    begun = load(write_run(tmp_path / "begun")).resnet
    data = shapes()
    begun.fc.bias.data[data.test.labels.mode().values] += 1000  # one answer, often right
    file = tmp_path / ("run" if where == "the folder" else "another") / "resnet.pt"
    named = "" if where == "the folder" else str(file)
    folder = write_run(tmp_path / "run", resnet=named)
    file.parent.mkdir(exist_ok=True)
    if where != "gone":
        torch.save({} if where == "not a ResNet" else begun.state_dict(), file)
    rows = numbers(tmp_path, folder)["baselines"]
    problem = capsys.readouterr().err
    assert ("resnet.pt is not compared: " in problem) == (where == "not a ResNet")
    assert ("pretrained" in rows) == (where in ("the folder", "another"))
    if "pretrained" in rows:
        model = load(folder)
        model.resnet.load_state_dict(begun.state_dict())
        expected = run_policy(model, data.test, data.crop, torch.ones(3)).row()
        assert rows["pretrained"] == expected != rows["full"]


def test_the_runs_own_seed_reaches_its_rivals_and_deals_its_policies(tmp_path):
    found = [numbers(tmp_path, write_run(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    model, data, ours = load(tmp_path / "1"), shapes(), on_test(tmp_path / "1")
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


@pytest.mark.parametrize("flags", [["--json=pipe"], ["--json=nowhere/x.json"], []])
def test_what_cannot_be_saved_is_named_after_the_table(run, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (run / "extremes.png").mkdir()  # a picture, which is drawn last
    code, out, [problem] = ended(capsys, run, *flags)
    name = flags[0][7:] if flags else "extremes.png"
    assert code == 2 and Path(name).name in problem and "\nBlockDrop " in out


def test_paths_begin_at_home_if_they_say_so(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "found.json").touch()  # an empty file may be overwritten
    evaluated(capsys, "~/run", "--json=~/found.json")
    assert "baselines" in (tmp_path / "found.json").read_text()


# ------------------------------------------------------------------------------------ fair rivals
def test_fair_rivals_are_rows_with_the_numbers_of_their_own_runs(run, tmp_path, capsys):
    write_rivals(run, "110", "111")
    found = numbers(tmp_path, run)
    ours, *fair = map(on_test, (run, run / "static-110", run / "static-111"))
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


# ------------------------------------------------------------------------------------------ table
def test_the_table_of_three_runs_by_hand():
    rows = [(0.90, 4, 4e7, 3), (0.92, 5, 4.4e7, 5), (0.94, 6, 4.8e7, 7)]
    table, _ = printed([made_up(*row) for row in rows])
    expected = ["BlockDrop", "92.00 ± 2.00", "5.00 ± 1.00", "44.00 ± 4.00", "45.0 ± 5.0", "5 ± 2"]
    assert cells(table[4]) == expected
    assert cells(table[1]) == ["policy", "accuracy %", "blocks", "FLOPs (M)", "saved %", "policies"]
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
    policies = ("000011111", "110011001")
    lines = printed([made_up(baselines={"best static": {"policy": u}}) for u in policies])[1]
    said = [line for line in lines if line.startswith("r: best static")]
    assert said == [f"r: best static policy {u}" for u in policies]


def test_a_runs_name_is_shown_as_it_is_or_escaped(tmp_path, capsys):
    out = evaluated(capsys, write_run(tmp_path / "exp[red] a[/y] :smile: é\nb\x1b[31m"))
    name = rf"{tmp_path}/exp[red] a[/y] :smile: é\nb\x1b[31m"
    assert f"{name}: ResNet-8 on shapes, 1 run(s)" in out and "\x1b" not in out
    assert out.count(name) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, "BlockDrop saves 50 % of the FLOPs at -1.0 points; 3 policies, which lose 5.0 ± 1.0 "
          "points if they are dealt to other images: the choice is one per image."),
     ({"dealt": (0.015, 0.01)}, "1.5 ± 1.0 points if they are dealt to other images: it is not"),
     ({"dealt": (-0.05, 0.01)}, "-5.0 ± 1.0 points if they are dealt to other images: it is not"),
     ({"policies": 1}, "% of the FLOPs at -1.0 points; one policy for all images."),
     ({"begun": 0.89}, "at -1.0 points;"),  # the better full network is the rival
     ({"begun": 0.93}, "at -3.0 points;"),
     ({"accuracy": 0.93, "flops": 1e8}, "saves -25 % of the FLOPs at +2.0 points;"),
     ({"worth_of_looking": (0.014, 0.0025)},
      "image. At equal FLOPs, looking at the image is worth 1.4 ± 0.2 points.")],
)  # fmt: skip
def test_what_came_out_is_said_in_words(changes, words):
    assert words in report.verdict(made_up(**changes))


# -------------------------------------------------------------------------------------- enumerate
@pytest.mark.parametrize(("stage", "gamma"), [("curriculum", 1.5), ("finetune", 2.5)])
def test_enumeration_is_that_of_the_model_on_its_data_with_its_stages_gamma(tmp_path, stage, gamma):
    run = write_run(tmp_path / "run", stage, curriculum_gamma=1.5, finetune_gamma=2.5)
    expected = enumerate_policies(load(run), shapes(), gamma, on_test(run))
    found = numbers(tmp_path, run, "--enumerate")["enumeration"]
    assert found == json.loads(json.dumps(expected))


def test_the_table_of_all_policies_has_its_numbers_under_their_headings(run, tmp_path, capsys):
    found = numbers(tmp_path, run, "--enumerate")["enumeration"]
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("chosen"))
    assert " ".join(lines[start].split()) == "chosen reward acc. % blocks FLOPs (M) needs"
    for name, row in (found["policies"] | found["frontier"]).items():
        [line] = [line for line in lines[start:] if line.startswith(f"{name} ")]
        expected = [name, "{:.3f} ± {:.3f}".format(*row["reward"]), f"{100 * row['accuracy']:.2f}"]
        expected += [f"{row['blocks']:.2f}", f"{row['flops'] / 1e6:.2f}", row["needs"]]
        assert cells(line) == expected and len(line) <= 80


# --------------------------------------------------------------------------------------- pictures
def drawn(monkeypatch, capsys, *arguments):
    """Path -> the series of each trade-off picture that evaluating draws."""
    calls = {}
    monkeypatch.setattr(pictures, "tradeoff", lambda series, path: calls.update({path: series}))
    evaluated(capsys, *arguments)
    return calls


def spot(result):
    return result.flops_mean, result.accuracy


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
    run = write_rivals(write_run(tmp_path / "run", **changes), "110", "111")
    rows = numbers(tmp_path, run, "--enumerate")
    [(path, series)] = drawn(monkeypatch, capsys, run, "--enumerate").items()
    found = {name: [(row["flops"], row["accuracy"])] for name, row in rows["baselines"].items()}
    assert path == run / "tradeoff.png"
    fair = [spot(on_test(run / f"static-{u}")) for u in ("110", "111")]
    expected = {"one policy, trained as long": found["blockdrop"]}
    if policy == "learned":
        expected = {"BlockDrop": found["blockdrop"], "one policy, trained as long": fair}
        expected |= {"best static, untrained": found["best static"]}
        expected |= {"FirstK, untrained": found["first"]}
    frontier = rows["enumeration"]["frontier"].values()
    expected["best static, counted"] = [(row["flops"], row["accuracy"]) for row in frontier]
    expected["full network"] = found["full"]
    assert {name: series[name] for name in expected} == expected
    assert next(iter(series)) == next(iter(expected))  # on top


def test_runs_that_differ_in_gamma_or_policy_are_drawn_as_two_lines(
    run, tmp_path, monkeypatch, capsys
):
    cheap = write_run(tmp_path / "cheap", finetune_gamma=2.0)
    fixed = write_run(tmp_path / "fixed", policy="100")
    write_rivals(run, "110")
    calls = drawn(monkeypatch, capsys, run, cheap, fixed)
    spots = [spot(on_test(folder)) for folder in (run, cheap, run / "static-110", fixed)]
    expected = {"BlockDrop": sorted(spots[:2]), "one policy, trained as long": sorted(spots[2:])}
    assert calls[run / "curve.png"] == expected and len(calls) == 4
    assert calls[cheap / "tradeoff.png"]["BlockDrop"] == [spots[1]]


def test_a_point_of_several_runs_is_their_mean():
    runs = [made_up(0.9, flops=4e7), made_up(0.8, flops=2e7)]
    assert report.spot(runs, "blockdrop") == pytest.approx((3e7, 0.85))


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
    (tmp_path / "photographs").mkdir()
    found = {}
    for i in range(3):
        pixels = torch.randint(256, (16, 16, 3), generator=rng(i), dtype=torch.uint8)
        path = tmp_path / "photographs" / f"{i}.png"
        Image.fromarray(pixels.numpy()).save(path)
        found[str(path)] = pixels.permute(2, 0, 1)
    return found


def test_each_image_gets_the_line_that_load_gives(run, tmp_path, capsys, photographs, monkeypatch):
    monkeypatch.setattr(report, "load_data", lambda *given, **options: pytest.fail("read"))
    (tmp_path / "photographs" / "notes.txt").write_text("not an image")
    out = evaluated(capsys, run, "--images", *photographs)
    assert evaluated(capsys, run, "--images", tmp_path / "photographs") == out
    model = load(run)
    cost = resnet_cost(model.resnet, 16)
    for line, (path, pixels) in zip(out.splitlines(), photographs.items(), strict=True):
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
    monkeypatch.setattr(report, "load_image", seen := Mock(wraps=report.load_image))
    evaluated(capsys, tmp_path, "--images", *photographs)
    assert {call.args[1:] for call in seen.call_args_list} == {sizes}


def test_an_output_that_is_only_ascii_gets_what_it_can_show(run, photographs, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding="ascii"))
    for more in ([], ["--images", *photographs]):
        assert evaluate.main([str(run), "--device=cpu", *more]) == 0
    text = content.getvalue().decode("ascii")
    assert "\nBlockDrop " in text and re.search(r"  [#.]{3}  \d of 3 blocks", text)


def test_a_bad_file_is_one_line_and_does_not_stop_the_others(run, capsys, photographs, tmp_path):
    bad = tmp_path / "bad\n.png"
    bad.write_bytes(b"\x89PNG not really")
    first, *others = photographs
    code, out, [problem] = ended(capsys, run, "--images", first, bad, *others)
    assert code == 2 and "bad" in problem
    assert all(path in out for path in photographs) and out.count("\n") == 3


def test_classes_and_files_cannot_forge_lines(run, capsys, photographs):
    state, _ = state_of(**SMALL)
    save(run, {**state, "classes": tuple(f"{i}\nevil: all blocks \x1b[2J" for i in range(10))})
    first = Path(next(iter(photographs)))
    other = first.rename(first.with_name("a\nb.png"))
    out = evaluated(capsys, run, "--images", other)
    assert out.count("\n") == 1 and r"a\nb.png" in out and r"\nevil: all blocks \x1b[2J" in out


# ----------------------------------------------------------------------------- faults and refusals
def test_readers_that_go_away_lose_no_result_and_no_exit_code(run, tmp_path):
    (run / NAME).write_bytes(b"damaged")  # a warning, for standard error
    (run / "extremes.png").mkdir()  # a fault, once all has been printed
    command = f"{sys.executable} evaluate.py --device=cpu {run} --json {tmp_path}/found.json"
    command += " 2>/dev/full | head -1; exit ${PIPESTATUS[0]}"
    options = {"cwd": Path(__file__).parent.parent, "timeout": 120}
    options["env"] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    assert subprocess.run(["bash", "-c", command], **options).returncode == 2
    assert "baselines" in json.loads((tmp_path / "found.json").read_text())


def test_a_damaged_checkpoint_is_said_to_be_so_when_the_one_before_is_evaluated(run, capsys):
    (run / NAME).write_bytes(b"damaged")
    code, _, [problem] = ended(capsys, run)
    assert code == 0 and problem.startswith(f"evaluate.py: {run / NAME}") and PREVIOUS in problem


def test_data_whose_classes_are_not_those_of_the_checkpoint_is_refused(tmp_path, capsys):
    tree = write_tree(tmp_path / "images", size=(16, 16))
    changes = {"train_images": 0, "val_images": 4, "data": "folder", "data_dir": "gone"}
    save(tmp_path, {**state_of(**SMALL | changes)[0], "classes": ("a\nb", *"bcdefghij")})
    error = refused(capsys, tmp_path, "--data-dir", tree)  # and that folder is the one that is read
    assert r"the classes a\nb, b, c" in error and "apple, bee" in error


REFUSED = {  # arguments, with RUN for a run's folder -> what is said of them
    "": "RUN", "RUN --threshold 1": "--threshold", "RUN/nowhere": "nowhere",
    "RUN --images RUN": "no images in", "RUN --enumerate --images x.png": "--images takes one RUN",
    "RUN --json=x --images x.png": "takes one RUN", "RUN other --images x.png": "takes one RUN",
}  # fmt: skip


@pytest.mark.parametrize("arguments", REFUSED)
def test_arguments_that_cannot_be_followed_are_refused_in_a_line(run, capsys, arguments):
    assert REFUSED[arguments] in refused(capsys, *arguments.replace("RUN", str(run)).split())


def test_a_device_that_is_not_there_is_refused(run, capsys):
    assert evaluate.main([str(run), "--device=nosuch"]) == 2
    assert "nosuch" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"policy": "first:2"}, {"stage": "pretrain"}])
def test_images_are_read_by_as_many_processes_as_the_run_has(
    tmp_path, monkeypatch, capsys, changes
):
    asked = workers_asked(monkeypatch)
    run = write_run(tmp_path / "run", workers=3, **changes)
    evaluated(capsys, write_rivals(run, "110", workers=3), "--enumerate")
    assert set(asked) == {3}


def test_a_run_is_measured_in_channels_last(run):
    for name, p in report.open_run(run, torch.device("cpu"))[2].named_parameters():
        assert p.dim() < 4 or p.is_contiguous(memory_format=torch.channels_last), name


def test_one_block_is_told_in_the_singular():
    for blocks, said in ((1.0, "1 block,"), (2.0, "2 blocks,"), (1.5, "1.5 blocks,")):
        run = SimpleNamespace(results={report.FAIR: SimpleNamespace(blocks_mean=blocks)})
        assert report.label(report.FAIR, [run]) == f"one policy of {said} trained as long"
