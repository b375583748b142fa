"""The laws of tasks 15 and 16: what is claimed about three runs is measured again."""

import functools
import json
from pathlib import Path

import pytest

from blockdrop_min.lab.checkpoint import read, restore
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.evaluation import dealt_loss, run_policy

RUNS = Path("runs")  # of the folder that they are run in
GAMMAS = (1, 4, 16)


def settings_of(gamma):
    return read(RUNS / f"gamma{gamma}")[0]["settings"]


def claimed(gamma):
    return json.loads((RUNS / f"gamma{gamma}" / "claims.json").read_text())


@functools.cache
def measured(gamma):
    settings = settings_of(gamma)
    assert settings["data"] == "shapes" and settings["depth"] <= 32, "another data set or depth"
    model = restore(read(RUNS / f"gamma{gamma}")[0], "checkpoint")
    sizes = (settings[name] for name in ("image_size", "train_images", "val_images"))
    data = load_data("shapes", "", *sizes, with_test=True)
    return model, data, run_policy(model, data.test, data.crop)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_claim_is_what_measuring_gives(gamma):
    result = measured(gamma)[2]
    for name, tolerance in (("accuracy", 0.005), ("blocks_mean", 0.05), ("flops_saved", 0.01)):
        assert claimed(gamma)[name] == pytest.approx(getattr(result, name), abs=tolerance), name


def test_the_three_runs_differ_in_gamma_alone():
    settings = [settings_of(gamma) for gamma in GAMMAS]
    assert [one.pop("curriculum_gamma") for one in settings] == list(GAMMAS)
    assert settings[0] == settings[1] == settings[2]


def test_the_loss_of_dealing_is_what_measuring_gives():
    loss, error = dealt_loss(*measured(4), seed=2**20)
    assert claimed(4)["dealt_loss"] == pytest.approx(loss, abs=3 * error + 0.001)
    assert claimed(4)["dealt_loss_error"] == pytest.approx(error, rel=0.3, abs=0.001)


def test_the_verdict_is_that_of_the_numbers():
    verdict = json.loads((RUNS / "verdict.json").read_text())["one per image"]
    assert verdict is (claimed(4)["dealt_loss"] > 2 * claimed(4)["dealt_loss_error"])
