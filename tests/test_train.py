"""train.py as a user meets it: what it prints and leaves; and its loop, watched step by step.

Stopping and going on is in test_resuming.py, bad input in test_refusals.py.
"""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from disks import STEP_FUNCTIONS, fork, kill, wait
from helpers import assert_equal
from runs import EPOCHS, IMAGES, SHORT, differences, rows, short_run, workers_asked, write_tree
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import train
from blockdrop_min import finetuning, load, pretraining, resnet
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, read, restore
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.log import COLUMNS
from blockdrop_min.lab.settings import flat, parse, unflat
from blockdrop_min.policy_network import force_on, greedy
from blockdrop_min.stage import Stage

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
PICTURES = {"extremes.png", "tradeoff.png"}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(folder, process) of one run of all stages, a command that prints into a pipe.

    Not to be changed.
    """
    out = tmp_path_factory.mktemp("run") / "short"
    command = [sys.executable, "train.py", *SHORT, "--out", str(out)]
    process = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    return out, process


# ---------------------------------------------------------------------------------- a run, by hand
def test_a_run_ends_with_exit_code_0_and_says_nothing_on_stderr(finished):
    assert (finished[1].returncode, finished[1].stderr) == (0, "")


def test_a_run_leaves_its_files(finished):
    expected = {NAME, PREVIOUS, "metrics.jsonl", "settings.json", "resnet.pt", ".lock"} | PICTURES
    assert {path.name for path in finished[0].iterdir()} == expected


def test_the_metrics_have_one_row_an_epoch_in_order(finished):
    assert [(row["stage"], row["epoch"]) for row in rows(finished[0])] == EPOCHS


def test_the_settings_are_written_as_they_were(finished):
    written = json.loads((finished[0] / "settings.json").read_text())
    assert f"torch {torch.__version__}" in written.pop("versions")
    assert written == flat(parse(SHORT)[0])


def test_into_a_pipe_goes_one_line_of_headings(finished):
    headings = [word for heading, _, _ in COLUMNS for word in heading.split()]
    lines = [line.split() for line in finished[1].stdout.splitlines()]
    assert lines.count(headings) == 1


def test_into_a_pipe_goes_one_row_an_epoch(finished):
    pattern = r" *(pretrain|curriculum|finetune) +(\d)/(\d) "
    shown = re.findall(pattern, finished[1].stdout)
    epochs = dict(EPOCHS)
    assert shown == [(stage, f"{epoch + 1}", f"{epochs[stage] + 1}") for stage, epoch in EPOCHS]


@pytest.mark.parametrize("code", ["\x1b", "\r"])
def test_into_a_pipe_go_plain_lines(finished, code):
    assert code not in finished[1].stdout


def test_a_run_says_what_it_runs_and_where(finished):
    expected = [
        "preset smoke, changed: {.*'image_size': 16, .*}; seed 0",
        rf"folder {finished[0]}; cpu, 1 process\(es\), 1 threads, .*commit.* torch.* torchvision.*",
        ".*; images a step x epochs: pretrain 32 x 2, curriculum 32 x 3, finetune 32 x 1",
    ]
    for pattern, line in zip(expected, finished[1].stdout.splitlines()[:3], strict=True):
        assert re.fullmatch(pattern, line), line


def test_the_report_at_the_end_gets_the_folder_the_data_and_the_device(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        train.report, "main", lambda *given, **more: asked.append((given, more)) or 7
    )
    flags = ["--stages=pretrain", "--pretrain-epochs=1", "--data-dir=there"]
    assert train.main([*SHORT, *flags, "--out", str(tmp_path)]) == 7
    assert asked == [(([str(tmp_path)],), {"data_dir": "there", "device": "cpu"})]


def test_plain_lines_between_the_rows_say_the_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("blockdrop_min.lab.log.PLAIN_EVERY", 0.0)
    short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=1")
    pattern = r"\d\d:\d\d:\d\d (pretrain 1/1: step \d/3)"
    lines = re.findall(pattern, capsys.readouterr().out)
    assert lines == [f"pretrain 1/1: step {step}/3" for step in (1, 2, 3)]


def test_on_a_terminal_there_is_a_progress_bar_and_ctrl_c_stops_it(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()

    def act():
        monkeypatch.setenv("TERM", "xterm")
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, open(theirs, "w"))  # noqa: SIM115
        return short_run(tmp_path, "--pretrain-epochs=9999")

    process = fork(act)
    shown = b""
    asked = False
    while b"goes on" not in shown:
        shown += os.read(ours, 4096)
        if b"3/9999" in shown and not asked:
            kill(signal.SIGINT, process)()
            asked = True
    assert wait(process) == 130
    assert "━" in shown.decode(errors="ignore")
    assert b"pretrain 1/9999" in shown
    assert re.search(rb"-:--:--|\d:\d\d:\d\d", shown)  # the time that is left


@pytest.mark.parametrize("name", ["exp[lr=0.1]", "a[/y]", "[bold]b", ":smile:"])
def test_the_name_of_a_folder_is_never_markup(tmp_path, capsys, name):
    assert short_run(tmp_path / name, "--stages=pretrain", "--pretrain-epochs=1") == 0
    assert f"{tmp_path / name}; " in capsys.readouterr().out


# ----------------------------------------------------------------------------------- laws of a run
def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    assert short_run(tmp_path) == 0
    assert differences(tmp_path, finished[0]) == []


def test_the_resnet_of_the_end_of_pretraining_is_left_in_a_file_of_its_own(finished, tmp_path):
    assert short_run(tmp_path, "--stages=pretrain") == 0
    left = torch.load(finished[0] / "resnet.pt", weights_only=True)
    assert_equal(left, read(tmp_path)[0]["resnet"])
    final = read(finished[0])[0]["resnet"]
    assert not torch.equal(left["conv1.weight"], final["conv1.weight"])


@pytest.mark.parametrize("policy", ["first:2", "distribute:1", "random:2", "011"])
def test_a_fixed_policy_stays_fixed(tmp_path, policy):
    short_run(tmp_path, f"--policy={policy}", "--pretrain-epochs=1")
    expected = parse(["--depth=8", f"--policy={policy}"])[0].fixed_policy((1, 1, 1))
    _, u = load(tmp_path)(torch.rand(4, 3, 16, 16))
    assert torch.equal(u, expected.expand(4, 3))
    assert [row["stage"] for row in rows(tmp_path)] == ["pretrain", "finetune"]


@pytest.mark.parametrize(("data", "side"), [("folder", 0), ("imagenet", 32)])
def test_images_from_files_go_through_all_stages(tmp_path, data, side):
    tree = write_tree(tmp_path / "images", each=9, size=(20, 20 if side == 0 else 30))
    flags = [f"--data={data}", f"--data-dir={tree}", f"--image-size={side}", "--workers=0"]
    flags += ["--train-images=0", "--val-images=3", "--out", str(tmp_path / "run")]
    assert train.main([*SHORT, *flags]) == 0


@pytest.mark.parametrize("amp", ["on", "off"])
def test_training_in_bfloat16_ends_with_finite_float32_weights(tmp_path, amp):
    flags = ["--pretrain-epochs=1", "--curriculum-epochs=1", "--curriculum-warm-epochs=0"]
    assert short_run(tmp_path, f"--amp={amp}", *flags) == 0
    assert read(tmp_path)[0]["bfloat16"] == (amp == "on")
    for name, p in load(tmp_path).named_parameters():
        assert p.dtype == torch.float32, name
        assert p.isfinite().all(), name


# -------------------------------------------------------------------------------------- fair rivals
def test_the_rivals_are_runs_of_one_policy_each_from_the_same_pretrained_resnet(tmp_path, capsys):
    assert short_run(tmp_path, "--rivals=2") == 0
    rivals = sorted(path for path in tmp_path.glob("static-*"))
    assert len(rivals) == 2
    for path in rivals:
        state = read(path)[0]
        digits = path.name.removeprefix("static-")
        assert load(path).policy.u.tolist() == [float(digit) for digit in digits]
        assert state["settings"]["resnet"] == str(tmp_path / "resnet.pt")
        assert [(row["stage"], row["epoch"]) for row in rows(path)] == [("finetune", 0)]
        ours, theirs = (unflat(read(folder)[0]["settings"]).finetune for folder in (tmp_path, path))
        assert ours == theirs
    blocks = [path.name.count("1") for path in rivals]
    assert blocks[1] - blocks[0] == 1


def test_each_rival_is_the_best_of_a_short_trial_of_several_policies_of_its_blocks(
    tmp_path, capsys
):
    assert short_run(tmp_path, "--rivals=2") == 0
    trials = {path.name[6:]: rows(path)[-1]["accuracy"] for path in tmp_path.glob("trial-*")}
    for policy in read(tmp_path)[0]["rivals"][:2]:
        others = {u: found for u, found in trials.items() if u.count("1") == policy.count("1")}
        assert policy == "111" or (len(others), trials[policy]) == (3, max(others.values()))
    said = [line for line in capsys.readouterr().out.splitlines() if "trial" in line]
    lines = [f"trial of policy {u} for all images: {100 * trials[u]:.2f} %" for u in trials]
    assert sorted(said) == sorted(lines), "a line each, without its epochs"


def test_the_papers_heuristics_are_trained_as_long_where_five_rivals_are_asked_for(tmp_path):
    assert short_run(tmp_path, "--rivals=5") == 0
    policies = [read(path)[0]["settings"]["policy"] for path in sorted(tmp_path.glob("static-*"))]
    kinds = sorted(policy.partition(":")[0] for policy in policies)
    assert kinds[2:] == ["distribute", "first", "random"]
    assert all(kind.isdigit() for kind in kinds[:2])


def test_a_run_and_its_rivals_go_on_where_they_stopped(tmp_path):
    assert short_run(tmp_path, "--rivals=1") == 0
    (rival,) = tmp_path.glob("static-*")
    before = (rival / NAME).stat().st_mtime_ns
    assert short_run(tmp_path, "--rivals=1") == 0
    assert (rival / NAME).stat().st_mtime_ns == before


@pytest.mark.parametrize("flag", ["--policy=first:2", "--stages=pretrain", "--rivals=0"])
def test_without_a_learned_policy_or_if_told_so_there_are_no_rivals(tmp_path, flag):
    assert short_run(tmp_path, "--rivals=2", flag) == 0
    assert list(tmp_path.glob("static-*")) == []


# -------------------------------------------------------------------------- the loop, step by step
def before_step(steps, optimizer, *_):
    """Notes what the optimizer is about to use."""
    step = steps[-1]
    parameters = dict(step.model.named_parameters())
    step.lr = [group["lr"] for group in optimizer.param_groups]
    step.used = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    step.before = {n: p.detach().clone() for n, p in parameters.items()}


def after_step(steps, *_):
    """Notes what the optimizer has changed."""
    step = steps[-1]
    parameters = dict(step.model.named_parameters())
    step.moved = {n for n, p in parameters.items() if not torch.equal(p, step.before[n])}
    del step.before


@contextmanager
def watching():
    """Gives the list of what each training step within it is given, computes and changes."""
    steps, drawn = [], []

    def watched(name, original):
        def act(model, x, y, *arguments):
            drawn.extend(a.get_state() for a in arguments if isinstance(a, torch.Generator))
            loss, images = original(model, x, y, *arguments)
            learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
            gradients = torch.autograd.grad(
                loss, list(learning.values()), retain_graph=True, allow_unused=True
            )
            step = SimpleNamespace(
                name=name,
                y=y,
                states=drawn.copy(),
                modes={n for n in ("resnet", "policy") if model.get_submodule(n).training},
                gradients=dict(zip(learning, gradients, strict=True)),
                loss=loss.item(),
                images={key: value.double() for key, value in images.items()},
                model=model,
            )
            steps.append(step)
            drawn.clear()
            return loss, images

        return act

    def augment(x, crop, pad, generator):
        drawn.append(generator.get_state())
        return original_augment(x, crop, pad, generator)

    original_augment = train.augment
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(train, "augment", augment)
        for name, module in STEP_FUNCTIONS.items():
            patch.setattr(module, name, watched(name, getattr(module, name)))
        before = register_optimizer_step_pre_hook(partial(before_step, steps))
        after = register_optimizer_step_post_hook(partial(after_step, steps))
        stack.callback(before.remove)
        stack.callback(after.remove)
        yield steps


# Two epochs or more of each stage; in finetuning one of joint and one of settled steps.
TWO_EACH = ["--finetune-epochs=2"]
KINDS = ["pretrain_step"] * 6 + ["warm_start_step"] * 3 + ["curriculum_step"] * 6
KINDS += ["finetune_step"] * 3 + ["settled_step"] * 3
SAMPLING = ("pretrain_step", "curriculum_step", "finetune_step")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """(folder, steps) of a run whose every step was watched."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("watched")
    with watching() as steps:
        assert short_run(out, *TWO_EACH) == 0
    return out, steps


def test_each_stage_takes_the_steps_that_are_its_own(watched):
    assert [step.name for step in watched[1]] == KINDS


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("pretrain_step", {"resnet"}),
        ("warm_start_step", {"policy"}),
        ("curriculum_step", {"policy"}),
        ("finetune_step", {"resnet", "policy"}),
        ("settled_step", {"resnet"}),
    ],
)
def test_what_learns_in_a_step_is_in_training_mode_and_nothing_else(watched, name, networks):
    for step in watched[1]:
        if step.name == name:
            assert {n.partition(".")[0] for n in step.used} == step.modes == networks


def test_the_optimizer_gets_the_gradient_of_this_steps_loss_alone(watched):
    for i, step in enumerate(watched[1]):
        expected = {n: g for n, g in step.gradients.items() if g is not None}
        assert step.used.keys() == expected.keys(), (i, step.name)
        for name, gradient in expected.items():
            assert torch.equal(step.used[name], gradient), (i, step.name, name)


def test_what_has_a_gradient_is_moved_and_nothing_else(watched):
    for i, step in enumerate(watched[1]):
        if step.lr == [0]:  # the first step of a stage
            continue
        with_gradient = {name for name, gradient in step.used.items() if gradient.any()}
        assert with_gradient - step.moved == set(), (i, step.name)
        assert step.moved - step.used.keys() == set(), (i, step.name)


def test_networks_are_trained_in_channels_last(watched):
    for name, p in watched[1][-1].model.named_parameters():
        if p.dim() == 4:
            assert p.is_contiguous(memory_format=torch.channels_last), name


def test_every_step_has_the_learning_rate_of_its_place_in_the_stage(watched):
    expected = []
    for rate, count in ((0.05, 6), (2e-3, 9), (1e-3, 6)):  # the peak of each stage, and its steps
        expected += [rate * Stage().rate(i / count) for i in range(count)]
    assert [step.lr for step in watched[1]] == [[pytest.approx(rate)] for rate in expected]
    assert max(expected) > 0.04


def test_every_column_is_the_mean_over_the_images_of_its_own_epoch(watched):
    out, steps = watched
    for i, row in enumerate(rows(out)):
        epoch = steps[3 * i : 3 * i + 3]
        counts = [len(step.images["correct"]) for step in epoch]
        assert counts == [32, 32, 8]
        loss = sum(step.loss * n for step, n in zip(epoch, counts, strict=True)) / IMAGES
        assert row["loss"] == pytest.approx(loss, rel=1e-5), row
        for column, key in (("train_accuracy", "correct"), ("R", "R"), ("A", "A")):
            if key in epoch[0].images:
                mean = torch.cat([step.images[key] for step in epoch]).mean().item()
                assert row[column] == pytest.approx(mean, rel=1e-5, abs=1e-6), (row, column)
            else:
                assert row[column] is None, (row, column)


def test_the_seconds_of_a_row_are_those_of_its_own_steps_and_validation(tmp_path, monkeypatch):
    now = [0.0]

    def taking(seconds, act):
        def slow(*arguments, **options):
            now[0] += seconds
            return act(*arguments, **options)

        return slow

    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(pretraining, "pretrain_step", taking(1, pretraining.pretrain_step))
    monkeypatch.setattr(train, "run_policy", taking(10, train.run_policy))
    assert short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=3") == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["seconds"] for line in lines] == [3 + 10] * 3


def test_every_row_is_the_validation_of_its_checkpoint_by_hand(tmp_path, monkeypatch):
    val = load_data("shapes", None, 16, 96, 24).val
    found = []
    save = train.save

    def measured(out, state):
        model = restore(state, out)
        free = torch.arange(3) >= 3 - state["metrics"][-1]["free"]
        with torch.no_grad():
            x = model.prepare(val.images)
            u = force_on(greedy(model.policy(x)), free)
            correct = model.resnet(x, u, execute="masked").argmax(1) == val.labels
        found.append((correct.double().mean().item(), u.sum(1).double().mean().item()))
        save(out, state)

    monkeypatch.setattr(train, "save", measured)
    assert short_run(tmp_path, *TWO_EACH, "--curriculum-free-by=1") == 0
    shown = [(row["accuracy"], row["blocks_mean"]) for row in rows(tmp_path)]
    assert found == [pytest.approx(row) for row in shown]
    assert len({blocks for _, blocks in found}) > 2
    assert [row["free"] for row in rows(tmp_path)] == [0, 0, 0, 2, 3, 3, 3]


def test_the_last_row_is_what_is_measured_of_the_checkpoint(finished):
    data = load_data("shapes", None, 16, 96, 24)
    result = run_policy(load(finished[0]), data.val, data.crop)
    last = rows(finished[0])[-1]
    for name in ("accuracy", "blocks_mean", "blocks_std", "distinct_policies"):
        assert last[name] == getattr(result, name), name


def test_every_epoch_takes_each_training_image_once_the_last_short_batch_included(watched):
    expected = sorted(load_data("shapes", None, 16, 96, 24).train.labels.tolist())
    labels = [step.y.tolist() for step in watched[1]]
    for i in range(0, len(labels), 3):
        assert sorted([*labels[i], *labels[i + 1], *labels[i + 2]]) == expected, i


def test_the_order_of_the_images_is_new_in_every_epoch_of_every_stage(watched):
    labels = [step.y.tolist() for step in watched[1]]
    orders = {str(labels[i : i + 3]) for i in range(0, len(labels), 3)}
    assert len(orders) == len(labels) // 3


def test_all_generators_of_all_steps_differ(watched):
    # An image's flip and its sampled policy must not be functions of the same numbers.
    states = [state.numpy().tobytes() for step in watched[1] for state in step.states]
    assert len(states) == len(watched[1]) + sum(kind in SAMPLING for kind in KINDS)
    assert len(set(states)) == len(states)


def test_with_another_seed_every_order_and_every_generator_is_another(watched, tmp_path):
    with watching() as others:
        assert short_run(tmp_path, *TWO_EACH, "--seed=1") == 0
    for one, other in zip(watched[1], others, strict=True):
        assert one.y.tolist() != other.y.tolist(), one.name
    one, other = (
        {s.numpy().tobytes() for step in run for s in step.states} for run in (watched[1], others)
    )
    assert one & other == set()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_optimizer(
    tmp_path, monkeypatch, capsys, where
):
    step = finetuning.finetune_step
    kept = []

    def spoilt(model, *rest):
        loss, images = step(model, *rest)
        kept.append((model, {n: p.detach().clone() for n, p in model.named_parameters()}))
        return loss * torch.nan if where == "loss" else loss + (0 * loss).sqrt(), images

    monkeypatch.setattr(finetuning, "finetune_step", spoilt)
    assert short_run(tmp_path) == 2
    ((model, before),) = kept
    assert_equal(dict(model.named_parameters()), before)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for said in ("finetune, epoch 1, step 0", "a smaller --finetune-lr", "in another --out"):
        assert said in error
    assert rows(tmp_path)[-1]["stage"] == "curriculum"


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_on_where_they_are_asked_for(tmp_path, deterministic):
    flag = "--deterministic" if deterministic else "--no-deterministic"
    try:
        short_run(tmp_path, flag, "--stages=pretrain", "--pretrain-epochs=1")
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("workers", [0, 3])
def test_images_are_read_by_as_many_processes_as_are_asked_for(tmp_path, monkeypatch, workers):
    asked = workers_asked(monkeypatch)
    flags = ["--stages=pretrain", "--pretrain-epochs=1", f"--workers={workers}"]
    assert short_run(tmp_path, *flags) == 0
    assert asked == [workers] * 2  # to learn from, and to validate on


def test_the_data_are_loaded_as_the_settings_say(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "load_data", lambda *given: asked.append(given) or load_data(*given))
    flags = ["--data-dir=there", "--train-images=60", "--val-images=20", "--image-size=18"]
    assert short_run(tmp_path, *flags, "--stages=pretrain", "--pretrain-epochs=1") == 0
    assert asked == [("shapes", "there", 18, 60, 20)]


def new_model(**changes):
    settings = unflat({"depth": 8} | changes)
    data = SimpleNamespace(classes="abc", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    return train.make_model(settings, data, None, None)


def test_a_new_model_normalises_by_the_statistics_of_its_data():
    model = new_model()
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_training_images_alone_are_padded_and_cropped_as_the_data_say(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "augment", lambda x, *how: seen.append((len(x), *how[:2])) or x)
    short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=1")
    assert {(crop, pad) for _, crop, pad in seen} == {(16, 2)}
    assert sum(count for count, _, _ in seen) == IMAGES


def test_a_new_model_is_a_function_of_its_seed():
    one = new_model(seed=3).state_dict()
    assert_equal(new_model(seed=3).state_dict(), one)
    assert not torch.equal(new_model(seed=4).resnet.conv1.weight, one["resnet.conv1.weight"])


def test_a_new_resnet_starts_from_the_file_that_is_named(tmp_path):
    path = tmp_path / "resnet.pt"
    torch.save(resnet(8, 3).state_dict(), path)
    assert_equal(new_model(resnet=str(path)).resnet.state_dict(), torch.load(path))


def test_a_new_policy_network_starts_from_the_file_that_is_named(tmp_path):
    path = tmp_path / "resnet18.pt"
    changes = {"family": "imagenet", "depth": 18, "policy_width": 64}
    torch.save(new_model(seed=5, **changes).policy.features.state_dict(), path)
    model = new_model(policy_start=str(path), **changes)
    assert_equal(model.policy.features.state_dict(), torch.load(path))
