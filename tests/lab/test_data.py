"""Data sets, the validation split, batches and augmentation."""

import errno
import gc
import multiprocessing
import os
import pickle
import signal
import tempfile
from unittest.mock import MagicMock, Mock
from urllib.error import URLError

import pytest
import torch
from helpers import rng, seeds
from hypothesis import given
from hypothesis import strategies as st
from runs import refused, solid, split, write_tree
from torch.utils.data import Dataset
from torchvision import datasets

from blockdrop_min.lab import data as data_module
from blockdrop_min.lab import images as images_module
from blockdrop_min.lab.data import STREAM_SIZE, Split, augment, centre_crop, load_data, seeded
from blockdrop_min.lab.shapes import make_shapes


def shapes(**options):
    options = {"image_size": 8, "train_images": 60, "val_images": 20} | options
    return load_data("shapes", None, **options)


def folder(tree, name="folder", **options):
    """The images in a tree of `write_tree`, three of them for validation."""
    return load_data(name, tree, **{"val_images": 3} | options)


def keys(images):
    """Images as hashable values."""
    return [image.numpy().tobytes() for image in images]


def read_all(part, batch_size=4, *options):
    """Every image and label of a Split in its order, whether in memory or in files."""
    x, y = zip(*part.batches(batch_size, *options), strict=True)
    return torch.cat(x), torch.cat(y)


# ---------------------------------------------------------------------------------------- two roads
@given(seeds, st.integers(1, 4), st.integers(0, 2), st.integers(2, 5))
def test_each_augmented_image_is_a_crop_of_its_own_padded_image_flipped_or_not(seed, B, pad, side):
    x = torch.randint(256, (B, 3, side, side), generator=rng(seed), dtype=torch.uint8)
    out = augment(x, side, pad, rng(seed + 1))
    for image, augmented in zip(x, out, strict=True):
        padded = torch.zeros(3, side + 2 * pad, side + 2 * pad, dtype=torch.uint8)
        padded[:, pad : pad + side, pad : pad + side] = image
        crops = padded.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert keys([augmented])[0] in keys(crops) + keys(crops.flip(3))


def test_images_streamed_from_files_equal_those_in_memory(tmp_path):
    write_tree(tmp_path, size=(40, 30))
    solid(99, (30, 41)).save(tmp_path / "train" / "bee" / "upright.png")
    memory = folder(tmp_path, image_size=256, with_test=True)
    stream = folder(tmp_path, "imagenet", with_test=True)
    for part in ("train", "val", "test"):
        pairs = zip(read_all(getattr(memory, part)), read_all(getattr(stream, part)), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_the_evaluation_sees_of_an_image_what_a_prediction_sees(tmp_path):
    data = folder(write_tree(tmp_path, size=(100, 71)), "imagenet", with_test=True)
    x = centre_crop(read_all(data.test)[0], data.crop)
    for image, path in zip(x, data.test.images.paths, strict=True):
        assert torch.equal(image, images_module.load_image(path, 224, STREAM_SIZE))


# --------------------------------------------------------------------------------------------- laws
def test_the_split_is_disjoint_and_covers_the_training_set():
    train, val = (keys(part.images) for part in (shapes().train, shapes().val))
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(keys(make_shapes(60, 0, 8)[0]))


def test_the_split_is_a_random_one_and_always_the_same():
    one, other = shapes(), shapes()
    assert keys(one.train.images) == keys(other.train.images)
    assert one.val.labels.equal(other.val.labels)
    assert keys(one.val.images) != keys(make_shapes(60, 0, 8)[0][:20])


def test_labels_and_difficulties_stay_with_their_images():
    images, *rest = make_shapes(60, seed=0, size=8)
    known = dict(zip(keys(images), zip(*map(torch.Tensor.tolist, rest), strict=True), strict=True))
    for part in (shapes().train, shapes().val):
        pairs = zip(part.labels.tolist(), part.difficulty.tolist(), strict=True)
        assert [known[key] for key in keys(part.images)] == list(pairs)


def test_the_test_set_shares_no_image_with_training():
    data = shapes(with_test=True)
    seen = set(keys(data.train.images) + keys(data.val.images))
    assert len(data.test) > 0 and not seen & set(keys(data.test.images))


def test_the_test_set_is_not_read_unless_asked_for(tmp_path):
    (write_tree(tmp_path) / "test" / "bee" / "0.png").write_bytes(b"no image")
    data = shapes(), folder(tmp_path), folder(tmp_path, "imagenet")
    assert [part.test for part in data] == [None] * 3
    with refused("cannot be read as an image"):
        folder(tmp_path, with_test=True)


@pytest.mark.parametrize("sample", [5, 1000])
def test_mean_and_deviation_are_those_of_the_first_training_images(tmp_path, monkeypatch, sample):
    monkeypatch.setattr(data_module, "SAMPLE", sample * 3 * 8 * 8)
    data = folder(write_tree(tmp_path))
    assert data.train.images.shape == (9, 3, 8, 8)  # as they are
    pixels = data.train.images[:sample].double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3)).tolist())


def test_images_of_a_single_colour_do_not_give_a_deviation_of_0(tmp_path):
    write_tree(tmp_path, each=1)
    assert min(folder(tmp_path, val_images=1).std) > 0


@given(seeds, st.integers(1, 30), st.integers(1, 12))
def test_batches_give_each_image_once_in_the_order_asked_for(seed, count, size):
    part, order = split(count, seed, size=2), torch.randperm(count, generator=rng(seed))
    x, y = read_all(part, size, order)
    assert torch.equal(x, part.images[order]) and torch.equal(y, part.labels[order])
    sizes = [len(labels) for _, labels in part.batches(size, order)]
    assert sizes == [size] * (count // size) + [count % size] * (count % size > 0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_from_files_give_each_image_once_in_the_order_asked_for(tmp_path, workers):
    part = folder(write_tree(tmp_path, each=4), "imagenet", val_images=1).train
    order = torch.tensor([6, 0, 3, 1, 5])
    assert [len(labels) for _, labels in part.batches(2, order, workers)] == [2, 2, 1]
    (x, y), (all_x, all_y) = read_all(part, 2, order, workers), read_all(part)
    assert torch.equal(x, all_x[order]) and torch.equal(y, all_y[order])


def test_every_image_of_a_batch_is_moved_by_draws_of_its_own():
    x = torch.randint(256, (1, 3, 6, 6), generator=rng(0), dtype=torch.uint8).expand(900, 3, 6, 6)
    places = keys(augment(x, 6, 1, rng(0)).contiguous())
    counts = [places.count(place) for place in set(places)]
    assert len(counts) == 18  # 3 x 3 places, flipped or not, 50 of each
    assert 25 < min(counts) <= max(counts) < 80


def test_augmentation_is_a_function_of_its_generator_and_leaves_its_argument():
    x, before = split(20).images, split(20).images
    one, same, other = (augment(x, 9, 2, rng(seed)) for seed in (0, 0, 1))
    assert one.equal(same) and not one.equal(other) and x.equal(before)


@pytest.mark.parametrize("pad", range(1, 70))
def test_the_largest_random_number_is_the_last_place_of_a_crop(monkeypatch, pad):
    largest = 1 - 2**-24  # that torch.rand gives
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, largest))
    x = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    out = augment(x, 2, pad, None)
    assert out[0, 0].tolist() == ([[4, 0], [0, 0]] if pad == 1 else [[0, 0], [0, 0]])


def test_a_seeded_generator_is_a_function_of_its_whole_key():
    keys = [(0, "a", 1), (1, "a", 0), (0, "b", 1), (0, "a", 11), (0, "a", 1, 1), ("0", "a", 1)]
    numbers = [torch.rand(1, generator=seeded(*key)).item() for key in keys + keys]
    assert numbers[:6] == numbers[6:] and len(set(numbers)) == 6


@pytest.mark.parametrize("streamed", [False, True])
def test_a_part_of_each_batch_may_be_asked_for_and_no_images_are_no_batch(streamed):
    whole = reading() if streamed else Split(torch.zeros(8, 3, 2, 2), torch.arange(8))
    second_half = whole.batches(3, part=lambda size: slice(size // 2, size))
    assert [y.tolist() for _, y in second_half] == [[1, 2], [4, 5], [7]]
    assert list(whole.batches(4, torch.arange(0))) == []


def test_the_order_is_moved_to_the_device_once_however_many_batches_there_are(monkeypatch):
    moves, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda *a, **o: moves.append(1) or to(*a, **o))
    assert len(list(split(40).batches(2, torch.randperm(40)))) == 20 and len(moves) == 1


# --------------------------------------------------------------------------------- sizes and counts
def test_fewer_training_images_are_drawn_from_all_of_them_and_only_they_are_read(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(images_module, "load_image", read := Mock(wraps=images_module.load_image))
    data = folder(write_tree(tmp_path, each=20), train_images=20, val_images=5)
    assert (len(data.train), len(data.val)) == (15, 5)
    assert set(data.val.labels.tolist()) == set(data.train.labels.tolist()) == {0, 1}
    assert len({call.args for call in read.call_args_list}) == 20


def test_imagenet_is_cropped_to_224_and_normalised_as_torchvisions_weights_expect(tmp_path):
    data = folder(write_tree(tmp_path), "imagenet")
    assert (data.crop, data.pad) == (224, 0)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert folder(tmp_path, "imagenet", image_size=64).crop == 64


@pytest.mark.parametrize(("size", "pad"), [(16, 2), (32, 4), (48, 6)])
def test_images_in_memory_are_padded_by_an_eighth_of_their_size(size, pad):
    data = shapes(image_size=size, with_test=True)
    assert (data.crop, data.pad) == (size, pad)
    assert data.test.images.shape[1:] == data.train.images.shape[1:] == (3, size, size)


def test_few_training_shapes_are_tested_on_one_of_each_class():
    test = shapes(train_images=3, val_images=1, with_test=True).test
    assert sorted(test.labels.tolist()) == list(range(10))


def test_the_summary_says_how_many_images_of_how_many_classes_were_read(tmp_path):
    write_tree(tmp_path, ("train",))
    write_tree(tmp_path, ("val",), each=2)
    expected = "9 training and 3 validation images, 2 classes; test: 4 images in val"
    assert folder(tmp_path).summary == expected
    assert shapes().summary == "40 training and 20 validation images, 10 classes"


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_the_summary_counts_what_was_left_out_and_names_one(tmp_path, name):
    write_tree(tmp_path)
    (tmp_path / "train" / "bee" / "no\ntes.txt").touch()
    for i in range(1233):
        (tmp_path / "test" / f"{i}.txt").touch()
    summary = folder(tmp_path, name).summary
    expected = r"left out: 1,234 that are no images, such as train/bee/no\ntes.txt"
    assert summary.endswith(f"; {expected}")


# -------------------------------------------------------------------------------- what is no use
ODD = [("train/bee", (8, 9)), ("test/bee", (6, 6)), ("", (9, 8)), ("", (1, 1)), ("", (1, 60_000))]


@pytest.mark.parametrize(("place", "size"), ODD)  # of one image, or of all
def test_images_that_are_no_squares_of_one_size_are_refused_without_resizing(tmp_path, place, size):
    write_tree(tmp_path, size=(8, 8) if place else size, each=2)
    if place:
        solid(5, size).save(tmp_path / place / "odd.png")
    side = 8 if place else min(size)
    which = r"odd\.png" if place else "png"
    with refused(f"{which} is {size[0]} x {size[1]} pixels, not {side} x {side}.*--image-size"):
        folder(tmp_path, with_test=True)
    assert folder(tmp_path, image_size=8, with_test=True).crop == 8


@pytest.mark.parametrize("name", ["folder", "imagenet"])
@pytest.mark.parametrize("with_test", [False, True])  # no training without what its end needs
@pytest.mark.parametrize(("parts", "missing"), [((), "train"), (("train",), "test or val")])
def test_a_missing_folder_is_named(tmp_path, monkeypatch, name, with_test, parts, missing):
    write_tree(tmp_path / "data", parts)
    (tmp_path / "data").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    expected = f"^data has no folder {missing} .*expected data/{missing[:4]}.*/<class>/"
    with refused(f"{expected}.*--data-dir .* from the current folder"):
        folder("data", name, with_test=with_test)


@pytest.mark.parametrize("theirs", [("apple", "cow"), ("apple",), ("apple", "bee", "cow")])
def test_classes_that_differ_between_training_and_test_are_refused_and_named(tmp_path, theirs):
    write_tree(tmp_path, ("train",))
    write_tree(tmp_path, ("test",), theirs)
    differ = ", ".join(sorted({"apple", "bee"} ^ set(theirs)))
    with refused(f"^{tmp_path}: train and test have other classes: {differ}$"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [("imagenet", 257, "at most 256"), ("cifar10", 16, "0 or 32"), ("cifar100", 33, "0 or 32")],
)
def test_a_size_that_cannot_be_had_is_refused(tmp_path, name, size, said):
    with refused(f"--image-size is {size}; for {name} it must be {said}"):
        load_data(name, tmp_path, image_size=size)


@pytest.mark.parametrize(("train", "val"), [(10, 10), (10, 0), (13, 3), (0, 12)])
def test_a_split_that_leaves_a_part_empty_is_refused_with_what_to_change(tmp_path, train, val):
    given = f"--train-images {train or 12} with --val-images {val}"
    with refused(f"{given} cannot be cut from 12 images"):
        folder(write_tree(tmp_path), train_images=train, val_images=val)


# ------------------------------------------------------------------------- batches that go wrong
@pytest.fixture
def impatient(monkeypatch):
    """Workers that are gone are missed sooner than after the 5 seconds that PyTorch takes."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()  # waits for workers, too


class Reader(Dataset):
    """A data set that does act(i), which may raise, before it gives image i."""

    def __init__(self, act):
        self.act = act

    def __getitem__(self, i):
        self.act(i)
        return torch.full((3, 2, 2), i, dtype=torch.uint8), i


def reading(act=abs, problem=None):
    """A Split of 8 such images; the problem is what act raises."""
    return Split(Reader(Mock(side_effect=problem) if problem else act), torch.arange(8))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"no image", None])
def test_an_image_that_cannot_be_read_during_training_is_named_in_one_line(
    impatient, tmp_path, workers, content
):
    data = folder(write_tree(tmp_path), "imagenet")
    bad = tmp_path / "train" / "bee" / "3.png"
    bad.write_bytes(content) if content else bad.unlink()
    with refused(rf"^{bad} cannot be read as an image"):
        for part in (data.train, data.val):
            list(part.batches(4, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_what_the_disk_refuses_stays_its_error(impatient, workers, number):
    problem = OSError(number, os.strerror(number), "3.png")
    with refused(rf"^\[Errno {number}\] {os.strerror(number)}: '3.png'$", kind=OSError):
        list(reading(problem=problem).batches(4, workers=workers))


def test_too_little_shared_memory_is_one_line_with_what_to_do(impatient):
    text = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    with refused(r"No space left on device.*--workers 0"):
        list(reading(problem=RuntimeError(text)).batches(4, workers=1))


def test_a_temporary_folder_with_a_long_path_is_one_line_before_the_first_batch(
    tmp_path, monkeypatch
):
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)
    with refused("AF_UNIX path too long.*TMPDIR, --workers 0"):
        list(reading().batches(4, workers=1))


def test_a_worker_that_dies_is_one_line_with_what_to_do(impatient):
    with refused(r"DataLoader worker.*--workers 0"):
        list(reading(lambda i: os.kill(os.getpid(), signal.SIGKILL)).batches(4, workers=1))


def test_an_error_of_who_uses_the_batches_stays_as_it_is():
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        for _ in reading().batches(4):
            raise RuntimeError("out of memory")


@pytest.mark.filterwarnings("error")
def test_more_workers_than_cores_are_no_warning():
    assert len(list(reading().batches(4, workers=os.cpu_count() + 1))) == 2


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_images_from_files_are_pinned_for_a_gpu(monkeypatch, device, pinned):
    monkeypatch.setattr(data_module, "DataLoader", loader := Mock(return_value=[]))
    labels = MagicMock(device=torch.device(device))
    assert list(Split(None, labels).batches(4, torch.arange(8))) == []
    assert loader.call_args.kwargs["pin_memory"] == pinned


# ------------------------------------------------------------------------------------------ CIFAR
# The official file, and the keys of the classes' names and of the labels:
CIFAR = {
    "cifar10": ("cifar-10-python.tar.gz", "label_names", "labels"),
    "cifar100": ("cifar-100-python.tar.gz", "fine_label_names", "fine_labels"),
}
both = pytest.mark.parametrize("name", CIFAR)


@both
@pytest.mark.filterwarnings("error")
def test_cifar_is_read_from_its_official_files(tmp_path, monkeypatch, name):
    _, names, key = CIFAR[name]
    kind = getattr(datasets, name.upper())  # it does not compare the checksums of these:
    monkeypatch.setattr(kind, "train_list", [["batch_0", None], ["batch_1", None]])
    monkeypatch.setattr(kind, "test_list", [["tests", None]])
    monkeypatch.setattr(kind, "meta", {"filename": "names", "key": names, "md5": None})
    base = tmp_path / kind.base_folder
    base.mkdir()
    pixels = torch.randint(256, (3, 5, 3072), generator=rng(2), dtype=torch.uint8)
    for i, file in enumerate(("batch_0", "batch_1", "tests")):
        content = {"data": pixels[i].numpy(), key: [0, 1, 1, 0, i]}
        (base / file).write_bytes(pickle.dumps(content))
    (base / "names").write_bytes(pickle.dumps({names: ["cat", "dog", "eel"]}))
    data = load_data(name, tmp_path, val_images=4, with_test=True)
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 4, 5]
    assert data.classes == ("cat", "dog", "eel")
    assert torch.equal(data.test.images, pixels[2].view(5, 3, 32, 32))  # channels, rows, columns
    assert data.test.labels.tolist() == [0, 1, 1, 0, 2]


@both
@pytest.mark.parametrize(
    "problem", [URLError("no route"), RuntimeError("bad"), OSError(28, "full")]
)
def test_without_a_network_one_line_says_which_file_to_put_where(monkeypatch, name, problem):
    kind = getattr(datasets, name.upper())
    monkeypatch.setattr(kind, "__init__", Mock(side_effect=problem))
    with refused(rf"{name} is not in /some/where.*put {CIFAR[name][0]} there; --data-dir"):
        load_data(name, "/some/where")
