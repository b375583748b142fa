"""All stages on a few hundred small images: the whole learns to classify and to save.

Not only to end without an error.
"""

import pytest
import torch

import train
from blockdrop_min import load
from blockdrop_min.lab.checkpoint import read
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.evaluation import rank_correlation, run_policy

FLAGS = [
    "--preset=smoke",
    "--device=cpu",
    "--depth=8",
    "--image-size=16",
    "--train-images=800",
    "--val-images=100",
    "--pretrain-epochs=6",
    "--pretrain-batch=32",
    "--curriculum-epochs=3",
    "--curriculum-batch=32",
    "--warm-epochs=1",
    "--finetune-epochs=2",
    "--finetune-batch=32",
    # A net of three blocks that is right three times in four can save with gamma 0 only.
    "--curriculum-gamma=0",
    "--finetune-gamma=0",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("end") / "run"
    assert train.main([*FLAGS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def result(out):
    data = load_data("shapes", "", 16, 800, 100, with_test=True)
    return run_policy(load(out), data.test, data.crop), data.test


# Seeds 0, 1 and 2 reach an accuracy of 0.76 to 0.79, chance being 0.1, and save 11 to 30 % of
# the FLOPs.
def test_blockdrop_classifies_far_better_than_chance(result):
    assert result[0].accuracy > 0.5


def test_blockdrop_saves_flops_its_policy_network_included(result):
    assert result[0].flops_saved > 0.04


def test_policies_differ_between_images(result):
    assert result[0].distinct_policies >= 4


def test_harder_images_keep_more_blocks(result):
    assert rank_correlation(result[0].u.sum(1), result[1].difficulty) > 0.2


def test_the_checkpoint_measures_as_its_last_row_says(out):
    data = load_data("shapes", "", 16, 800, 100)
    measured = run_policy(load(out), data.val, data.crop)
    row = read(out)[0]["metrics"][-1]
    assert (measured.accuracy, measured.blocks_mean) == (row["accuracy"], row["blocks_mean"])
