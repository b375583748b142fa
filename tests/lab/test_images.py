"""Images in files: the one rule by which they are opened, and the folders of classes."""

import errno
import inspect
import io
import logging
import os
import signal
import struct
import sys
import zlib
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from disks import in_a_process
from helpers import rng, seeds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from runs import refused, solid, write_tree
from torchvision.models import ResNet101_Weights
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from blockdrop_min.lab import images
from blockdrop_min.lab.images import THIN, ImageFolder, image_folder, load_image, open_image, scan

RED, BLUE = (200, 30, 30), (30, 30, 200)


def grey16(mode="I;16"):
    """A row of all greys of 16 bits."""
    order = "big" if mode == "I;16B" else "little"
    data = b"".join(value.to_bytes(2, order) for value in range(2**16))
    return Image.frombytes(mode, (2**16, 1), data)


def noise(width=24, height=16, seed=0):
    """A picture in which no two pixels are alike, nor any two sides."""
    pixels = torch.randint(256, (3, height, width), generator=rng(seed), dtype=torch.uint8)
    return to_pil_image(pixels)


def stored(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(image):
    return pil_to_tensor(image).permute(1, 2, 0).tolist()


def seen(folder, content):
    """The pixels of a file with this content."""
    (folder / "a.png").write_bytes(content)
    return pixels(open_image(folder / "a.png"))


@pytest.fixture
def at_once():
    """Ends what waits, for instance for a FIFO."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still waiting after 5 seconds"))
    signal.alarm(5)
    yield
    signal.alarm(0)


# ------------------------------------------------------------------------------ by hand: the pixels
FILES16 = [("a.png", "I;16"), ("a.tif", "I;16"), ("big.tif", "I;16B"), ("a.pgm", "I;16")]


@pytest.mark.parametrize(("name", "mode"), FILES16)
def test_each_grey_of_16_bits_is_scaled_to_8_and_rounded_to_the_nearest(tmp_path, name, mode):
    grey16(mode).save(tmp_path / name)
    # 128 / 257 = 0.498, 129 / 257 = 0.502, 65534 / 257 = 254.996
    found = pixels(open_image(tmp_path / name))[0]
    assert found == [[round(v / 257)] * 3 for v in range(2**16)]


@pytest.mark.parametrize(("mode", "suffix"), [("I", "tif"), ("F", "tif"), ("F", "pfm")])
def test_pixels_of_32_bits_are_refused_with_what_to_do(tmp_path, mode, suffix):
    Image.new(mode, (4, 4), 300).save(tmp_path / f"wide.{suffix}")
    path = tmp_path / f"wide.{suffix}"
    with refused(f"^{path} cannot be read as an image.*save it with 8 or 16 bits"):
        open_image(path)


Turn = Image.Transpose
FLIPS = (None, Turn.FLIP_LEFT_RIGHT, Turn.ROTATE_180, Turn.FLIP_TOP_BOTTOM)
STORED = (*FLIPS, Turn.TRANSPOSE, Turn.ROTATE_90, Turn.TRANSVERSE, Turn.ROTATE_270)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "turn"), list(enumerate(STORED, 1)))
def test_a_photograph_is_turned_upright(tmp_path, orientation, turn, suffix):
    upright = noise(3, 2).resize((24, 16), Image.Resampling.NEAREST)  # squares, which JPEG keeps
    image = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    kept = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    kept |= {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", exif=exif, **kept)
    found = pil_to_tensor(open_image(tmp_path / f"a.{suffix}")).int()
    assert (found - pil_to_tensor(upright).int()).abs().max() <= 2 * (suffix == "jpg")


@pytest.mark.parametrize("damage", [b"nothing of the kind", b"", b"MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_turns_nothing(tmp_path, damage):
    assert seen(tmp_path, stored(noise(), exif=b"Exif\0\0" + damage)) == pixels(noise())


def two_entries(transparency):
    """A palette image: a red pixel, and a blue one of which `transparency` says how clear it is."""
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    return stored(image, transparency=transparency)


def two_pixels(mode, *values, format="PNG", **options):
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    return stored(image, format, **options)


def grey_png(bits, row, clear):
    """A PNG of two grey pixels of so many bits, with one grey marked as transparent."""
    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": struct.pack(">H", clear)}
    chunks |= {b"IDAT": zlib.compress(bytes([0, *row])), b"IEND": b""}
    png = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        crc = struct.pack(">I", zlib.crc32(name + data))
        png += struct.pack(">I", len(data)) + name + data + crc
    return png


COLOURS = ((*RED, 255), (*BLUE, 0))
# An opaque pixel, and a clear one whose hidden colour must not show:
CLEAR = {
    "alpha": (two_pixels("RGBA", *COLOURS), RED),
    "grey with alpha": (two_pixels("LA", (0, 255), (180, 0)), (0, 0, 0)),
    "an entry of the palette": (two_entries(1), RED),
    "a palette with alpha": (two_entries(bytes([255, 0])), RED),
    "a colour that is clear": (two_pixels("RGB", RED, BLUE, transparency=BLUE), RED),
    "a grey that is clear": (two_pixels("L", 0, 180, transparency=180), (0, 0, 0)),
    "a grey of 2 bits": (grey_png(2, [0b10010000], 1), (170, 170, 170)),
    "a grey of 4 bits": (grey_png(4, [0x3A], 10), (51, 51, 51)),
    "a grey of 16 bits": (grey_png(16, [0, 0, 117, 48], 30000), (0, 0, 0)),  # 117 * 256 + 48
    "only that grey of 16 bits": (grey_png(16, [117, 47, 117, 48], 30000), (117, 117, 117)),
    "a GIF": (two_pixels("L", 0, 180, transparency=180, format="GIF"), (0, 0, 0)),
    "WebP with alpha": (two_pixels("RGBA", *COLOURS, format="WEBP", lossless=True), RED),
    "TIFF with alpha": (two_pixels("RGBA", *COLOURS, format="TIFF"), RED),
    "both pixels of a grey that is clear": (two_pixels("L", 9, 9, transparency=9), (255,) * 3),
    "both of 16 bits": (grey_png(16, [117, 48] * 2, 30000), (255,) * 3),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_what_is_transparent_shows_white(tmp_path, kind):
    content, opaque = CLEAR[kind]
    assert seen(tmp_path, content) == [[list(opaque), [255, 255, 255]]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(("alpha", "other"), [(0, BLUE), (1, (255,) * 3)])
def test_an_alpha_channel_that_is_0_everywhere_is_none(tmp_path, format, alpha, other):
    content = two_pixels("RGBA", (*RED, alpha), (*BLUE, 0), format=format)
    assert seen(tmp_path, content)[0][1] == [*other]


def test_what_is_half_transparent_is_mixed_with_white(tmp_path):
    # 51 / 255 = 0.2: 0.2 * 0 + 0.8 * 255 = 204, 0.2 * 100 + 204 = 224, 0.2 * 200 + 204 = 244
    content = two_pixels("RGBA", (0, 100, 200, 51), (0, 0, 0, 255))
    assert seen(tmp_path, content) == [[[204, 224, 244], [0, 0, 0]]]


@pytest.mark.parametrize(("mode", "value"), [("1", 1), ("L", 90), ("CMYK", (9, 99, 0, 60))])
def test_other_modes_become_rgb_as_pillow_converts_them(tmp_path, mode, value):
    image = Image.new(mode, (2, 2), value)
    assert seen(tmp_path, stored(image, "TIFF")) == pixels(image.convert("RGB"))


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_of_several_pictures_in_a_file_the_first_counts(tmp_path, suffix):
    first, second = (Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert pixels(open_image(tmp_path / f"a.{suffix}")) == pixels(first)


@pytest.mark.parametrize("where", ["text", "profile"])
def test_megabytes_beside_the_pixels_do_not_matter(tmp_path, where):
    options = {"icc_profile": bytes(2_000_000)}
    if where == "text":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_text("workflow", "x" * 2_000_000, zip=True)
    assert seen(tmp_path, stored(noise(), **options)) == pixels(noise())


# ------------------------------------------------------------------------ by hand: what is no image
HALF = stored(noise())[:500]
BITMAP = stored(noise(), "BMP")
NO_IMAGES = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "FIFO": os.mkfifo,
    "link to itself": lambda path: path.symlink_to(path),
    "link to a FIFO": lambda path: (os.mkfifo(f"{path}.fifo"), path.symlink_to(f"{path}.fifo")),
    "HTML": lambda path: path.write_bytes(b"<!doctype html>\n<p>404"),
    "truncated": lambda path: path.write_bytes(HALF),
    "2^48 pixels": lambda path: path.write_bytes(BITMAP[:18] + b"\xff\xff\xff\0" * 2 + BITMAP[26:]),
    "PostScript, which would start a program": lambda path: noise().save(path, "EPS"),
    "a picture of an unusual kind": lambda path: noise().save(path, "PCX"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_refused_at_once_in_one_line_that_names_it(tmp_path, at_once, kind):
    path = tmp_path / "a.png"
    NO_IMAGES[kind](path)
    with refused(f"^{path} cannot be read as an image.*repair or remove it"):
        open_image(path)


def test_no_name_of_a_file_forges_a_line(tmp_path):
    with refused(r"\\x1b\[31mred\\nready.png cannot be read"):
        open_image(tmp_path / "\x1b[31mred\nready.png")


PROBLEMS = [OSError(n, os.strerror(n)) for n in (errno.EIO, errno.EMFILE, errno.EACCES)]


@pytest.mark.parametrize("problem", [*PROBLEMS, MemoryError()])
@pytest.mark.parametrize(("where", "name"), [(Image, "open"), (PngImageFile, "load")])
def test_what_the_disk_or_memory_refuses_is_not_called_a_bad_image(
    tmp_path, monkeypatch, where, name, problem
):
    solid(1).save(tmp_path / "a.png")
    monkeypatch.setattr(where, name, Mock(side_effect=type(problem)(*problem.args)))
    with pytest.raises(type(problem), match="a.png" if problem.args else None):
        open_image(tmp_path / "a.png")


def test_nothing_is_written_to_standard_error(tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # the pictures have 384, so that it warns
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    raw = stored(noise(), "TIFF")
    packed = stored(noise(), "TIFF", compression="tiff_lzw")
    seven = b"\x15\x01\x03\0\x01\0\0\0%s\0"  # samples a pixel
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0"  # ends in the middle of an entry
    files = {
        "exif.jpg": stored(noise(), "JPEG", exif=exif),
        "half.jpg": stored(noise(), "JPEG")[:400],
        "packed.tif": packed[:100] + bytes(200) + packed[300:],
        "palette.png": two_entries(bytes([255, 0])),
        "samples.tif": raw.replace(seven % b"\3\0", seven % b"\7\0"),
    }
    refused = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        try:
            open_image(tmp_path / name)
        except ValueError:
            refused.append(name)
    assert refused == ["half.jpg", "packed.tif", "samples.tif"]
    assert (capfd.readouterr().err, recwarn.list) == ("", [])


# ---------------------------------------------------------------------------------------- two roads
SIZES = [(500, 375), (375, 500), (333, 257), (640, 223), (100, 71), (256, 256), (225, 1000)]


@pytest.mark.parametrize("size", SIZES)
def test_imagenets_images_are_prepared_as_torchvision_prepares_them(tmp_path, size):
    noise(size[0] // 5, size[1] // 5).resize(size).save(tmp_path / "a.jpg")
    theirs = ResNet101_Weights.IMAGENET1K_V1.transforms()
    expected = theirs(Image.open(tmp_path / "a.jpg"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (theirs.mean, theirs.std))
    ours = load_image(tmp_path / "a.jpg", 224, short_side=256)
    assert torch.equal((ours.float() / 255 - mean) / std, expected)


# --------------------------------------------------------------------------------------------- laws
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@given(seed=seeds, count=st.integers(1, 12))
def test_a_damaged_file_is_an_image_or_is_refused_in_one_line(
    tmp_path_factory, format, seed, count
):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if format in ("GIF", "BMP", "PPM") else {"exif": exif}
    raw = bytearray(stored(noise(), format, **options))
    for place in torch.randint(len(raw), (count,), generator=rng(seed)).tolist():
        raw[place] = (seed + place) % 256
    path = tmp_path_factory.getbasetemp() / f"damaged.{format.lower()}"
    path.write_bytes(raw)
    try:
        assert open_image(path).mode == "RGB"
    except ValueError as problem:
        assert str(problem).startswith(f"{path} cannot be read as an image")
        assert str(problem).isprintable()


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_thin_picture_the_middle_is_resized_and_no_more(tmp_path, turned):
    image = Image.new("L", (1, 60_000), 10)
    image.paste(200, (0, 29_990, 1, 30_010))
    (image.transpose(Image.Transpose.ROTATE_90) if turned else image).save(tmp_path / "a.png")
    resize = Image.Image.resize
    with patch.object(Image.Image, "resize", autospec=True, side_effect=resize) as resized:
        assert load_image(tmp_path / "a.png", 64).unique().tolist() == [200]
    assert [sorted(call.args[1]) for call in resized.call_args_list] == [[64, 64 * THIN]]


# ------------------------------------------------------------------------------------------ folders
USUAL = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".bmp": "BMP", ".gif": "GIF",
    ".ppm": "PPM", ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
    ".avif": "AVIF", ".PNG": "PNG", ".JPEG": "JPEG",
}  # fmt: skip
FOUR = ["apple/0.png", "apple/1.png", "bee/0.png", "bee/1.png"]


@pytest.fixture
def root(tmp_path):
    """A folder of the classes apple and bee, with two images each: FOUR."""
    return write_tree(tmp_path / "data", parts=("train",), each=2) / "train"


def names(folder):
    """The images of an `ImageFolder` as <class>/<path in it>."""
    return [str(Path(path).relative_to(folder.root)) for path in folder.paths]


def left_out(folder):
    return sorted(str(Path(path).relative_to(folder.root)) for path in folder.left_out)


@pytest.mark.parametrize("suffix", USUAL)
def test_files_of_all_usual_kinds_are_read(root, suffix):
    solid(9).save(root / "bee" / f"more{suffix}", USUAL[suffix])
    folder = ImageFolder(root, 8)
    assert folder[names(folder).index(f"bee/more{suffix}")][0].shape == (3, 8, 8)


def test_images_come_with_the_labels_of_their_folders(root):
    folder = ImageFolder(root, 0)
    assert (folder.classes, names(folder)) == (["apple", "bee"], FOUR)
    found = [(image[0, 0, 0].item(), label) for image, label in (folder[i] for i in range(4))]
    assert found == [(10, 0), (20, 0), (30, 1), (40, 1)]  # as write_tree has drawn them


@pytest.mark.parametrize("reverse", [False, True])
def test_images_come_in_the_order_of_their_names_whatever_order_the_disk_has(
    root, monkeypatch, reverse
):
    (root / "bee" / "0").mkdir()
    solid(1).save(root / "bee" / "0" / "last.png")
    scandir = os.scandir

    def on_disk(path):
        return sorted(scandir(path), key=lambda entry: entry.name, reverse=reverse)

    monkeypatch.setattr(images.os, "scandir", on_disk)
    found = [str(Path(path).relative_to(root)) for path in scan(root, [])]
    assert found == ["apple/0.png", "apple/1.png", "bee/0/last.png", "bee/0.png", "bee/1.png"]


def test_folders_inside_a_class_belong_to_it_however_deep_they_lie(root):
    deep = root / "apple" / "/".join("d" * 150)
    deep.mkdir(parents=True)
    solid(9).save(deep / "a.png")

    def act():
        sys.setrecursionlimit(len(inspect.stack()) + 100)  # a usual one is 1,000
        folder = ImageFolder(root, 8)
        assert (folder.classes, folder.labels) == (["apple", "bee"], [0, 0, 0, 1, 1])

    assert in_a_process(act) == 0


FOLDERS = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git")  # that programs make
FILES = ("FIFO.png", "notes.txt", "Thumbs.db", "._0.png", ".DS_Store", "model.pdf", "0.png.part")


@pytest.mark.parametrize("name", FILES + FOLDERS)
@pytest.mark.parametrize("place", [".", "bee"])
def test_what_is_no_image_is_left_out(root, name, place):
    path = root / place / name
    if name in FOLDERS:
        path.mkdir()
        solid(9).save(path / "0-checkpoint.png")
    else:
        os.mkfifo(path) if name == "FIFO.png" else path.touch()
    solid(9).save(root / "stray.png")
    folder = ImageFolder(root, 8)
    assert (folder.classes, names(folder)) == (["apple", "bee"], FOUR)
    assert left_out(folder) == sorted([str(Path(place) / name), "stray.png"])


LINKS = {  # place of the link -> where it leads
    "a class leads to itself": {"bee/again": "../bee"},
    "a class leads to all classes": {"bee/again": ".."},
    "a class is all classes": {"again": "."},
    "a class is the whole data set": {"again": ".."},
    "a class is a link to itself": {"again": "again"},
    "a class leads to the root of the disk": {"bee/again": "/"},
    "two classes lead to each other": {"bee/one": "../apple", "apple/other": "../bee"},
    "two loops": {"bee/one": ".", "bee/two": "."},
    "a loop by the name of an image": {"bee/one.png": "."},
    "an image is a link to itself": {"bee/one.png": "one.png"},
    "an image is a link to nothing": {"bee/one.png": "nothing.png"},
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_that_lead_in_a_circle_or_nowhere_are_left_out(root, at_once, kind):
    for place, target in LINKS[kind].items():
        (root / place).symlink_to(target)
    folder = ImageFolder(root, 8)
    assert (names(folder), left_out(folder)) == (FOUR, sorted(LINKS[kind]))


def test_classes_and_images_may_be_links(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    solid(9).save(tmp_path / "elsewhere" / "a.png")
    (root / "cow").symlink_to(tmp_path / "elsewhere")
    (root / "bee" / "link.png").symlink_to("0.png")
    folder = ImageFolder(root, 8)
    assert folder.classes == ["apple", "bee", "cow"]
    assert names(folder) == [*FOUR, "bee/link.png", "cow/a.png"]


def test_a_class_without_images_is_named(root):
    (root / "cow").mkdir()
    (root / "cow" / "notes.txt").touch()
    with pytest.raises(ValueError, match=f"{root / 'cow'} has no images"):
        ImageFolder(root, 8)


CAFE = ("caf\u00e9", "cafe\u0301")  # as Linux and as macOS write it


@pytest.mark.parametrize("written", [CAFE[:1], CAFE[1:], CAFE])
def test_a_name_is_one_class_in_whatever_way_systems_write_it(tmp_path, written):
    write_tree(tmp_path, ("train",), ("apple", *written, "dog"), each=2)
    folder = image_folder(tmp_path, ("train",), 8, ["apple", CAFE[0], "dog"])
    assert folder.labels == [0, 0, *[1, 1] * len(written), 2, 2]


# ------------------------------------------------------------------- folders: which of several fits
# Without a class, as ImageNet's, and with one that is called test, as Kaggle's:
FLAT = [("test", None), ("test", ["apple", "bee"]), ("test/test", ["apple", "bee"])]


@pytest.mark.parametrize(("place", "classes"), FLAT)
def test_a_test_folder_without_labels_gives_way_to_val(tmp_path, place, classes):
    write_tree(tmp_path, parts=("val", "later"))
    (tmp_path / place).mkdir(parents=True)
    solid(9).save(tmp_path / place / "ILSVRC2012_test_00000001.JPEG")
    assert image_folder(tmp_path, ("test", "val", "later"), 8, classes).root == tmp_path / "val"
