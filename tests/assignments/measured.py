"""The laws of tasks 15 and 16: three runs are those asked for, and what is claimed is measured."""

import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockdrop_min.lab.checkpoint import read, restore
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.rivals import dealt_loss
from blockdrop_min.lab.settings import parse, unflat

RUNS = Path("runs")  # of the folder that they are run in
GAMMAS = (0.2, 1, 5)
FREE = ("seed", "resnet", "device", "amp", "deterministic", "workers", "data_dir")  # to choose


@functools.cache
def run(gamma):
    """A run's checkpoint and settings."""
    state, _ = read(RUNS / f"gamma{gamma}")
    return state, unflat(state["settings"])


def claimed(gamma):
    return json.loads((RUNS / f"gamma{gamma}" / "claims.json").read_text())


@functools.cache
def measured(gamma):
    state, settings = run(gamma)
    sizes = settings.image_size, settings.train_images, settings.val_images
    model, data = restore(state, "checkpoint"), load_data("shapes", "", *sizes, with_test=True)
    return model, data, run_policy(model, data.test, data.crop)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_run_is_the_demos_curriculum_with_this_gamma_and_ended(gamma):
    state, settings = run(gamma)
    demo = parse([])[0]
    chosen = {name: getattr(run(GAMMAS[0])[1], name) for name in FREE}
    curriculum = replace(demo.curriculum, gamma=gamma)
    assert settings == replace(demo, stages="curriculum", curriculum=curriculum, **chosen)
    assert (state["stage"], state["epoch"]) == ("curriculum", curriculum.epochs)


def test_the_three_runs_start_from_one_resnet_and_learn_three_policies():
    for one, other in itertools.combinations([run(gamma)[0] for gamma in GAMMAS], 2):
        assert all(map(torch.equal, one["resnet"].values(), other["resnet"].values()))
        assert not all(map(torch.equal, one["policy"].values(), other["policy"].values()))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_claim_is_what_measuring_gives(gamma):
    result = measured(gamma)[2]
    for name, tolerance in (("accuracy", 0.005), ("blocks_mean", 0.05), ("flops_saved", 0.01)):
        assert claimed(gamma)[name] == pytest.approx(getattr(result, name), abs=tolerance), name


def test_the_loss_of_dealing_is_what_measuring_gives():
    loss, error = dealt_loss(*measured(1), seed=2**20)
    assert claimed(1)["dealt_loss"][0] == pytest.approx(loss, abs=3 * error + 0.001)
    assert claimed(1)["dealt_loss"][1] == pytest.approx(error, rel=0.3, abs=0.001)


def test_the_verdict_is_that_of_the_numbers():
    verdict = json.loads((RUNS / "verdict.json").read_text())["one per image"]
    loss, error = claimed(1)["dealt_loss"]
    assert verdict is (loss > 2 * error)
