"""Images in files: the one function that opens them, and the folders of classes they lie in.

Training, evaluation and prediction see the same RGB pixels of 8 bits, by this rule:
- a photograph is turned upright, as its EXIF says; of an animation the first picture counts;
- grey of 16 bits is scaled to 8, round(v / 257); integers of 32 bits and floats are refused, as
  nothing says what is white;
- what is transparent shows white behind it;
- the rest (grey, palettes, CMYK, ...) is as Pillow converts it.
"""

import logging
import os
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision.transforms import functional as transforms

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF")
SUFFIXES = {name for name, format in Image.registered_extensions().items() if format in FORMATS}

HIDDEN = (".", "__MACOSX", "@eaDir")  # how names begin that a program gives to files for itself

logging.getLogger("PIL").addHandler(logging.NullHandler())  # or its errors go to standard error


@contextmanager
def opened(path):
    """A file as Pillow opens it, its pixels unread. Nothing warns; all that goes wrong is one line.

    Raises ValueError, also for what goes wrong in the block.
    """
    try:
        if not Path(path).is_file():  # a FIFO would be waited for
            raise OSError("it is missing, or not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except Exception as problem:  # Pillow raises almost anything on a damaged file
        reason = " ".join(str(problem).replace(repr(str(path)), "").split())
        message = f"{path} cannot be read as an image ({reason}); repair or remove it"
        raise ValueError(message) from None


def open_image(path):
    """A file as an RGB image of 8 bits, by the rule above.

    Raises ValueError, one line that names the file, if it is none.
    """
    with opened(path) as image:
        image.load()
        grey16 = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
        with suppress(Exception):  # damaged EXIF turns nothing
            image = ImageOps.exif_transpose(image)
        if grey16:  # conversion cuts off, so that 0.5 makes it round
            image = image.convert("I").point(lambda v: v * (1 / 257) + 0.5).convert("L")
        elif image.mode in ("I", "F"):
            raise ValueError("32-bit integers or floats; save it with 8 or 16 bits")
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def load_image(path, size, short_side=None):
    """The middle of an image file, as training and evaluation on a folder see it.

    size: side of the square that is cut from the middle; 0: the whole image as it is.
    short_side: what the shorter side is resized to before (bilinear, antialiased); None: `size`.
        For ImageNet, torchvision has 256 and then 224 with the weights that it calls V1.
    Returns uint8 [3, size, size].
    Raises ValueError, one line that names the file, if it cannot be read.
    """
    image = open_image(path)
    if size:
        image = transforms.center_crop(transforms.resize(image, short_side or size), size)
    return transforms.pil_to_tensor(image)


def scan(folder, left_out):
    """Yields the image files in a folder and in its folders, in order of their names.

    left_out: a list to which the paths of everything else are added. Links to folders are there,
        too: they may lead in a circle.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        is_hidden = entry.name.startswith(HIDDEN)
        if entry.is_dir(follow_symlinks=False) and not is_hidden:
            yield from scan(entry.path, left_out)
        elif Path(entry).suffix.lower() in SUFFIXES and not entry.is_dir() and not is_hidden:
            yield entry.path
        else:
            left_out.append(entry.path)


class ImageFolder(Dataset):
    """The images root/<class>/**, each read when it is asked for: (uint8 [3, H, W], label).

    root: a folder; its folders, or links to folders elsewhere, are the classes, in order of names.
    size: as of `load_image`.
    left_out: paths of what is no image, and of hidden folders.
    Raises ValueError if a class has no images, OSError if a folder cannot be read.
    """

    def __init__(self, root, size):
        self.root = root
        self.size = size
        self.classes = []
        self.paths = []
        self.labels = []
        self.left_out = []
        for folder in sorted(root.iterdir()):
            around = root.resolve().is_relative_to(folder.resolve())  # a link in a circle
            if not folder.is_dir() or folder.name.startswith(HIDDEN) or around:
                self.left_out.append(str(folder))
                continue
            paths = list(scan(folder, self.left_out))
            if not paths:
                raise ValueError(f"{folder} has no images; remove the folder, or fill it")
            self.labels += [len(self.classes)] * len(paths)
            self.classes.append(folder.name)
            self.paths += paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return load_image(self.paths[i], self.size), self.labels[i]


def image_folder(root, names, size):
    """The `ImageFolder` of the first folder root/<one of names> that has classes.

    Raises ValueError if none has.
    """
    for name in names:  # ImageNet's own test folder has no classes, its val has
        if (root / name).is_dir():
            folder = ImageFolder(root / name, size)
            if folder.classes:
                return folder
    expected = f"expected {root / names[0]}/<class>/<image file>"
    raise ValueError(f"{root} has no folder {' or '.join(names)} with classes; {expected}")
