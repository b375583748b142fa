"""Data sets, the validation split, batches and augmentation."""

import gc
import os
import pickle
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from helpers import rng, seeds, small_resnet
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import solid, split, write_tree
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.models import ResNet101_Weights
from torchvision.transforms.functional import to_pil_image

from blockdrop_min import BlockDrop, FixedPolicy
from blockdrop_min.lab import data as data_module
from blockdrop_min.lab.data import Split, augment, centre_crop, check_memory, load_data, seeded
from blockdrop_min.lab.process import out_of_memory
from blockdrop_min.lab.shapes import make_shapes


def shapes(**options):
    return load_data(
        "shapes", None, **{"image_size": 8, "train_images": 60, "val_images": 20, **options}
    )


def keys(images):
    """Images as hashable values."""
    return [image.numpy().tobytes() for image in images]


def read_all(part):
    """Every image and label of a Split in its order, whether in memory or in files."""
    x, y = zip(*part.batches(4), strict=True)
    return torch.cat(x), torch.cat(y)


def one_line(problem):
    message = str(problem.value)
    assert message.count("\n") == 0 and len(message) < 400
    return message


# ------------------------------------------------------------------------------------------ by hand
def test_the_middle_of_an_image_by_hand():
    x = torch.arange(24).view(1, 1, 4, 6).expand(1, 3, 4, 6)
    assert centre_crop(x, 2)[0, 0].tolist() == [[8, 9], [14, 15]]  # rows 1 and 2, columns 2 and 3


def test_without_padding_an_image_is_flipped_or_as_it_was():
    x = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).expand(40, 3, 2, 2)
    seen = {str(image[0].tolist()) for image in augment(x, crop=2, pad=0, generator=rng(0))}
    assert seen == {"[[0, 1], [2, 3]]", "[[1, 0], [3, 2]]"}


def test_the_padding_is_black():
    x = torch.full((200, 3, 2, 2), 255, dtype=torch.uint8)
    sums = augment(x, crop=2, pad=2, generator=rng(0))[:, 0].long().sum((1, 2)) // 255
    assert set(sums.tolist()) == {
        0,
        1,
        2,
        4,
    }  # the crop sees none, a corner, a side or all of the image


def test_mean_and_deviation_are_those_of_the_training_pixels():
    data = shapes()
    pixels = data.train.images.double() / 255
    for c in range(3):
        assert data.mean[c] == pytest.approx(pixels[:, c].mean().item(), abs=1e-5)
        assert data.std[c] == pytest.approx(pixels[:, c].std().item(), abs=1e-5)


# ---------------------------------------------------------------------------------------- two roads
@given(seeds, st.integers(1, 4), st.integers(0, 2), st.integers(2, 5))
def test_each_augmented_image_is_a_crop_of_its_own_padded_image_flipped_or_not(seed, B, pad, side):
    x = torch.randint(256, (B, 3, side, side), generator=rng(seed), dtype=torch.uint8)
    out = augment(x, side, pad, rng(seed + 1))
    for image, augmented in zip(x, out, strict=True):
        padded = torch.zeros(3, side + 2 * pad, side + 2 * pad, dtype=torch.uint8)
        padded[:, pad : pad + side, pad : pad + side] = image
        places = [
            padded[:, i : i + side, j : j + side]
            for i in range(2 * pad + 1)
            for j in range(2 * pad + 1)
        ]
        assert any(
            torch.equal(augmented, place) or torch.equal(augmented, place.flip(2))
            for place in places
        )


def test_images_streamed_from_files_equal_those_in_memory(tmp_path):
    write_tree(tmp_path, size=(40, 30))
    solid(99, (30, 41)).save(tmp_path / "train" / "bee" / "upright.png")
    memory, stream = (
        load_data(name, tmp_path, size, 0, 3, True)
        for name, size in (("folder", 256), ("imagenet", 0))
    )
    for part in ("train", "val", "test"):
        for one, other in zip(
            read_all(getattr(memory, part)), read_all(getattr(stream, part)), strict=True
        ):
            assert torch.equal(one, other)


# --------------------------------------------------------------------------------------------- laws
def test_the_split_is_disjoint_and_covers_the_training_set():
    data, everything = shapes(), shapes(val_images=1)
    train, val = keys(data.train.images), keys(data.val.images)
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(
        keys(everything.train.images) + keys(everything.val.images)
    )


def test_the_split_is_a_random_one_and_always_the_same():
    one, other = shapes(), shapes()
    assert torch.equal(one.train.images, other.train.images) and torch.equal(
        one.val.labels, other.val.labels
    )
    assert keys(one.val.images) != keys(shapes(val_images=21).train.images)[:20]


def test_the_split_takes_from_all_classes(tmp_path):
    data = load_data(
        "folder", write_tree(tmp_path, each=30), val_images=20
    )  # the files lie sorted by class
    assert set(data.val.labels.tolist()) == set(data.train.labels.tolist()) == {0, 1}


def test_labels_and_difficulties_stay_with_their_images():
    images, labels, difficulty = make_shapes(60, seed=0, size=8)
    known = dict(
        zip(keys(images), zip(labels.tolist(), difficulty.tolist(), strict=True), strict=True)
    )
    for part in (shapes().train, shapes().val):
        pairs = zip(part.labels.tolist(), part.difficulty.tolist(), strict=True)
        assert [known[key] for key in keys(part.images)] == list(pairs)


def test_the_test_set_shares_no_image_with_training():
    data = shapes(with_test=True)
    assert len(data.test) > 0 and not set(keys(data.test.images)) & set(
        keys(data.train.images) + keys(data.val.images)
    )


def test_the_test_set_is_not_read_unless_asked_for(tmp_path):
    (write_tree(tmp_path) / "test" / "bee" / "0.png").write_bytes(b"no image")
    assert shapes().test is None
    assert load_data("folder", tmp_path, val_images=3).test is None
    with pytest.raises(ValueError, match="cannot be read as an image"):
        load_data("folder", tmp_path, val_images=3, with_test=True)


def test_mean_and_deviation_are_those_of_the_first_training_images(tmp_path, monkeypatch):
    monkeypatch.setattr("blockdrop_min.lab.data.SAMPLE", 5 * 3 * 8 * 8)
    data = load_data("folder", write_tree(tmp_path), val_images=3)
    pixels = data.train.images[:5].double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist()) and len(data.train) > 5
    assert data.std == pytest.approx(pixels.std((0, 2, 3)).tolist())


@given(seeds, st.integers(1, 30), st.integers(1, 12))
def test_batches_give_each_image_once_in_the_order_asked_for(seed, count, size):
    part, order = split(count, seed, size=2), torch.randperm(count, generator=rng(seed))
    x, y = zip(*part.batches(size, order), strict=True)
    assert torch.equal(torch.cat(x), part.images[order]) and torch.equal(
        torch.cat(y), part.labels[order]
    )
    assert [len(b) for b in y] == [size] * (count // size) + [count % size] * (count % size > 0)


def test_batches_from_files_give_each_image_once_in_the_order_asked_for(tmp_path):
    part, order = (
        load_data("imagenet", write_tree(tmp_path, each=4), val_images=1).train,
        torch.tensor([6, 0, 3, 1, 5]),
    )
    (all_x, all_y), batches = read_all(part), list(part.batches(2, order))
    assert [len(y) for _, y in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), all_x[order])
    assert torch.equal(torch.cat([y for _, y in batches]), all_y[order])


def test_every_image_of_a_batch_is_moved_by_draws_of_its_own():
    x = torch.randint(256, (1, 3, 6, 6), generator=rng(0), dtype=torch.uint8).expand(900, 3, 6, 6)
    places = keys(augment(x, 6, 1, rng(0)).contiguous())
    counts = [places.count(place) for place in set(places)]
    assert (
        len(counts) == 18 and min(counts) > 25 and max(counts) < 80
    )  # 3 x 3 places, flipped or not, 50 of each


def test_augmentation_is_a_function_of_its_generator_and_leaves_its_argument():
    x = split(20).images
    before = x.clone()
    one, same, other = (augment(x, 9, 2, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(x, before)


def test_a_seeded_generator_is_a_function_of_its_whole_key():
    def number(*key):
        return torch.rand(1, generator=seeded(*key)).item()

    assert number(0, "finetune", 1, 2) == number(0, "finetune", 1, 2)
    assert (
        len(
            {
                number(*key)
                for key in [
                    (0, "a", 1),
                    (1, "a", 0),
                    (0, "b", 1),
                    (0, "a", 11),
                    (0, "a", 1, 1),
                    ("0", "a", 1),
                ]
            }
        )
        == 6
    )


# ------------------------------------------------------------------------------------------- folder
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_folder_of_images_is_read_with_its_classes(tmp_path, suffix):
    data = load_data("folder", write_tree(tmp_path, suffix=suffix), val_images=4, with_test=True)
    assert data.classes == ("apple", "bee")
    red = (
        torch.cat([data.train.images, data.val.images])[:, 0].float().mean((1, 2))
    )  # apples are darker than bees
    assert (red > 65).long().tolist() == torch.cat([data.train.labels, data.val.labels]).tolist()


@pytest.mark.parametrize("name", ["test", "val"])
def test_the_test_images_may_lie_in_test_or_in_val(tmp_path, name):
    data = load_data(
        "folder", write_tree(tmp_path, parts=("train", name)), val_images=3, with_test=True
    )
    assert len(data.test) == 12


def test_images_keep_their_size_or_are_resized(tmp_path):
    write_tree(tmp_path, size=(8, 8))
    assert load_data("folder", tmp_path, val_images=3).train.images.shape[2:] == (8, 8)
    assert load_data("folder", tmp_path, image_size=5, val_images=3).train.images.shape[2:] == (
        5,
        5,
    )


def test_resizing_keeps_the_proportions_and_the_middle(tmp_path):
    write_tree(tmp_path, size=(12, 4))
    wide = solid(0, (12, 4))
    wide.paste(solid(200, (4, 4)), (4, 0))
    for path in (tmp_path / "train").rglob("*.png"):
        wide.save(path)
    assert load_data("folder", tmp_path, image_size=4, val_images=3).train.images[
        :, 0
    ].unique().tolist() == [200]


def test_grey_and_transparent_images_become_rgb(tmp_path):
    write_tree(tmp_path)
    solid(9).convert("L").save(tmp_path / "train" / "bee" / "grey.png")
    solid(9).convert("RGBA").save(tmp_path / "train" / "bee" / "clear.png")
    assert load_data("folder", tmp_path, val_images=3).train.images.shape == (11, 3, 8, 8)


def test_fewer_training_images_are_drawn_from_all_of_them(tmp_path):
    data = load_data("folder", write_tree(tmp_path, each=20), train_images=20, val_images=5)
    assert (len(data.train), len(data.val)) == (15, 5) and len(set(data.train.labels.tolist())) == 2


def test_imagenet_is_cropped_to_224_and_normalised_as_torchvisions_weights_expect(tmp_path):
    data = load_data("imagenet", write_tree(tmp_path), val_images=3)
    assert (data.crop, data.pad) == (224, 0)
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)


# -------------------------------------------------------------------------------------------- cifar
def write_cifar(folder, monkeypatch, kind, files, names):
    """Files of CIFAR's format, random images; torchvision does not compare their checksums."""
    base = folder / kind.base_folder
    base.mkdir()
    key = "labels" if kind is datasets.CIFAR10 else "fine_labels"
    for i, name in enumerate(files):
        pixels = torch.randint(256, (5, 3072), generator=rng(i), dtype=torch.uint8).numpy()
        (base / name).write_bytes(pickle.dumps({"data": pixels, key: [0, 1, 1, 0, i]}))
    (base / "names").write_bytes(pickle.dumps({names: ["cat", "dog", "eel"]}))
    monkeypatch.setattr(kind, "train_list", [[name, None] for name in files[:-1]])
    monkeypatch.setattr(kind, "test_list", [[files[-1], None]])
    monkeypatch.setattr(kind, "meta", {"filename": "names", "key": names, "md5": None})


@pytest.mark.parametrize(
    ("name", "kind", "names"),
    [
        ("cifar10", datasets.CIFAR10, "label_names"),
        ("cifar100", datasets.CIFAR100, "fine_label_names"),
    ],
)
def test_cifar_is_read_from_its_official_files(tmp_path, monkeypatch, name, kind, names):
    write_cifar(tmp_path, monkeypatch, kind, ("batch_0", "batch_1", "tests"), names)
    data = load_data(name, tmp_path, val_images=4, with_test=True)
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (
        6,
        4,
        5,
        ("cat", "dog", "eel"),
    )
    first = torch.randint(256, (5, 3072), generator=rng(2), dtype=torch.uint8).view(
        5, 3, 32, 32
    )  # channels, rows, columns
    assert torch.equal(data.test.images, first) and data.test.labels.tolist() == [0, 1, 1, 0, 2]


@pytest.mark.parametrize(
    "problem",
    [URLError("no route to host"), RuntimeError("not found or corrupted"), OSError(28, "full")],
)
@pytest.mark.parametrize(
    ("name", "file"),
    [("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz")],
)
def test_without_a_network_one_line_says_which_file_to_put_where(monkeypatch, name, file, problem):
    def fail(self, *arguments, **options):
        raise problem

    monkeypatch.setattr(getattr(datasets, name.upper()), "__init__", fail)
    with pytest.raises(
        ValueError, match=rf"{name} is not in /some/where.*put {file} there"
    ) as raised:
        load_data(name, "/some/where")
    one_line(raised)


# -------------------------------------------------------------------------------------------- edges
DAMAGE = {
    "truncated.png": lambda raw: raw[: len(raw) // 2],
    "truncated.jpg": lambda raw: raw[: len(raw) // 2],
    "empty.png": lambda raw: b"",
    "text.jpg": lambda raw: b"this is no image\n" * 20,
    "chunk.png": lambda raw: (
        raw[:33] + bytes([0, 0, 0, 32]) + raw[37:]
    ),  # the length of the pixels' chunk
    "huge.bmp": lambda raw: raw[:18] + bytes([255, 255, 255, 0] * 2) + raw[26:],  # width and height
    "header.ppm": lambda raw: raw.replace(b"40", b"4x", 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_corrupt_image_is_named_in_one_line(tmp_path, name):
    write_tree(tmp_path, size=(40, 40))
    bad = tmp_path / "train" / "bee" / name
    to_pil_image(split(1, size=40).images[0]).save(bad)
    bad.write_bytes(DAMAGE[name](bad.read_bytes()))
    with pytest.raises(ValueError, match=name) as raised:
        load_data("folder", tmp_path, val_images=3)
    one_line(raised)


def test_images_of_mixed_size_are_refused_without_resizing_and_taken_with_it(tmp_path):
    write_tree(tmp_path)
    solid(5, (8, 9)).save(tmp_path / "train" / "bee" / "odd.png")
    with pytest.raises(
        ValueError, match=r"odd\.png is 8 x 9 pixels.*8 x 8.*--image-size"
    ) as raised:
        load_data("folder", tmp_path, val_images=3)
    one_line(raised)
    assert len(load_data("folder", tmp_path, image_size=8, val_images=3).train) == 10


def test_images_that_are_not_square_are_refused_without_resizing(tmp_path):
    with pytest.raises(ValueError, match=r"9 x 8 pixels.*--image-size") as raised:
        load_data("folder", write_tree(tmp_path, size=(9, 8)), val_images=3)
    one_line(raised)


@pytest.mark.parametrize("name", ["folder", "imagenet"])
@pytest.mark.parametrize(
    "with_test", [False, True]
)  # training must not begin without what its end needs
@pytest.mark.parametrize("parts", [(), ("train",)])
def test_a_missing_folder_is_named(tmp_path, name, parts, with_test):
    write_tree(tmp_path, parts)
    with pytest.raises(
        ValueError, match=f"{tmp_path} has no folder {'test or val' if parts else 'train'}"
    ) as raised:
        load_data(name, tmp_path, val_images=3, with_test=with_test)
    one_line(raised)


@pytest.mark.parametrize("empty", ["train", "train/bee"])
def test_an_empty_folder_is_named(tmp_path, empty):
    (tmp_path / empty).mkdir(parents=True)
    with pytest.raises(ValueError, match=str(tmp_path / "train")) as raised:
        load_data("folder", tmp_path)
    one_line(raised)


def test_test_images_of_another_size_are_refused_without_resizing(tmp_path):
    write_tree(tmp_path, ("train",), size=(16, 16))
    write_tree(tmp_path, ("test",), size=(12, 12))
    with pytest.raises(ValueError, match=r"12 x 12 pixels.*16 x 16.*--image-size"):
        load_data("folder", tmp_path, val_images=4, with_test=True)
    assert load_data("folder", tmp_path, image_size=12, val_images=4, with_test=True).crop == 12


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [("imagenet", 257, "at most 256"), ("cifar10", 16, "0 or 32, as they are")],
)
def test_a_size_that_cannot_be_had_is_refused(tmp_path, name, size, said):
    write_tree(tmp_path)
    with pytest.raises(ValueError, match=f"--image-size is {size}.*{said}"):
        load_data(name, tmp_path, image_size=size, val_images=4)


def test_few_training_shapes_are_tested_on_one_of_each_class():
    assert sorted(
        load_data("shapes", "", train_images=3, val_images=1, with_test=True).test.labels.tolist()
    ) == list(range(10))


def test_classes_that_differ_between_training_and_test_are_refused(tmp_path):
    write_tree(tmp_path, parts=("train",))
    write_tree(tmp_path, parts=("test",), classes=("apple", "cow"))
    with pytest.raises(ValueError, match="classes"):
        load_data("folder", tmp_path, val_images=3, with_test=True)


@pytest.mark.parametrize(
    ("train_images", "val_images"), [(10, 10), (10, 11), (10, 0), (13, 3), (0, 12)]
)
def test_a_split_that_leaves_a_part_empty_is_refused(tmp_path, train_images, val_images):
    with pytest.raises(ValueError, match="cannot be cut from 12"):
        load_data("folder", write_tree(tmp_path), train_images=train_images, val_images=val_images)


@pytest.mark.parametrize(("size", "pad"), [(16, 2), (32, 4), (48, 6)])
def test_images_in_memory_are_padded_by_an_eighth_of_their_size(size, pad):
    data = load_data("shapes", "", size, 20, 5)
    assert (data.crop, data.pad) == (size, pad)


@pytest.mark.parametrize("size", [16, 48])
def test_drawn_test_images_have_the_size_of_the_training_images(size):
    data = load_data("shapes", "", size, 20, 5, with_test=True)
    assert data.test.images.shape[1:] == data.train.images.shape[1:] == (3, size, size)


def test_images_of_a_single_colour_do_not_give_a_deviation_of_0(tmp_path):
    write_tree(tmp_path)
    for path in (tmp_path / "train").rglob("*.png"):
        solid(7).save(path)
    assert min(load_data("folder", tmp_path, val_images=3).std) > 0


def test_an_image_alone_is_a_batch():
    assert [len(y) for _, y in split(1).batches(8)] == [1]


@pytest.mark.parametrize("streamed", [False, True])
def test_no_images_are_no_batch(tmp_path, streamed):
    part = load_data("imagenet", write_tree(tmp_path), val_images=3).train if streamed else split(5)
    assert list(part.batches(4, torch.arange(0))) == []


def test_a_split_has_as_many_images_as_labels():
    assert len(Split(torch.zeros(7, 3, 2, 2), torch.zeros(7))) == 7


# ------------------------------------------------------------- what was read, and what was left out
def test_the_summary_says_how_many_images_of_how_many_classes_were_read(tmp_path):
    summary = load_data("folder", write_tree(tmp_path), val_images=3).summary
    assert summary == "9 training and 3 validation images, 2 classes; test: 12 images in test"


def test_the_summary_of_drawn_images_has_no_files():
    assert shapes().summary == "40 training and 20 validation images, 10 classes"


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_the_summary_names_what_was_left_out(tmp_path, name):
    write_tree(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "bee" / "notes.txt").touch()
    (tmp_path / "test" / "Thumbs.db").touch()
    summary = load_data(name, tmp_path, val_images=3).summary
    assert summary.endswith(
        "; left out: 3 that are no images "
        "(train/.ipynb_checkpoints, train/bee/notes.txt, test/Thumbs.db)"
    )


def test_the_summary_counts_what_it_does_not_name(tmp_path):
    write_tree(tmp_path)
    for i in range(1234):
        (tmp_path / "train" / "bee" / f"{i:04}.txt").touch()
    names = ", ".join(f"train/bee/{i:04}.txt" for i in range(3))
    assert (
        f"left out: 1,234 that are no images ({names}, ...)"
        in load_data("folder", tmp_path, val_images=3).summary
    )


# -------------------------------------------------------------------------------- images from files
def test_imagenets_test_images_are_prepared_as_torchvision_prepares_them(tmp_path):
    sizes = [(500, 375), (375, 500), (333, 257), (640, 223), (100, 71), (257, 300)]
    write_tree(tmp_path, parts=("train",))
    for part in ("test/apple", "test/bee"):
        (tmp_path / part).mkdir(parents=True)
    for i, (width, height) in enumerate(sizes):
        noise = torch.randint(
            256, (3, height // 5, width // 5), generator=rng(i), dtype=torch.uint8
        )
        path = tmp_path / "test" / ("apple" if i < 3 else "bee") / f"{i}.jpg"
        to_pil_image(noise).resize((width, height)).save(path, quality=90)
    data = load_data("imagenet", tmp_path, val_images=3, with_test=True)
    model = BlockDrop(small_resnet(), FixedPolicy(torch.ones(3)), data.mean, data.std).float()
    theirs = ResNet101_Weights.IMAGENET1K_V1.transforms()
    ((x, _),) = data.test.batches(len(sizes))
    prepared = model.prepare(centre_crop(x, data.crop))
    for i, path in enumerate(data.test.images.paths):
        assert torch.equal(prepared[i], theirs(Image.open(path))), sizes[i]


@pytest.fixture
def impatient(monkeypatch):
    """Workers that are gone are missed sooner than after the 5 seconds that PyTorch takes."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()  # waits for workers, too


class Reader(Dataset):
    """A data set of 8 images that does act(i) before it gives image i."""

    def __init__(self, act):
        self.act = act

    def __len__(self):
        return 8

    def __getitem__(self, i):
        self.act(i)
        return torch.full((3, 2, 2), i, dtype=torch.uint8), i


def reading(act):
    return Split(Reader(act), torch.arange(8))


def full_disk(i):
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_from_files_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    part = load_data("imagenet", write_tree(tmp_path, size=(9, 9)), val_images=3).train
    order = torch.tensor([4, 0, 7, 2, 6])
    for (x, y), (expected_x, expected_y) in zip(
        part.batches(2, order, workers), part.batches(2, order), strict=True
    ):
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", ["corrupt", "vanished"])
def test_an_image_that_cannot_be_read_during_training_is_named_in_one_line(
    impatient, tmp_path, workers, what
):
    data = load_data("imagenet", write_tree(tmp_path), val_images=3)
    bad = tmp_path / "train" / "bee" / "3.png"
    bad.unlink()
    if what == "corrupt":
        bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"^{bad} cannot be read as an image") as raised:
        for part in (data.train, data.val):
            list(part.batches(4, workers=workers))
    one_line(raised)


def test_too_little_shared_memory_is_one_line_with_what_to_do(impatient):
    with pytest.raises(ValueError, match=r"No space left on device.*--workers 0") as raised:
        list(reading(full_disk).batches(4, workers=1))
    one_line(raised)


def test_a_worker_that_dies_is_one_line_with_what_to_do(impatient):
    with pytest.raises(ValueError, match=r"DataLoader worker.*--workers 0") as raised:
        list(reading(lambda i: os.kill(os.getpid(), signal.SIGKILL)).batches(4, workers=1))
    one_line(raised)


def test_a_worker_that_dies_during_a_step_is_told_from_other_errors(impatient):
    def act(i):
        if i >= 4:
            time.sleep(0.2)  # the first batch is used by then
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises((RuntimeError, ValueError)) as raised:
        for _ in reading(act).batches(4, workers=1):
            time.sleep(5)
    assert isinstance(raised.value, ValueError) or "--workers 0" in out_of_memory(raised.value)


def test_an_error_of_who_uses_the_batches_stays_as_it_is():
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        for _ in reading(lambda i: None).batches(4):
            raise RuntimeError("out of memory")


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_images_from_files_are_pinned_for_a_gpu(monkeypatch, device, pinned):
    seen = []
    monkeypatch.setattr(data_module, "DataLoader", lambda *_, **options: seen.append(options) or [])

    class Labels(list):
        device = torch.device("cpu")

    labels = Labels(range(8))
    labels.device = torch.device(device)
    assert list(Split(Reader(None), labels).batches(4)) == []
    assert seen[0]["pin_memory"] == pinned


@pytest.mark.parametrize("batch_size", [2, 20])
def test_the_order_is_moved_to_the_device_once_however_many_batches_there_are(
    monkeypatch, batch_size
):
    moves, to = [], torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda *arguments, **options: moves.append(1) or to(*arguments, **options),
    )
    list(split(40).batches(batch_size, torch.randperm(40)))
    assert len(moves) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_part_of_each_batch_may_be_asked_for(streamed):
    whole = reading(lambda i: None) if streamed else Split(torch.zeros(8, 3, 2, 2), torch.arange(8))
    second_half = [
        y.tolist() for _, y in whole.batches(3, part=lambda size: slice(size // 2, size))
    ]
    assert second_half == [[1, 2], [4, 5], [7]]


# --------------------------------------------------------------------------- before training begins
def test_a_corrupt_test_image_of_streamed_data_is_found_before_training(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "test" / "bee" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"test/bee/3\.png cannot be read as an image") as raised:
        load_data("imagenet", tmp_path, val_images=3)
    one_line(raised)


def test_imagenets_own_layout_is_read_with_its_flat_test_folder(tmp_path):
    write_tree(tmp_path, parts=("train", "val"))
    (tmp_path / "test").mkdir()
    solid(1).save(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    data = load_data("imagenet", tmp_path, val_images=3, with_test=True)
    assert len(data.test) == 12
    assert "test: 12 images in val" in data.summary


def test_where_there_are_test_and_val_the_first_is_the_test_set(tmp_path):
    write_tree(tmp_path, parts=("train", "test"))
    write_tree(tmp_path, parts=("val",), each=2)
    data = load_data("folder", tmp_path, val_images=3, with_test=True)
    assert len(data.test) == 12
    assert "test: 12 images in test" in data.summary


@pytest.mark.parametrize("name", ["shapes", "folder"])
def test_images_that_do_not_fit_into_memory_are_refused_with_what_to_change(tmp_path, name):
    write_tree(tmp_path)
    with pytest.raises(ValueError, match=r"GiB.*--image-size.*--train-images") as raised:
        load_data(name, tmp_path, image_size=300_000, train_images=12, val_images=3)
    one_line(raised)


def test_images_as_they_are_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Path, "read_text", lambda path: "MemAvailable:   1 kB" if path.name == "meminfo" else "max"
    )
    write_tree(tmp_path)  # 12 images of 8 x 8 x 3 bytes, twice, are 4.5 KiB
    with pytest.raises(ValueError, match="GiB"):
        load_data("folder", tmp_path, val_images=3)
    assert len(load_data("folder", tmp_path, train_images=2, val_images=1).train) == 1


def test_the_limit_of_a_container_counts(monkeypatch):
    texts = {"meminfo": "MemAvailable:   1000 kB", "memory.max": "2000\n"}
    monkeypatch.setattr(Path, "read_text", lambda path: texts[path.name])
    check_memory(2000)
    with pytest.raises(ValueError, match="GiB"):
        check_memory(2001)


def test_where_the_system_does_not_say_what_is_free_nothing_is_refused(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", lambda path: "MemAvailable:   1 kB")
    with pytest.raises(ValueError, match="GiB"):
        check_memory(2**60)
    monkeypatch.setattr(Path, "read_text", missing)
    check_memory(2**60)


def test_only_the_training_images_that_are_used_are_read(tmp_path):
    write_tree(tmp_path, each=50)
    whole = load_data("folder", tmp_path, train_images=10, val_images=5)
    used = {
        tuple(image[:, 0, 0].tolist()) for part in (whole.train, whole.val) for image in part.images
    }
    for path in (tmp_path / "train").rglob("*.png"):
        with Image.open(path) as image:
            unused = image.getpixel((0, 0)) not in used
        if unused:
            path.write_bytes(b"no image")
    again = load_data("folder", tmp_path, train_images=10, val_images=5)
    assert torch.equal(again.train.images, whole.train.images)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_single_pixel_is_refused_unless_it_is_resized(tmp_path, name):
    write_tree(tmp_path, parts=("train", "test"), size=(1, 1))
    with pytest.raises(ValueError, match=r"1 x 1 pixels.*--image-size") as raised:
        load_data("folder", tmp_path, val_images=3)
    one_line(raised)
    assert load_data("folder", tmp_path, image_size=4, val_images=3).crop == 4


def test_a_split_that_cannot_be_made_says_which_flags_to_change(tmp_path):
    with pytest.raises(ValueError, match=r"--train-images or --val-images") as raised:
        load_data("folder", write_tree(tmp_path), val_images=100)
    one_line(raised)


# ---------------------------------------------------------------------------------------- downloads
@contextmanager
def server(answer):
    """A server that does answer(connection), and hangs up after 6 seconds: its address, clients."""
    clients = []

    def close(client):
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def serve():
        while True:
            try:
                clients.append(listener.accept()[0])
                hang_up = threading.Timer(6, close, [clients[-1]])
                hang_up.daemon = True
                hang_up.start()
                answer(clients[-1])
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/cifar.tar.gz", clients
        for client in clients:
            client.close()


def half_of_a_file(client):
    client.recv(1000)
    client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)


ANSWERS = {
    "nothing": lambda client: None,
    "no HTTP": lambda client: client.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "half of a file, and nothing more": half_of_a_file,
}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_server_that_does_not_answer_is_one_line_soon(tmp_path, monkeypatch, name, kind):
    monkeypatch.setattr(data_module, "PATIENCE", 0.3)
    started = time.monotonic()
    with server(ANSWERS[kind]) as (url, clients):
        monkeypatch.setattr(getattr(datasets, name.upper()), "url", url)
        with pytest.raises(
            ValueError, match=f"{name} is not in {tmp_path} and could not be downloaded"
        ) as raised:
            load_data(name, tmp_path)
    one_line(raised)
    assert time.monotonic() - started < 5
    assert len(clients) <= 2


def test_two_silences_of_a_server_take_less_than_20_seconds():
    assert 2 * data_module.PATIENCE < 20


def test_other_connections_keep_their_own_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "__init__", lambda *_, **__: full_disk(0))
    with pytest.raises(ValueError):
        load_data("cifar10", tmp_path)
    assert socket.getdefaulttimeout() is None


# ----------------------------------------------------------------------------------------- rounding
@pytest.mark.parametrize("pad", range(1, 70))
def test_the_largest_random_number_is_the_last_place_of_a_crop(monkeypatch, pad):
    largest = 1 - 2**-24  # that torch.rand gives
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, largest))
    x = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    out = augment(x, 2, pad, None)
    assert out[0, 0].tolist() == ([[4, 0], [0, 0]] if pad == 1 else [[0, 0], [0, 0]])
