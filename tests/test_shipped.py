"""The models that ship: file, code and README say the same of them. Nothing is trained here."""

import tarfile
from pathlib import Path

import pytest
import torch

from blockdrop_min import load
from blockdrop_min.lab.checkpoint import MODELS
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.images import load_image
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


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PHOTOS = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.gz"


def test_the_model_of_photographs_is_small_and_knows_its_classes():
    model = load("cifar10")
    assert (list(model.classes), model.resnet.num_blocks) == (CIFAR10, 15)
    assert (MODELS / "cifar10.pt").stat().st_size <= 1_300_000


def test_the_model_of_photographs_tells_test_images_apart_and_drops_blocks(tmp_path):
    if not PHOTOS.exists():
        pytest.skip("CIFAR-10's test images as JPEG files are not here")
    names = [f"test/{name}/{i:04}.jpg" for name in CIFAR10 for i in range(30)]
    with tarfile.open(PHOTOS) as files:
        members = [member for member in files if member.name in names]
        files.extractall(tmp_path, members, filter="data")
    images = [load_image(tmp_path / name, 32) for name in names]
    logits, u = load("cifar10")(torch.stack(images))
    right = logits.argmax(1) == torch.arange(10).repeat_interleave(30)
    assert right.float().mean() > 0.82
    assert u.sum(1).mean() < 10
