"""Data sets, the validation split, and augmentation of whole batches on the device.

Small images live in memory as one uint8 tensor [N, 3, H, W]. `imagenet` is read from its files by worker processes, to
256 x 256 pixels; everything after that is the same. Nothing here normalises: that is in `BlockDrop.prepare`.
"""

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from .shapes import SHAPES, make_shapes

shapes = functools.lru_cache(2)(
    make_shapes
)  # train.py and the evaluation at its end draw the same ones
DATA = ("shapes", "cifar10", "cifar100", "folder", "imagenet")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std
SAMPLE = (
    20_000 * 3 * 32 * 32
)  # bytes of training images whose mean and standard deviation are taken
STREAM_SIZE = 256  # side to which images that are not kept in memory are resized


def seeded(*key, device="cpu"):
    """A random generator whose state is a function of the key: the same key gives the same numbers in any run."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Split:
    """Images with labels. images: uint8 [N, 3, H, W], or a data set that reads them; difficulty: [N] in [0, 1] or None."""

    images: torch.Tensor | Subset
    labels: torch.Tensor
    difficulty: torch.Tensor | None = None

    def __len__(self):
        return len(self.labels)

    def subset(self, index):
        """The images at `index` [n]."""
        in_memory = isinstance(self.images, torch.Tensor)
        difficulty = None if self.difficulty is None else self.difficulty[index]
        return Split(
            self.images[index] if in_memory else Subset(self.images, index.tolist()),
            self.labels[index],
            difficulty,
        )

    def to(self, device):
        """Moves what is in memory to the device."""
        images = self.images.to(device) if isinstance(self.images, torch.Tensor) else self.images
        return Split(images, self.labels.to(device), self.difficulty)

    def batches(self, batch_size, order=None, workers=0, part=slice):
        """Yields (x uint8 [B, 3, H, W], y [B]) in this order of indices, the last batch short. None: as they lie.

        part: gives, for the size of a batch, the slice of it that is wanted; as it is, all of it.
        """
        order = torch.arange(len(self)) if order is None else order
        indices, device = (
            [index[part(len(index))] for index in order.split(batch_size) if len(index)],
            self.labels.device,
        )
        if isinstance(self.images, torch.Tensor):
            for index in indices:
                index = index.to(device)
                yield self.images[index], self.labels[index]
        else:
            loader = DataLoader(
                self.images,
                batch_sampler=[index.tolist() for index in indices],
                num_workers=workers,
            )
            for x, y in loader:
                yield x.to(device, non_blocking=True), y.to(device)


@dataclass(frozen=True)
class Data:
    """What a run needs of its data set. Training images are cropped to `crop` after padding by `pad`, and flipped."""

    train: Split
    val: Split
    test: Split | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int
    pad: int
    summary: str = ''

    def to(self, device):
        """Moves what is in memory to the device."""
        parts = {
            name: getattr(self, name).to(device)
            for name in ("train", "val", "test")
            if getattr(self, name)
        }
        return replace(self, **parts)


def load_data(name, root, image_size=0, train_images=0, val_images=1000, with_test=False):
    """The data set `name`, one of DATA. The test set is read only if `with_test`.

    root: the folder of files (not for shapes).    image_size: side to which images are resized and cropped, 0 = as they are.
    train_images: use this many, drawn at random; 0 = all (shapes: 8,000), validation images included.
    val_images are cut from the training images; the cut does not depend on the run's seed.
    Raises ValueError, one line, on missing, empty, corrupt or mixed-size files, and on splits that cannot be made.
    """
    if name == "shapes":
        size = image_size or 32
        train, classes = Split(*shapes(train_images or 8_000, seed=0, size=size)), tuple(SHAPES)
        test = (
            Split(*shapes(max(len(SHAPES), min(2_000, len(train) // 4)), seed=1, size=size))
            if with_test
            else None
        )
    elif name in ("cifar10", "cifar100"):
        if image_size not in (0, 32):
            raise ValueError(
                f"--image-size is {image_size}; images of {name} stay as they are, 32 pixels"
            )
        train, classes = cifar(name, root, True)
        test = cifar(name, root, False)[0] if with_test else None
    else:
        if name == "imagenet" and image_size > STREAM_SIZE:
            raise ValueError(
                f"--image-size is {image_size}; it must be at most {STREAM_SIZE}, to which imagenet is resized"
            )
        size = STREAM_SIZE if name == "imagenet" else image_size
        trees = [image_folder(Path(root), names, size) for names in (("train",), ("test", "val"))]
        if trees[0].classes != trees[1].classes:
            raise ValueError(f"{root}: the classes of train and of the test folder differ")
        read = (
            read_images
            if name == "folder"
            else lambda tree: Split(tree, torch.tensor(tree.targets))
        )
        train, test, classes = (
            read(trees[0]),
            read(trees[1]) if with_test else None,
            tuple(trees[0].classes),
        )
        if test and name == "folder" and test.images.shape[1:] != train.images.shape[1:]:
            sides = (
                f"{test.images.shape[-1]} pixels wide and training images {train.images.shape[-1]}"
            )
            raise ValueError(f"{root}: test images are {sides}; resize them with --image-size")
    train_images = train_images or len(train)
    if not (0 < val_images < train_images <= len(train)):
        raise ValueError(
            f"{train_images} training images with {val_images} for validation cannot be cut from {len(train)}"
        )
    order = torch.randperm(len(train), generator=seeded("split"))[:train_images]
    train, val = train.subset(order[val_images:]), train.subset(order[:val_images])
    if isinstance(train.images, torch.Tensor):
        pixels = train.images[: max(1, SAMPLE // train.images[0].numel())].float() / 255
        mean, std, crop, pad = (
            pixels.mean((0, 2, 3)),
            pixels.std((0, 2, 3)),
            train.images.shape[-1],
            train.images.shape[-1] // 8,
        )
        return Data(
            train,
            val,
            test,
            classes,
            tuple(mean.tolist()),
            tuple(std.clamp_min(1e-3).tolist()),
            crop,
            pad,
        )
    return Data(train, val, test, classes, *IMAGENET, crop=image_size or 224, pad=0)


def cifar(name, root, train):
    """CIFAR from its official files, downloaded by torchvision if they are not there."""
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        data = kind(root, train=train, download=True)
    except (OSError, RuntimeError, EOFError) as problem:
        raise ValueError(
            f"{name} is not in {root} and could not be downloaded ({problem}); put {kind.filename} there"
        ) from None
    return Split(
        torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
    ), tuple(data.classes)


def open_image(path):
    """A file as an RGB image; ValueError, one line, if it is none."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as problem:  # Pillow's ways to say so
        raise ValueError(
            f"{path} cannot be read as an image ({type(problem).__name__}); repair or remove it"
        ) from None


def image_folder(root, names, size):
    """The tree root/<one of names>/<class>/<image>; unless `size` is 0, the middle of images resized by their short side."""
    found = [root / name for name in names if (root / name).is_dir()]
    if not found:
        raise ValueError(
            f"{root} has no folder {' or '.join(names)}; expected {root / names[0]}/<class>/<image file>"
        )
    resize = [transforms.Resize(size), transforms.CenterCrop(size)] if size else []
    try:
        return datasets.ImageFolder(
            found[0], transforms.Compose([*resize, transforms.PILToTensor()]), loader=open_image
        )
    except FileNotFoundError as problem:
        raise ValueError(f"{found[0]}: {str(problem).splitlines()[0]}") from None


def read_images(data):
    """The images of an `image_folder`, in memory. ValueError unless they are square and of one size."""
    first = data[0][0].shape
    images = torch.empty(len(data), *first, dtype=torch.uint8)
    for i, (path, _) in enumerate(data.samples):
        image = data[i][0]
        if image.shape != first:
            raise ValueError(
                f"{path} is {tuple(image.shape[1:])} pixels and others {tuple(first[1:])}; resize them with --image-size"
            )
        images[i] = image
    if first[1] != first[2]:
        raise ValueError(
            f"{data.root}: images are {first[1]} x {first[2]}; make them square with --image-size"
        )
    return Split(images, torch.tensor(data.targets))


def augment(x, crop, pad, generator):
    """Each image padded with black, cropped to `crop` at a random place, and flipped at random. Three numbers an image.

    x: uint8 [B, 3, H, W], on the generator's device.    Returns uint8 [B, 3, crop, crop], channels_last.
    """
    x = F.pad(x, (pad, pad, pad, pad))
    top, left, flip = torch.rand(len(x), 3, generator=generator, device=x.device).unbind(1)
    offsets = [
        (place * (side - crop + 1)).long()[:, None]
        for place, side in zip((top, left), x.shape[2:], strict=True)
    ]
    rows, columns = (
        offset + torch.arange(crop, device=x.device) for offset in offsets
    )  # [B, crop]
    columns = torch.where(flip[:, None] < 0.5, columns.flip(1), columns)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def centre_crop(x, crop):
    """The middle of each image. [B, 3, H, W] -> [B, 3, crop, crop]"""
    top, left = (x.shape[2] - crop) // 2, (x.shape[3] - crop) // 2
    return x[:, :, top : top + crop, left : left + crop]
