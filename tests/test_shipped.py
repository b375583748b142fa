"""The model that ships: file, code and README say the same of it. Nothing is trained here."""

from pathlib import Path

import pytest
import torch

from blockdrop_min import load
from blockdrop_min.lab.checkpoint import MODELS
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.settings import parse

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo():
    """The model in float64, in which no rounding of a machine decides, and its data."""
    settings = parse([])[0]
    sizes = settings.image_size, settings.train_images, settings.val_images
    return load("demo").double(), load_data("shapes", "", *sizes, with_test=True)


def row(name, result):
    """A row of evaluate.py's table."""
    blocks = f"{result.blocks_mean:.2f} ± {result.blocks_std:.2f}"
    flops = f"{result.flops_mean / 1e6:.2f} ± {result.flops_std / 1e6:.2f}"
    saved = f"{100 * result.flops_saved:.1f} {result.distinct_policies}"
    return f"{name} {100 * result.accuracy:.2f} {blocks} {flops} {saved}"


@pytest.mark.parametrize("name", ["full network", "BlockDrop"])
def test_readme_shows_what_the_shipped_model_does_on_the_drawn_test_set(demo, name):
    model, data = demo
    u = torch.ones(model.resnet.num_blocks) if name == "full network" else None
    expected = row(name, run_policy(model, data.test, data.crop, u))
    lines = (ROOT / "README.md").read_text().splitlines()
    assert expected in [" ".join(line.split()) for line in lines]


def test_the_shipped_model_is_small_and_there_from_any_folder(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("demo").classes == demo[1].classes
    assert (MODELS / "demo.pt").stat().st_size <= 700_000
