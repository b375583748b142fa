"""Data sets, the validation split, and augmentation of whole batches on the device.

Small images live in memory as one uint8 tensor [N, 3, H, W]. `imagenet` is read from its files by
worker processes, 256 x 256 pixels of each; everything after that is the same. Nothing here
normalises: that is in `BlockDrop.prepare`. Read after shapes.py and images.py.
"""

import functools
import hashlib
import warnings
from dataclasses import dataclass, replace
from multiprocessing.connection import Listener
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms.functional import center_crop as centre_crop  # noqa: F401

from .images import DATA_DIR, image_folder
from .program import shown
from .shapes import SHAPES, make_shapes

DATA = ("shapes", "cifar10", "cifar100", "folder", "imagenet")
CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std
SAMPLE = 20_000 * 3 * 32 * 32  # bytes of training images whose mean and std are taken
# The short side of a streamed image. torchvision published its weights V1 with 256 and a crop of
# 224, as we do; its newer weights V2 with 232.
STREAM_SIZE = 256


def seeded(*key, device="cpu"):
    """A random generator whose state is a function of the key: the same numbers in any run."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Split:
    """Images with labels.

    images: uint8 [N, 3, H, W], or a data set that reads them from files when asked.
    labels: [N].
    difficulty: [N] in [0, 1], or None.
    """

    images: torch.Tensor | Dataset
    labels: torch.Tensor
    difficulty: torch.Tensor | None = None

    def __len__(self):
        return len(self.labels)

    @property
    def in_memory(self):
        """Whether the images are a tensor."""
        return isinstance(self.images, torch.Tensor)

    def subset(self, index):
        """The images at `index` [n]."""
        images = self.images[index] if self.in_memory else Subset(self.images, index.tolist())
        difficulty = None if self.difficulty is None else self.difficulty[index]
        return Split(images, self.labels[index], difficulty)

    def to(self, device):
        """Moves what is in memory to the device."""
        images = self.images.to(device) if self.in_memory else self.images
        return Split(images, self.labels.to(device), self.difficulty)

    def batches(self, batch_size, order=None, workers=0, part=slice):
        """Yields (x uint8 [B, 3, H, W], y [B]), the last batch short.

        order: indices; None: as the images lie.
        workers: processes that read images from files; 0: this one reads them.
        part: gives, for the size of a batch, the slice of it that is wanted; `slice`: all of it.
        Raises ValueError, one line, if a file is no image or a worker dies; OSError if a file
            cannot be read.
        """
        device = self.labels.device
        order = torch.arange(len(self)) if order is None else order
        if self.in_memory:
            order = order.to(device)  # once: an upload in each step would wait for the last one
        batches = [index[part(len(index))] for index in order.split(batch_size) if len(index)]
        if self.in_memory:
            for index in batches:
                yield self.images[index], self.labels[index]
        else:
            batches = [index.tolist() for index in batches]
            for x, y in read_batches(self.images, batches, workers, device.type == "cuda"):
                yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def read_batches(images, batches, workers, pin):
    """A `DataLoader` over lists of indices. It never warns, and its errors are one line each."""
    try:
        if workers:  # they hand images over through such a socket: if it fails, nothing arrives
            Listener().close()
        with warnings.catch_warnings():  # of more workers than cores
            warnings.simplefilter("ignore")
            loader = DataLoader(images, batch_sampler=batches, num_workers=workers, pin_memory=pin)
            batches = iter(loader)
        yield from batches
    except (ValueError, OSError, RuntimeError) as problem:  # with the traceback of a worker
        line = str(problem).strip().splitlines()[-1].removeprefix(f"{type(problem).__name__}: ")
        kind = OSError if "[Errno" in line else ValueError
        if kind is ValueError and not isinstance(problem, ValueError):
            line += "; processes need room in /dev/shm and a short TMPDIR, --workers 0 does not"
        raise kind(line) from None


@dataclass(frozen=True)
class Data:
    """What a run needs of its data set.

    train, val, test: `Split`s; test is None unless it was asked for.
    classes: their names.
    mean, std: of the training pixels, in [0, 1], per channel.
    crop, pad: training images are padded by `pad` and cropped to `crop`.
    summary: one line: what was read, and what was left out.
    """

    train: Split
    val: Split
    test: Split | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int
    pad: int
    summary: str = ""

    def to(self, device):
        """Moves what is in memory to the device."""
        test = self.test and self.test.to(device)
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=test)


def load_data(name, root, image_size=0, train_images=0, val_images=1000, with_test=False):
    """The data set `name`, one of DATA.

    root: the folder of files (not for shapes).
    image_size: side to which images are resized and cropped; 0: as they are.
    train_images: use this many, validation included, drawn at random; 0: all (shapes: 8,000).
    val_images: cut from the training images; the cut does not depend on the run's seed.
    with_test: read the test images, too.
    Raises ValueError, one line, on missing, empty, corrupt or mixed-size files, and on splits that
        cannot be made; OSError if the disk fails.
    """
    too_large = name == "imagenet" and image_size > STREAM_SIZE
    if too_large or (name in CIFAR and image_size not in (0, 32)):
        allowed = f"at most {STREAM_SIZE}" if too_large else "0 or 32, as they are"
        raise ValueError(f"--image-size is {image_size}; for {name} it must be {allowed}")
    found = ""
    if name == "shapes":
        train, classes = shapes(train_images or 8_000, 0, image_size or 32), SHAPES
        test = with_test and shapes(max(10, min(2_000, len(train) // 4)), 1, image_size or 32)
    elif name in CIFAR:
        train, classes = cifar(name, root, True)
        test = with_test and cifar(name, root, False)[0]
    else:
        train, test, found = folders(Path(root), STREAM_SIZE if name == "imagenet" else image_size)
        classes = train.images.classes
    count = train_images or len(train)
    if not 0 < val_images < count <= len(train):
        given = f"--train-images {count} with --val-images {val_images}"
        raise ValueError(f"{given} cannot be cut from {len(train)} images; change one of them")

    order = torch.randperm(len(train), generator=seeded("split"))[:count]
    if name == "folder":
        train = read_images(train, order)
        order = torch.arange(count)
        if with_test:
            test = read_images(test, torch.arange(len(test)), train.images.shape[-1])
    test = test if with_test else None
    val = train.subset(order[:val_images])
    train = train.subset(order[val_images:])
    (mean, std), crop, pad = IMAGENET, image_size or 224, 0
    if train.in_memory:
        crop = train.images.shape[-1]
        pad = crop // 8
        pixels = train.images[: max(1, SAMPLE // (3 * crop**2))].float() / 255
        mean = pixels.mean((0, 2, 3)).tolist()
        std = pixels.std((0, 2, 3)).clamp_min(1e-3).tolist()
    read = f"{len(train):,} training and {len(val):,} validation images, {len(classes):,} classes"
    return Data(train, val, test, tuple(classes), tuple(mean), tuple(std), crop, pad, read + found)


@functools.lru_cache(2)  # train.py and the evaluation at its end draw the same ones
def shapes(count, seed, size):
    """Drawn shapes as a `Split`."""
    return Split(*make_shapes(count, seed, size))


def cifar(name, root, train):
    """CIFAR from its official files, downloaded by torchvision: a `Split`, and the classes."""
    try:
        with warnings.catch_warnings():  # NumPy's, of how the files were pickled
            warnings.simplefilter("ignore")
            data = CIFAR[name](root, train=train, download=True)
    except Exception as problem:  # of many kinds: of the network, the disk, damaged files
        missing = (
            f"{name} is not in {root} and could not be downloaded ({shown(str(problem), 200)})"
        )
        raise ValueError(f"{missing}; put {CIFAR[name].filename} there; {DATA_DIR}") from None
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(data.targets)), data.classes


def folders(root, size):
    """The files of `folder` or `imagenet`: training and test `Split`, and what else was found."""
    train = image_folder(root, ("train",), size)
    test = image_folder(root, ("test", "val"), size, train.classes)
    found = f"; test: {len(test.paths):,} images in {test.root.name}"
    left_out = train.left_out + test.left_out
    if left_out:
        example = shown(Path(left_out[0]).relative_to(root))
        found += f"; left out: {len(left_out):,} that are no images, such as {example}"
    return *(Split(files, torch.tensor(files.labels)) for files in (train, test)), found


def read_images(split, index, side=0):
    """The images at `index` of a `Split` of files, in memory.

    side: the side that they must have; 0: that of the first.
    Raises ValueError if one is not square or has another side.
    """
    files = split.images
    side = side or files.size or min(files[index[0]][0].shape[1:])
    images = []
    for i in index.tolist():
        images.append(files[i][0])
        if images[-1].shape != (3, side, side) or side == 1:
            sides = "{1} x {0} pixels".format(*images[-1].shape[1:])
            needed = "all must be squares of one size, larger than a pixel; use --image-size"
            raise ValueError(f"{files.paths[i]} is {sides}, not {side} x {side}; {needed}")
    return Split(torch.stack(images), split.labels[index])


def augment(x, crop, pad, generator):
    """Each image padded with black, cropped at a random place, and flipped or not at random.

    x: uint8 [B, 3, H, W], on the generator's device, which gives three numbers an image.
    Returns uint8 [B, 3, crop, crop], channels_last.
    """
    x = F.pad(x, (pad, pad, pad, pad))
    height, width = x.shape[2:]
    top, left, flip = torch.rand(len(x), 3, 1, generator=generator, device=x.device).unbind(1)
    pixels = torch.arange(crop, device=x.device)
    rows = (top * (height - crop + 1)).long() + pixels  # [B, crop]
    columns = (left * (width - crop + 1)).long() + pixels
    columns = torch.where(flip < 0.5, columns.flip(1), columns)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
