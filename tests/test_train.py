"""train.py and evaluate.py, as a user meets them: what they print, what they leave, how they stop, what they refuse."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from runs import SHORT, contents, differences, disk, fork, kill, rows, short_run, state_of, wait, write_tree
from torchvision import datasets

import evaluate
import train
from blockdrop_min import load, load_foreign, resnet
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, read, save
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.log import COLUMNS, Log
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.settings import parse

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
EPOCHS = [("pretrain", 0), ("pretrain", 1), ("curriculum", 0), ("curriculum", 1), ("curriculum", 2), ("finetune", 0)]
STEPS = 3 * len(EPOCHS)


def command(out, *flags):
    return [sys.executable, "train.py", *SHORT, "--out", str(out), *flags]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(folder, process) of one run of all stages, as a command whose output goes into a pipe. Not to be changed."""
    out = tmp_path_factory.mktemp("run") / "short"
    return out, subprocess.run(command(out), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run's folder."""
    return shutil.copytree(finished[0], tmp_path / "run")


def refused(capsys, before, call, *arguments, program="train.py"):
    """The one line on stderr with which a program ends with exit code 2; the files of `before` are as they were."""
    files = contents(before)
    try:
        code = call(*arguments)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith(program) and error.count("\n") == 1 and error.endswith("\n")
    assert {path: contents(before).get(path) for path in files} == files
    return error


def at_step(monkeypatch, count, act):
    """Calls act() when the `count`-th training step from now on has been taken."""
    left, step = [count], Log.step

    def counting(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            act()
        step(self, *arguments)

    monkeypatch.setattr(Log, "step", counting)


# ----------------------------------------------------------------------------------- a run, by hand
def test_a_run_ends_with_exit_code_0_and_no_word_on_stderr(finished):
    assert (finished[1].returncode, finished[1].stderr) == (0, "")


def test_a_run_leaves_its_files(finished):
    pictures = {"keep_rates.png", "extremes.png", "tradeoff.png"}
    expected = {NAME, PREVIOUS, "metrics.jsonl", "settings.json", "resnet.pt", ".lock"} | pictures
    assert {path.name for path in finished[0].iterdir()} == expected


def test_the_metrics_have_one_row_an_epoch_in_order(finished):
    assert [(row["stage"], row["epoch"]) for row in rows(finished[0])] == EPOCHS


def test_every_row_has_what_the_table_shows_in_its_range(finished):
    for row in map(json.loads, (finished[0] / "metrics.jsonl").read_text().splitlines()):
        assert row["seconds"] >= 0 and 0 <= row["accuracy"] <= 1 and 0 <= row["train_accuracy"] <= 1
        assert 0 <= row["blocks_mean"] <= 3 and row["distinct_policies"] >= 1 and 0 <= row["free"] <= 3
        decides = row["stage"] == "finetune" or row["free"] > 0
        assert (row["R"] is not None) == (row["A"] is not None) == decides


def test_blocks_that_are_not_free_are_kept_in_validation(tmp_path):
    assert short_run(tmp_path, "--keep-bias=-20", "--free-by=1") == 0  # a policy that drops what it may drop
    assert [(row["free"], row["blocks_mean"]) for row in rows(tmp_path)] == [(0, 3), (0, 3), (0, 3), (2, 1), (3, 0), (3, 0)]


def test_every_step_has_the_learning_rate_of_its_place_in_the_stage(tmp_path, monkeypatch):
    seen, update = [], train.update
    monkeypatch.setattr(train, "update", lambda *given, **more: seen.append(given[3]) or update(*given, **more))
    assert short_run(tmp_path) == 0
    base, steps = {"pretrain": 0.05, "curriculum": 2e-3, "finetune": 1e-3}, {"pretrain": 6, "curriculum": 9, "finetune": 3}
    expected = [rate * train.learning_rate("cosine", s, i / steps[s]) for s, rate in base.items() for i in range(steps[s])]
    assert seen == pytest.approx(expected) and max(seen) > 0.04


def test_the_settings_are_written_as_they_were(finished):
    assert json.loads((finished[0] / "settings.json").read_text()) == asdict(parse(SHORT)[0])


def test_into_a_pipe_goes_one_header_and_one_row_an_epoch(finished):
    lines = finished[1].stdout.splitlines()
    headings = [heading for heading, _, _ in COLUMNS]
    assert [re.split(r"  +", line.strip()) for line in lines].count(headings) == 1
    shown = [line.split()[:2] for line in lines if re.match(r" *(pretrain|curriculum|finetune) +\d+/\d", line)]
    assert shown == [[stage, f"{epoch + 1}/{dict(EPOCHS)[stage] + 1}"] for stage, epoch in EPOCHS]


def test_into_a_pipe_go_plain_lines(finished):
    assert "\x1b" not in finished[1].stdout and "\r" not in finished[1].stdout


@pytest.mark.parametrize("said", [
    "preset smoke", "'image_size': 16", "seed 0",
    "\ncpu, 1 process(es)", "1 threads", f"torch {torch.__version__}", "torchvision",
])  # fmt: skip
def test_a_run_says_what_it_runs_and_where(finished, said):
    assert said in "\n".join(finished[1].stdout.splitlines()[:2])


@pytest.mark.parametrize("name", ["full network", "BlockDrop", "FirstK", "RandomK", "DistributeK", "best static"])
def test_a_run_ends_with_its_results_table(finished, name):
    assert re.search(rf"│ {name} +│ +\d+\.\d\d │ +\d\.\d\d ± \d\.\d\d │", finished[1].stdout)


def test_plain_lines_between_the_rows_say_what_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("blockdrop_min.log.PLAIN_EVERY", 0.0)
    short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=1")
    lines = re.findall(r"\d\d:\d\d:\d\d (pretrain 1/1: step \d/3), \d+ s left", capsys.readouterr().out)
    assert lines == [f"pretrain 1/1: step {step}/3" for step in (1, 2, 3)]


# ------------------------------------------------------------------------------------ laws of a run
def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    assert short_run(tmp_path) == 0
    assert differences(tmp_path, finished[0]) == [] and rows(tmp_path) == rows(finished[0])


def test_another_seed_gives_other_weights(finished, tmp_path):
    short_run(tmp_path, "--seed=1")
    one, other = load(finished[0]).state_dict(), load(tmp_path).state_dict()
    assert not any(torch.equal(one[name], other[name]) for name in one if not name.endswith("num_batches_tracked"))


@pytest.fixture
def labels_seen(monkeypatch):
    """The labels of every training step from now on, a list a step."""
    seen, step = [], train.take_step
    monkeypatch.setattr(train, "take_step", lambda *arguments: seen.append(arguments[4].tolist()) or step(*arguments))
    return seen


def test_every_epoch_takes_each_training_image_once_the_last_short_batch_included(tmp_path, labels_seen):
    short_run(tmp_path)
    expected = sorted(load_data("shapes", None, 16, 96, 24).train.labels.tolist())
    epochs = [[*labels_seen[i], *labels_seen[i + 1], *labels_seen[i + 2]] for i in range(0, STEPS, 3)]
    assert [sorted(epoch) for epoch in epochs] == [expected] * len(EPOCHS)


def test_the_order_of_the_images_changes_from_epoch_to_epoch(tmp_path, labels_seen):
    short_run(tmp_path, "--stages=pretrain")
    assert labels_seen[:3] != labels_seen[3:]


def test_every_step_of_a_run_draws_numbers_of_its_own(tmp_path, monkeypatch):
    seeds, augment = [], train.augment
    monkeypatch.setattr(train, "augment", lambda x, *rest: seeds.append(rest[-1].initial_seed()) or augment(x, *rest))
    short_run(tmp_path)
    assert len(seeds) == len(set(seeds)) == STEPS


def test_only_training_images_are_augmented(tmp_path, monkeypatch):
    seen, augment = [], train.augment
    monkeypatch.setattr(train, "augment", lambda x, *rest: seen.append(len(x)) or augment(x, *rest))
    short_run(tmp_path)
    assert sum(seen) == 72 * len(EPOCHS)


def test_training_does_not_read_the_test_set(tmp_path, monkeypatch):
    parts = []
    monkeypatch.setattr(train, "load_data", lambda *arguments: parts.append(load_data(*arguments)) or parts[0])
    short_run(tmp_path, "--stages=pretrain")
    assert len(parts) == 1 and parts[0].test is None


def test_the_same_command_again_trains_nothing_more(run, capsys, monkeypatch):
    files = {path: data for path, data in contents(run).items() if path.name in (NAME, PREVIOUS, "metrics.jsonl")}
    monkeypatch.setattr(train, "take_step", None)
    assert train.main([*SHORT, "--out", str(run)]) == 0
    assert {path: contents(run)[path] for path in files} == files
    assert "BlockDrop" in capsys.readouterr().out


def test_stages_one_by_one_give_the_same_bits_as_in_one_go(finished, tmp_path):
    for stages in ("pretrain", "pretrain,curriculum", "pretrain,curriculum,finetune"):
        short_run(tmp_path, f"--stages={stages}")
    assert differences(tmp_path, finished[0]) == []


def test_a_profile_says_where_the_time_of_a_step_goes_and_saves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "profile_stages", partial(train.profile_stages, steps=2))
    assert train.main([*SHORT, "--out", str(tmp_path), "--profile"]) == 0
    lines = [line.split(", milliseconds a step: ") for line in capsys.readouterr().out.splitlines() if "milliseconds" in line]
    spent = {stage: {part[: part.rindex(" ")]: float(part.split()[-1]) for part in parts.split("; ")} for stage, parts in lines}
    always = {"augmentation", "backward", "optimizer", "in all"}
    assert {stage: parts.keys() - always for stage, parts in spent.items()} == {
        "pretrain": {"ResNet, sampled"}, "curriculum": {"policy network", "ResNet, sampled and greedy"},
        "finetune": {"policy network", "ResNet, sampled", "ResNet, greedy"},
    }  # fmt: skip
    for parts in spent.values():
        whole = parts.pop("in all")
        assert always - parts.keys() == {"in all"} and 0 < sum(parts.values()) <= whole + 0.5 and parts["backward"] > 0
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_later_stages_can_start_from_the_resnet_of_another_run(finished, tmp_path):
    flags = ["--stages=curriculum,finetune", f"--resnet={finished[0] / 'resnet.pt'}"]
    assert short_run(tmp_path, *flags) == 0
    assert [row["stage"] for row in rows(tmp_path)] == ["curriculum"] * 3 + ["finetune"]


def test_the_pretrained_resnet_is_left_in_a_file_of_torchvision_names(finished):
    net = load_foreign(resnet(8), finished[0] / "resnet.pt")
    assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), resnet(8).parameters(), strict=True) if p.dim() > 1)


@pytest.mark.parametrize("policy", ["first:2", "distribute:1", "random:2", "011"])
def test_a_fixed_policy_stays_fixed(tmp_path, policy):
    short_run(tmp_path, f"--policy={policy}", "--pretrain-epochs=1")
    expected = parse(["--depth=8", f"--policy={policy}"])[0].fixed_policy((1, 1, 1))
    _, u = load(tmp_path)(torch.rand(4, 3, 16, 16))
    assert torch.equal(u, expected.expand(4, 3))
    assert [row["stage"] for row in rows(tmp_path)] == ["pretrain", "finetune"]


def test_a_policy_that_has_settled_stays_as_it_is_while_the_resnet_learns(tmp_path):
    assert short_run(tmp_path, "--finetune-epochs=2") == 0  # settles by half of it
    before, after = read(tmp_path / PREVIOUS), read(tmp_path)
    assert all(torch.equal(after["policy"][name], tensor) for name, tensor in before["policy"].items())
    assert not torch.equal(after["resnet"]["conv1.weight"], before["resnet"]["conv1.weight"])


def test_a_folder_of_images_goes_through_all_stages(tmp_path):
    tree = write_tree(tmp_path / "images", each=12, size=(16, 16))
    flags = ["--data=folder", f"--data-dir={tree}", "--image-size=0", "--train-images=0", "--val-images=4"]
    assert train.main([*SHORT, *flags, "--out", str(tmp_path / "run")]) == 0


def test_images_streamed_from_files_go_through_all_stages(tmp_path):
    tree = write_tree(tmp_path / "images", each=9, size=(20, 30))
    flags = ["--data=imagenet", f"--data-dir={tree}", "--image-size=32", "--train-images=0", "--val-images=3", "--workers=0"]
    assert train.main([*SHORT, *flags, "--out", str(tmp_path / "run")]) == 0


def test_training_in_bfloat16_ends_with_finite_float32_weights(tmp_path):
    assert short_run(tmp_path, "--amp", "--pretrain-epochs=1", "--curriculum-epochs=1", "--warm-epochs=0") == 0
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in load(tmp_path).parameters())


# ---------------------------------------------------------------------------- stopping and going on
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_with_its_exit_code_and_says_how_to_go_on(tmp_path, monkeypatch, capsys, number, code):
    at_step(monkeypatch, 2, kill(number))
    assert short_run(tmp_path) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(" ".join(["python train.py", *SHORT, "--out", str(tmp_path)])) and "to go on" in last
    assert load(tmp_path).resnet.num_blocks == 3


def test_a_signal_while_the_last_epoch_is_validated_stops_the_run(tmp_path, monkeypatch, capsys):
    finish = train.finish_epoch

    def with_signal(model, data, state, settings):
        if state["stage"] == "finetune":
            kill(signal.SIGTERM)()
        return finish(model, data, state, settings)

    monkeypatch.setattr(train, "finish_epoch", with_signal)
    assert short_run(tmp_path) == 143 and "to go on" in capsys.readouterr().out.splitlines()[-1]
    assert rows(tmp_path)[-1]["stage"] == "finetune"


def test_a_run_that_is_stopped_after_every_step_gives_the_same_bits(finished, tmp_path):
    for _ in range(STEPS):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, 1, kill(signal.SIGTERM))
            assert short_run(tmp_path) == 143
    assert short_run(tmp_path) == 0
    assert differences(tmp_path, finished[0]) == [] and rows(tmp_path) == rows(finished[0])


def test_checkpoints_can_be_rarer_and_change_nothing(finished, tmp_path, monkeypatch):
    saved, save = [], train.save
    monkeypatch.setattr(train, "save", lambda out, state: saved.append((state["stage"], state["epoch"])) or save(out, state))
    assert short_run(tmp_path, "--epochs-per-checkpoint=2") == 0
    assert saved == [("pretrain", 2), ("curriculum", 2), ("curriculum", 3), ("finetune", 1)]
    assert rows(tmp_path) == rows(finished[0])
    one, other = load(tmp_path).state_dict(), load(finished[0]).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_lines_reach_a_pipe_at_once(tmp_path, monkeypatch):
    read_end, write_end = os.pipe()

    def act():
        monkeypatch.setattr(sys, "stdout", open(write_end, "w"))  # noqa: SIM115
        return short_run(tmp_path, "--pretrain-epochs=100000")

    process = fork(act)
    with open(read_end) as lines:
        assert lines.readline().startswith("preset smoke") and os.waitpid(process, os.WNOHANG) == (0, 0)
    kill(signal.SIGKILL, process)()
    assert wait(process) == -signal.SIGKILL


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished, run, capsys):
    (run / NAME).write_bytes((run / NAME).read_bytes()[:5000])
    assert short_run(run) == 0
    assert differences(run, finished[0]) == [] and rows(run) == rows(finished[0])
    assert PREVIOUS in capsys.readouterr().out


@pytest.mark.parametrize("at", [0, 1, 9, 10])  # of what is done to the disk: put aside, begin, rename the new one, then
def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(finished, run, at):
    (run / NAME).write_bytes(b"damaged")
    with disk(at, kill(signal.SIGKILL)):
        assert wait(fork(lambda: short_run(run))) == -signal.SIGKILL
    assert short_run(run) == 0 and differences(run, finished[0]) == []


def test_a_second_signal_stops_at_once_and_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with train.signals() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_on_a_terminal_there_is_a_progress_bar_and_the_signal_of_ctrl_c_stops_it(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()

    def act():
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", open(theirs, "w"))  # noqa: SIM115
        return short_run(tmp_path, "--pretrain-epochs=9999")

    process, shown, asked = fork(act), b"", False
    while b"to go on" not in shown:
        shown += os.read(ours, 4096)
        if b"3/9999" in shown and not asked:
            kill(signal.SIGINT, process)()
            asked = True
    assert wait(process) == 130
    assert "━" in shown.decode(errors="ignore") and b"pretrain 1/9999" in shown and b"left" in shown


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_optimizer(tmp_path, monkeypatch, capsys, where):
    step, kept = train.take_step, []

    def spoilt(model, stage, *rest):
        loss, seen = step(model, stage, *rest)
        if stage == "finetune":
            kept.append((model, {name: p.detach().clone() for name, p in model.named_parameters()}))
            loss = loss * torch.nan if where == "loss" else loss + (0 * loss).sqrt()
        return loss, seen

    monkeypatch.setattr(train, "take_step", spoilt)
    assert short_run(tmp_path) == 2
    ((model, before),) = kept
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert "finetune, epoch 1, step 0" in "".join(capsys.readouterr()) and rows(tmp_path)[-1]["stage"] == "curriculum"


@pytest.mark.parametrize("stage", ["pretrain", "curriculum", "finetune"])
def test_a_learning_rate_that_is_far_too_high_ends_in_one_line(tmp_path, capsys, stage):
    assert short_run(tmp_path, f"--{stage}-lr=1e30") == 2
    said = [line for line in "".join(capsys.readouterr()).splitlines() if "not finite" in line]
    assert len(said) == 1 and stage in said[0] and "another --out" in said[0] and "run again" not in said[0]


# ----------------------------------------------------------------------------------------- evaluate
@pytest.fixture(scope="session")
def found(finished, tmp_path_factory):
    """What evaluate.py --json writes of the finished run."""
    torch.set_num_threads(1)
    copy, path = tmp_path_factory.mktemp("copy") / "run", tmp_path_factory.mktemp("json") / "found.json"
    shutil.copytree(finished[0], copy)
    assert evaluate.main([str(copy), "--json", str(path), "--device", "cpu"]) == 0
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(
    "key",
    [
        "accuracy", "full_accuracy", "blocks_mean", "blocks_std", "num_blocks", "flops_mean", "flops_std", "flops_full",
        "flops_saved", "distinct_policies", "images", "baselines", "rank_correlation", "blocks_by_difficulty",
    ],
)  # fmt: skip
def test_the_json_has_every_key(found, key):
    assert key in found


def test_the_json_holds_accuracy_blocks_and_flops_of_every_rival(found):
    names = ["full", "blockdrop", "first", "random", "distribute", "best static", "blind"]
    assert list(found["baselines"]) == names
    assert all(set(row) == {"accuracy", "blocks", "flops"} for row in found["baselines"].values())


def test_the_checkpoint_evaluates_to_the_same_numbers_by_hand(finished, found):
    test = load_data("shapes", None, 16, 96, 24, with_test=True).test
    logits, u = load(finished[0])(test.images)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == test.labels).double().mean().item())
    assert found["blocks_mean"] == pytest.approx(u.sum(1).mean().item()) and found["images"] == len(test)
    assert found["flops_saved"] == pytest.approx(1 - found["flops_mean"] / found["flops_full"])


def test_the_last_row_is_the_validation_of_the_checkpoint(finished):
    data = load_data("shapes", None, 16, 96, 24)
    result = run_policy(load(finished[0]), data.val, data.crop)
    last = rows(finished[0])[-1]
    assert (last["accuracy"], last["blocks_mean"]) == (result.accuracy, result.blocks_mean)


def test_evaluating_changes_nothing_but_the_pictures(run):
    files = {path: data for path, data in contents(run).items() if path.suffix != ".png"}
    assert evaluate.main([str(run), "--device", "cpu"]) == 0
    assert {path: contents(run)[path] for path in files} == files


def test_thresholds_add_rows_from_all_blocks_to_none(run, capsys, tmp_path):
    evaluate.main([str(run), "--threshold", "0", "1.1", "--json", str(tmp_path / "found.json")])
    blocks = {name: row["blocks"] for name, row in json.loads((tmp_path / "found.json").read_text())["baselines"].items()}
    assert blocks["BlockDrop, s >= 0.0"] == 3 and blocks["BlockDrop, s >= 1.1"] == 0
    assert "BlockDrop, s >= 1.1" in capsys.readouterr().out


def test_several_seeds_share_a_table_of_means_and_deviations(run, tmp_path, capsys):
    short_run(tmp_path / "other", "--seed=1")
    capsys.readouterr()
    assert evaluate.main([str(run), str(tmp_path / "other")]) == 0
    out = capsys.readouterr().out
    assert "2 run(s)" in " ".join(out.split()) and re.search(r"│ BlockDrop +│ +\d+\.\d\d ± \d+\.\d\d │", out)


def test_seeds_that_start_from_resnets_of_their_own_share_a_table(run, tmp_path, capsys):
    for seed in (0, 1):
        shutil.copy(run / "resnet.pt", tmp_path / f"resnet{seed}.pt")
        flags = "--stages=finetune", "--policy=first:2", f"--resnet={tmp_path / f'resnet{seed}.pt'}", f"--seed={seed}"
        assert short_run(tmp_path / str(seed), *flags) == 0
    assert evaluate.main([str(tmp_path / "0"), str(tmp_path / "1")]) == 0
    assert "2 run(s)" in " ".join(capsys.readouterr().out.split())


def test_the_mean_and_deviation_of_runs_by_hand():
    assert evaluate.mean_std([90.0, 92.0, 94.0], "{:.2f}") == "92.00 ± 2.00"
    assert evaluate.mean_std([90.0], "{:.2f}") == "90.00"


def test_runs_that_differ_in_more_than_their_seed_get_tables_of_their_own(run, tmp_path, capsys):
    short_run(tmp_path / "other", "--policy=first:2", "--pretrain-epochs=1")
    capsys.readouterr()
    assert evaluate.main([str(run), str(tmp_path / "other")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("1 run(s)") == 2 and "first:2" in out


def test_a_run_still_in_pretraining_gets_a_table_of_its_own_and_one_of_another_device_does_not(run, tmp_path, capsys):
    short_run(tmp_path / "begun", "--stages=pretrain")
    state = torch.load(tmp_path / "begun" / NAME, weights_only=True)
    state["settings"]["stages"] = read(run)["settings"]["stages"]
    save(tmp_path / "begun", state)
    shutil.copytree(run, tmp_path / "elsewhere")
    state = torch.load(run / NAME, weights_only=True)
    state["settings"]["workers"] += 1
    save(tmp_path / "elsewhere", state)
    capsys.readouterr()
    assert evaluate.main([str(run), str(tmp_path / "begun"), str(tmp_path / "elsewhere")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("1 run(s)") == 1 and out.count("2 run(s)") == 1


def test_a_quarter_of_difficulty_without_an_image_has_no_number(run, tmp_path, capsys, monkeypatch):
    easy = train.load_data

    def only_easy(*arguments, **options):
        data = easy(*arguments, **options)
        return replace(data, test=replace(data.test, difficulty=data.test.difficulty / 4))

    monkeypatch.setattr(evaluate, "load_data", only_easy)
    assert evaluate.main([str(run), "--json", str(tmp_path / "found.json")]) == 0
    first, *others = json.loads((tmp_path / "found.json").read_text())["blocks_by_difficulty"]
    assert first > 0 and others == [None] * 3 and ", none, none, none" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_only_pretrained_has_a_row_for_the_full_network(tmp_path, capsys):
    assert train.main([*SHORT, "--stages=pretrain", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "full network" in out and "FirstK" not in out


def test_a_damaged_checkpoint_is_said_to_be_so_when_the_one_before_is_evaluated(run, capsys):
    (run / NAME).write_bytes(b"damaged")
    assert evaluate.main([str(run)]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"evaluate.py: {run / NAME}") and PREVIOUS in error and error.count("\n") == 1


def test_a_checkpoint_file_is_evaluated_like_its_folder(run, tmp_path, found):
    evaluate.main([str(run / NAME), "--json", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text()) == found


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("flags", [["--preset=nosuch"], ["--alpha=0.5"], ["--depth=33"], ["--policy=first:0"], ["--nosuch=1"]])
def test_a_bad_flag_makes_no_folder(capsys, tmp_path, flags):
    refused(capsys, tmp_path, train.main, [*flags, "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--beta=77"], "there, 77.0 here"), (["--seed=3"], "seed 0 there, 3 here"),
        (["--depth=14"], "depth 8 there, 14 here"), (["--image-size=8"], "image-size 16 there, 8 here"),
    ],
)  # fmt: skip
def test_a_folder_with_a_run_of_other_settings_is_refused(capsys, run, flags, said):
    assert said in refused(capsys, run, short_run, run, *flags)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_to_is_named(capsys, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(capsys, tmp_path, short_run, tmp_path / place)


@pytest.mark.parametrize("settings", [None, [1], {"depth": 8}, {"depth": "8", "preset": []}])
def test_a_checkpoint_whose_settings_are_damaged_is_refused(capsys, run, settings):
    state = read(run)
    for _ in range(2):  # the newest checkpoint and the one before
        save(run, {**state, "settings": settings})
    assert str(run) in refused(capsys, run, short_run, run)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_folder_whose_checkpoints_are_damaged_is_refused(capsys, run, content):
    for name in (NAME, PREVIOUS):
        (run / name).write_bytes((run / name).read_bytes()[:9000] if content is None else content)
    assert str(run) in refused(capsys, run, short_run, run)
    assert str(run) in refused(capsys, run, evaluate.main, [str(run)], program="evaluate.py")


def folder_flags(tree):
    return ["--data=folder", f"--data-dir={tree}", "--image-size=0", "--train-images=0", "--val-images=4"]


def test_a_missing_data_folder_is_named(capsys, tmp_path):
    assert "nowhere" in refused(capsys, tmp_path, short_run, tmp_path / "run", *folder_flags(tmp_path / "nowhere"))


@pytest.mark.parametrize(("flags", "least"), [(["--image-size=9"], 10), (["--family=imagenet", "--depth=18"], 66)])
def test_images_that_end_in_a_single_pixel_are_refused(capsys, tmp_path, flags, least):
    assert f"{least} or more" in refused(capsys, tmp_path, short_run, tmp_path / "run", *flags)


def test_a_corrupt_image_is_named(capsys, tmp_path):
    tree = write_tree(tmp_path / "images")
    (tree / "train" / "bee" / "bad.png").write_bytes(b"\x89PNG not really")
    assert "bad.png" in refused(capsys, tree, short_run, tmp_path / "run", *folder_flags(tree))


def test_a_data_set_without_a_network_is_named(capsys, tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "__init__", offline)
    flags = ["--data=cifar10", "--train-images=0", "--image-size=0", f"--data-dir={tmp_path}"]
    assert "put cifar-10-python.tar.gz there" in refused(capsys, tmp_path, short_run, tmp_path / "run", *flags)


def changed_classes(tmp_path, classes):
    """(folder of a finished run on a tree of images, that tree, which now has other classes)."""
    tree = write_tree(tmp_path / "images", size=(16, 16))
    assert short_run(tmp_path / "run", *folder_flags(tree), "--stages=pretrain") == 0
    shutil.rmtree(tree)
    return tmp_path / "run", write_tree(tree, size=(16, 16), classes=classes)


@pytest.mark.parametrize("classes", [("apple", "bee", "cow"), ("apple",), ("apple", "cow")])
def test_data_whose_classes_are_not_those_of_the_checkpoint_is_refused(capsys, tmp_path, classes):
    out, tree = changed_classes(tmp_path, classes)
    more = "--stages=pretrain,curriculum"
    assert "class" in refused(capsys, tmp_path, short_run, out, *folder_flags(tree), more)
    assert "class" in refused(capsys, tmp_path, evaluate.main, [str(out)], program="evaluate.py")


def test_settings_of_a_finished_run_are_not_overwritten_when_its_data_is_gone(capsys, tmp_path):
    tree = write_tree(tmp_path / "images", size=(16, 16))
    assert short_run(tmp_path / "run", *folder_flags(tree), "--stages=pretrain") == 0
    shutil.rmtree(tree)
    refused(capsys, tmp_path / "run", short_run, tmp_path / "run", *folder_flags(tree))


@pytest.mark.parametrize("flag", ["resnet", "policy-start"])
@pytest.mark.parametrize("content", [None, b"text", b""])
def test_weights_that_cannot_be_read_are_named(capsys, tmp_path, flag, content):
    if content is not None:
        (tmp_path / "weights.pt").write_bytes(content)
    assert "weights.pt" in refused(capsys, tmp_path, short_run, tmp_path / "run", f"--{flag}={tmp_path / 'weights.pt'}")


def test_weights_of_another_depth_are_refused(capsys, tmp_path):
    torch.save(resnet(14).state_dict(), tmp_path / "weights.pt")
    said = refused(capsys, tmp_path, short_run, tmp_path / "run", f"--resnet={tmp_path / 'weights.pt'}")
    assert "left over" in said


def test_a_run_that_would_train_on_an_unpretrained_resnet_is_refused(capsys, tmp_path):
    assert "--resnet" in refused(capsys, tmp_path, short_run, tmp_path / "run", "--stages=curriculum")


def test_more_validation_images_than_there_are_images_is_refused(capsys, tmp_path):
    assert "cannot be cut" in refused(capsys, tmp_path, short_run, tmp_path / "run", "--val-images=96")


@pytest.mark.parametrize("device", ["nosuch", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(capsys, run, device):
    assert device in refused(capsys, run, short_run, run, f"--device={device}")
    assert device in refused(capsys, run, evaluate.main, [str(run), "--device", device], program="evaluate.py")


def test_a_seed_that_the_generator_cannot_take_is_refused_by_name(capsys, tmp_path):
    assert "seed" in refused(capsys, tmp_path, short_run, tmp_path / "run", f"--seed={10**20}")


def test_a_bias_that_is_no_number_is_refused(capsys, tmp_path):
    assert "keep-bias" in refused(capsys, tmp_path, short_run, tmp_path / "run", "--keep-bias=nan")


def test_a_run_that_is_not_there_is_named(capsys, tmp_path):
    assert "nowhere" in refused(capsys, tmp_path, evaluate.main, [str(tmp_path / "nowhere")], program="evaluate.py")


def test_a_run_whose_parts_do_not_fit_is_refused(capsys, tmp_path):
    state, _ = state_of()
    save(tmp_path, {**state, "classes": ("a", "b")})
    assert "fc.weight" in refused(capsys, tmp_path, evaluate.main, [str(tmp_path)], program="evaluate.py")


def test_a_json_file_that_cannot_be_written_is_named(capsys, run):
    arguments = [str(run), "--json", str(run / "nowhere" / "found.json")]
    assert "found.json" in refused(capsys, run / "metrics.jsonl", evaluate.main, arguments, program="evaluate.py")


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--nosuch"], "--nosuch"), (["--threshold", "x"], "invalid float value"), (["--threshold", "nan"], "nan")],
)
def test_a_bad_command_line_of_evaluate_is_refused(capsys, run, flags, said):
    assert said in refused(capsys, run, evaluate.main, [str(run), *flags], program="evaluate.py")
