"""Images in files: the one function that opens them, and the folders of classes they lie in.

Training, evaluation and prediction see the same RGB pixels of 8 bits, by this rule:
- a photograph is turned upright, as its EXIF says; of an animation the first picture counts;
- grey of 16 bits is scaled to 8, round(v / 257); integers of 32 bits and floats are refused, as
  nothing says what is white;
- what is transparent shows white behind it; an alpha channel that is 0 everywhere is none;
- the rest (grey, palettes, CMYK, ...) is as Pillow converts it.
"""

import ctypes
import logging
import os
import warnings
from contextlib import suppress
from pathlib import Path
from unicodedata import normalize

from PIL import Image, ImageOps, PngImagePlugin
from torch.utils.data import Dataset
from torchvision.transforms import functional as transforms

from .program import shown

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF")
SUFFIXES = {name for name, format in Image.registered_extensions().items() if format in FORMATS}
HIDDEN = (".", "__MACOSX", "@eaDir")  # how names begin that a program gives to files for itself
DATA_DIR = "--data-dir names the folder, a relative one as seen from the current folder"
THIN = 8  # sides whose quotient is larger make a picture of which only the middle is resized

# Text or a profile of megabytes, which Pillow refuses beyond one, leaves the pixels as they are.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# What is wrong with a file is in the exception; nothing more goes to standard error.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with suppress(OSError, AttributeError):  # where libtiff cannot be reached, it prints
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def open_image(path):
    """A file as an RGB image of 8 bits, by the rule above. Nothing warns.

    Raises ValueError, one line that names the file, if it is no image; OSError with the path, if
    not the file is at fault but the disk, a permission or the limit of open files; MemoryError.
    """
    try:
        if not Path(path).is_file():  # a FIFO would be waited for
            raise ValueError("it is missing, or not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return in_rgb(image)
    except Exception as problem:  # Pillow raises almost anything on a damaged file
        if isinstance(problem, MemoryError) or getattr(problem, "errno", None):
            problem.filename = str(path)  # a read that fails does not know it
            raise
        reason = shown(" ".join(str(problem).replace(repr(str(path)), "").split()), 160)
        message = f"{shown(path, 500)} cannot be read as an image ({reason}); repair or remove it"
        raise ValueError(message) from None


def in_rgb(image):
    """What Pillow has opened as RGB of 8 bits."""
    if (image.format, image.mode) == ("PNG", "L") and "transparency" in image.info:
        # Pillow scales pixels of 2 and 4 bits to 8, but not the grey that is transparent.
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(image.tile[0][3], 1)
    image.load()
    has_alpha = image.mode.endswith(("A", "a"))
    grey16 = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    with suppress(Exception):  # damaged EXIF turns nothing
        image = ImageOps.exif_transpose(image)
    if grey16:  # conversion cuts off, so that 0.5 makes it round
        grey = image.convert("I")
        image = grey.point(lambda v: v * (1 / 257) + 0.5).convert("L")
        clear = image.info.pop("transparency", None)
        if clear is not None:
            image.putalpha(grey.point([255 * (v != clear) for v in range(2**16)], "L"))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit integers or floats; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if has_alpha and image.getchannel("A").getextrema() == (0, 0):
            image.putalpha(255)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_image(path, size, short_side=None):
    """The middle of an image file, as training and evaluation on a folder see it.

    size: side of the square that is cut from the middle; 0: the whole image as it is.
    short_side: what the shorter side is resized to before (bilinear, antialiased); None: `size`.
        For ImageNet, torchvision has 256 and then 224 with the weights that it calls V1.
    Returns uint8 [3, size, size].
    Raises ValueError, one line that names the file, if it is no image; OSError or MemoryError.
    """
    image = open_image(path)
    if size:
        longest = THIN * min(image.size)
        image = transforms.center_crop(image, [min(side, longest) for side in image.size[::-1]])
        image = transforms.center_crop(transforms.resize(image, short_side or size), size)
    return transforms.pil_to_tensor(image)


def scan(folder, left_out):
    """The paths of the images in a folder and in its folders, in order of their names.

    left_out: a list to which the paths of everything else are added. Links to folders are there,
        too: they may lead in a circle.
    """
    paths = []
    folders = [folder]
    for inner in folders:  # which grows: folders may lie deeper than functions may call
        for entry in os.scandir(inner):
            is_hidden = entry.name.startswith(HIDDEN)
            is_file = os.path.isfile(entry) if entry.is_symlink() else entry.is_file()
            if entry.is_dir(follow_symlinks=False) and not is_hidden:
                folders.append(entry.path)
            elif is_file and Path(entry).suffix.lower() in SUFFIXES and not is_hidden:
                paths.append(entry.path)
            else:
                left_out.append(entry.path)
    return sorted(paths, key=lambda path: path.split(os.sep))


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
        self.classes, self.paths, self.labels, self.left_out = [], [], [], []
        # Systems write the same é in two ways.
        for name, folder in sorted((normalize("NFC", path.name), path) for path in root.iterdir()):
            is_class = folder.is_dir() and not name.startswith(HIDDEN)
            if not is_class or root.resolve().is_relative_to(folder.resolve()):  # that: a circle
                self.left_out.append(str(folder))
                continue
            paths = scan(folder, self.left_out)
            if not paths:
                raise ValueError(f"{folder} has no images; remove the folder, or fill it")
            if name not in self.classes[-1:]:
                self.classes.append(name)
            self.labels += [len(self.classes) - 1] * len(paths)
            self.paths += paths

    def __getitem__(self, i):
        return load_image(self.paths[i], self.size), self.labels[i]


def image_folder(root, names, size, classes=None):
    """The `ImageFolder` of the first folder root/<one of names> that has these classes.

    classes: in order; None: any.
    Raises ValueError if none has; it names what differs in the first one with others.
    """
    others = []
    for name in names:  # ImageNet's own test folder has no classes, and Kaggle's one called test
        folder = ImageFolder(root / name, size) if (root / name).is_dir() else None
        if folder and folder.classes:
            if classes in (None, folder.classes):
                return folder
            others.append(folder)
    if others:
        differ = ", ".join(map(shown, sorted({*classes} ^ {*others[0].classes})[:5]))
        raise ValueError(f"{root}: train and {others[0].root.name} have other classes: {differ}")
    expected = f"expected {root / names[0]}/<class>/<image file>; {DATA_DIR}"
    raise ValueError(f"{root} has no folder {' or '.join(names)} with classes; {expected}")
