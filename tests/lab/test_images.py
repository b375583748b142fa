"""Images in files: the one rule by which they are opened, and the folders of classes."""

import io
import os
import signal
import socket
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import rng, seeds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from runs import solid, write_tree
from torchvision.models import ResNet101_Weights
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from blockdrop_min.lab import images
from blockdrop_min.lab.images import ImageFolder, image_folder, load_image, open_image

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
RED, BLUE = (200, 30, 30), (30, 30, 200)


def grey16(values, mode="I;16"):
    """A row of pixels of 16 bits."""
    order = "big" if mode == "I;16B" else "little"
    data = b"".join(value.to_bytes(2, order) for value in values)
    return Image.frombytes(mode, (len(values), 1), data)


def noise(width=24, height=16, seed=0):
    """A picture in which no two pixels are alike, nor any two sides."""
    return to_pil_image(
        torch.randint(256, (3, height, width), generator=rng(seed), dtype=torch.uint8)
    )


def photograph(width, height):
    """A smooth picture with edges."""
    image = Image.radial_gradient("L").resize((width, height)).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 5, height // 3, width // 2, height - 3), fill=(200, 90, 20))
    draw.line((0, 0, width, height), fill=(10, 120, 240), width=3)
    return image


def stored(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(image):
    return pil_to_tensor(image).permute(1, 2, 0).tolist()


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(ValueError) as raised:
        open_image(path)
    message = str(raised.value)
    assert message.count("\n") == 0
    assert str(path) in message
    return message


@contextmanager
def at_once(seconds=5):
    """Ends what waits, for instance for a FIFO."""

    def late(number, frame):
        pytest.fail(f"still waiting after {seconds} seconds")  # no Exception, so nothing takes it

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------ by hand: the pixels
@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "I;16"), ("a.tif", "I;16"), ("big.tif", "I;16B"), ("a.pgm", "I;16")],
)
def test_grey_of_16_bits_is_scaled_to_8_and_rounded(tmp_path, name, mode):
    grey16([0, 128, 129, 1040, 65534, 65535], mode).save(tmp_path / name)
    # 128 / 257 = 0.498, 129 / 257 = 0.502, 1040 / 257 = 4.05, 65534 / 257 = 254.996
    assert pixels(open_image(tmp_path / name)) == [[[v] * 3 for v in (0, 0, 1, 4, 255, 255)]]


def test_each_of_the_65536_greys_is_rounded_to_the_nearest(tmp_path):
    grey16(range(65536)).save(tmp_path / "all.png")
    grey = pil_to_tensor(open_image(tmp_path / "all.png"))[0, 0]
    assert grey.tolist() == [round(v / 257) for v in range(65536)]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused_with_what_to_do(tmp_path, mode):
    Image.new(mode, (4, 4), 300).save(tmp_path / "wide.tif")
    assert "save it with 8 or 16 bits" in refusal(tmp_path / "wide.tif")


def test_a_portable_float_map_is_refused_with_what_to_do(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.pfm")
    assert "save it with 8 or 16 bits" in refusal(tmp_path / "a.pfm")


UPRIGHT = {  # EXIF orientation -> what turns the upright picture into the stored one
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_turned_upright(tmp_path, orientation, suffix):
    upright = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    UPRIGHT[orientation](upright).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    assert pixels(open_image(tmp_path / f"a.{suffix}")) == pixels(upright)


def test_a_turned_photograph_of_16_bits_is_turned_and_scaled(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    grey16([0, 65535]).save(tmp_path / "a.png", exif=exif)
    assert pixels(open_image(tmp_path / "a.png")) == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0nothing of the kind", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff"]
)
def test_damaged_exif_turns_nothing(tmp_path, damage):
    image = noise()
    image.save(tmp_path / "a.png", exif=damage)
    assert pixels(open_image(tmp_path / "a.png")) == pixels(image)


def two_entries(transparency):
    """A palette image: a red pixel, and a blue one of which `transparency` says how clear it is."""
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    return stored(image, "PNG", transparency=transparency)


def two_pixels(mode, *values, **options):
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    return stored(image, options.pop("format", "PNG"), **options)


CLEAR = {  # a red or black pixel, and a clear one whose hidden colour must not show
    "alpha": (two_pixels("RGBA", (*RED, 255), (*BLUE, 0)), RED),
    "grey with alpha": (two_pixels("LA", (0, 255), (180, 0)), (0, 0, 0)),
    "an entry of the palette": (two_entries(1), RED),
    "a palette with alpha": (two_entries(bytes([255, 0])), RED),
    "a colour that is clear": (two_pixels("RGB", RED, BLUE, transparency=BLUE), RED),
    "a grey that is clear": (two_pixels("L", 0, 180, transparency=180), (0, 0, 0)),
    "a GIF": (two_pixels("L", 0, 180, transparency=180, format="GIF"), (0, 0, 0)),
    "WebP with alpha": (
        two_pixels("RGBA", (*RED, 255), (*BLUE, 0), format="WEBP", lossless=True),
        RED,
    ),
    "TIFF with alpha": (two_pixels("RGBA", (*RED, 255), (*BLUE, 0), format="TIFF"), RED),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_what_is_transparent_shows_white(tmp_path, kind):
    content, opaque = CLEAR[kind]
    (tmp_path / "a.png").write_bytes(content)
    assert pixels(open_image(tmp_path / "a.png")) == [[list(opaque), [255, 255, 255]]]


def test_what_is_half_transparent_is_mixed_with_white(tmp_path):
    (tmp_path / "a.png").write_bytes(two_pixels("RGBA", (0, 100, 200, 51), (0, 0, 0, 255)))
    # 51 / 255 = 0.2: 0.2 * 0 + 0.8 * 255 = 204, 0.2 * 100 + 204 = 224, 0.2 * 200 + 204 = 244
    assert pixels(open_image(tmp_path / "a.png")) == [[[204, 224, 244], [0, 0, 0]]]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("RGB", (8, 8), RED).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    pixel = pixels(open_image(tmp_path / "a.jpg"))[0][0]
    assert pixel == pytest.approx(RED, abs=12)


@pytest.mark.parametrize(("mode", "value"), [("1", 255), ("L", 90), ("P", 0)])
def test_other_modes_become_rgb(tmp_path, mode, value):
    image = Image.new(mode, (2, 2), value)
    image.save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png")) == pixels(image.convert("RGB"))


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_of_several_pictures_in_a_file_the_first_counts(tmp_path, suffix):
    first, second = (Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert pixels(open_image(tmp_path / f"a.{suffix}")) == pixels(first)


def test_files_of_real_users_are_read_or_refused_as_they_should():
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not there")
    ramp = pil_to_tensor(open_image(CASES / "grey16.png"))
    assert ramp[0].flatten()[[0, 1, 2, 3, -1]].tolist() == [0, 4, 8, 12, 255]
    assert torch.equal(ramp[0], ramp[1]) and torch.equal(ramp[0], ramp[2])
    for name in ("grey32.tif", "float.tif"):
        assert "8 or 16 bits" in refusal(CASES / name)
    turned = open_image(CASES / "exif_turned.jpg")
    assert turned.size == (32, 48)
    assert turned.getpixel((30, 1)) == pytest.approx(RED, abs=12)
    assert turned.getpixel((1, 1)) == pytest.approx(BLUE, abs=12)
    assert open_image(CASES / "cmyk.jpg").getpixel((1, 1)) == pytest.approx(RED, abs=12)
    assert open_image(CASES / "grey_alpha.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.open(CASES / "palette_transparent.png")
    key = palette.info["transparency"]  # an entry, or how opaque each entry is
    hidden = pil_to_tensor(palette)[0] == (key if isinstance(key, int) else key.index(0))
    seen = pil_to_tensor(open_image(CASES / "palette_transparent.png"))
    assert hidden.any()
    assert seen[:, hidden].unique().tolist() == [255]
    assert load_image(CASES / "one_pixel.png", 4).shape == (3, 4, 4)
    first = Image.open(CASES / "animated.gif").convert("RGB")
    assert pixels(open_image(CASES / "animated.gif")) == pixels(first)
    for name in ("truncated.jpg", "not_an_image.png"):
        refusal(CASES / name)


# ------------------------------------------------------------------------ by hand: what is no image
def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # the whole path may be longer than a socket's may be


def make_truncated(path):
    raw = stored(noise(), "PNG")
    path.write_bytes(raw[: len(raw) // 2])


def make_huge(path):
    """A bitmap that says it has 2^48 pixels."""
    raw = stored(noise(), "BMP")
    path.write_bytes(raw[:18] + bytes([255, 255, 255, 0] * 2) + raw[26:])


def make_postscript(path):
    """Pillow would start another program for it."""
    Image.new("RGB", (4, 4)).save(path, "EPS")


NO_IMAGES = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "FIFO": make_fifo,
    "socket": make_socket,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to a FIFO": lambda path: (os.mkfifo(f"{path}.fifo"), path.symlink_to(f"{path}.fifo")),
    "empty": lambda path: path.write_bytes(b""),
    "HTML": lambda path: path.write_bytes(b"<!doctype html>\n<p>404"),
    "truncated": make_truncated,
    "decompression bomb": make_huge,
    "PostScript": make_postscript,
    "a picture of an unusual kind": lambda path: Image.new("RGB", (4, 4)).save(path, "PCX"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_refused_at_once_in_one_line_that_names_it(tmp_path, kind):
    NO_IMAGES[kind](tmp_path / "a.png")
    with at_once():
        assert "cannot be read as an image" in refusal(tmp_path / "a.png")


def test_nothing_is_written_to_standard_error(tmp_path):
    folder = Path(tmp_path)
    (folder / "palette.png").write_bytes(two_entries(bytes([255, 0])))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0"  # ends in the middle of an entry
    noise().save(folder / "exif.jpg", exif=exif)
    raw = stored(noise(), "TIFF")
    samples = raw.replace(b"\x15\x01\x03\0\x01\0\0\0\x03\0", b"\x15\x01\x03\0\x01\0\0\0\x07\0")
    assert samples != raw  # seven samples a pixel
    (folder / "samples.tif").write_bytes(samples)
    (folder / "half.jpg").write_bytes(stored(noise(), "JPEG")[:400])
    program = (
        "import sys\n"
        "from PIL import Image\n"
        "from blockdrop_min.lab.images import open_image\n"
        "Image.MAX_IMAGE_PIXELS = 300\n"  # the pictures have 384, so that Pillow warns of them
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        open_image(path)\n"
        "    except ValueError:\n"
        "        print('refused', path)\n"
    )
    paths = sorted(map(str, folder.iterdir()))
    options = dict(capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    done = subprocess.run([sys.executable, "-W", "always", "-c", program, *paths], **options)
    assert done.stderr == ""
    assert done.stdout.split()[1::2] == [str(folder / "half.jpg"), str(folder / "samples.tif")]


# ---------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (333, 257), (640, 223), (100, 71), (256, 256), (225, 1000)]
)
def test_imagenets_images_are_prepared_as_torchvision_prepares_them(tmp_path, size):
    photograph(*size).save(tmp_path / "a.jpg")
    theirs = ResNet101_Weights.IMAGENET1K_V1.transforms()
    expected = theirs(Image.open(tmp_path / "a.jpg"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (theirs.mean, theirs.std))
    ours = load_image(tmp_path / "a.jpg", 224, short_side=256)
    assert torch.equal((ours.float() / 255 - mean) / std, expected)


# --------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@given(seed=seeds, count=st.integers(1, 12))
def test_a_damaged_file_is_an_image_or_is_refused_in_one_line(
    tmp_path_factory, format, seed, count
):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if format in ("GIF", "BMP", "PPM") else {"exif": exif}
    raw = bytearray(stored(noise(), format, **options))
    generator = rng(seed)
    for place in torch.randint(len(raw), (count,), generator=generator).tolist():
        raw[place] = torch.randint(256, (1,), generator=generator).item()
    path = tmp_path_factory.getbasetemp() / f"damaged.{format.lower()}"
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert open_image(path).mode == "RGB"
        except ValueError as problem:
            assert str(problem).startswith(f"{path} cannot be read as an image")
            assert "\n" not in str(problem)


@given(seed=seeds, width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(1, 40))
def test_any_image_becomes_a_square_of_the_size_asked_for(
    tmp_path_factory, seed, width, height, size
):
    path = tmp_path_factory.getbasetemp() / "any.png"
    noise(width, height, seed).save(path)
    image = load_image(path, size)
    assert image.shape == (3, size, size)
    assert image.dtype == torch.uint8


def test_without_a_size_an_image_stays_as_it_is(tmp_path):
    image = noise(7, 5)
    image.save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png", 0), pil_to_tensor(image))


# ------------------------------------------------------------------------------------------ folders
def names(folder):
    """The images of an `ImageFolder` as <class>/<path in it>."""
    return [str(Path(path).relative_to(folder.root)) for path in folder.paths]


def left_out(folder):
    return sorted(str(Path(path).relative_to(folder.root)) for path in folder.left_out)


def tree(tmp_path, each=2):
    """A folder of the classes apple and bee, with so many images each."""
    return write_tree(tmp_path, parts=("train",), each=each) / "train"


USUAL = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".bmp": "BMP", ".gif": "GIF",
    ".ppm": "PPM", ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
    ".avif": "AVIF", ".PNG": "PNG", ".JPEG": "JPEG",
}  # fmt: skip


@pytest.mark.parametrize("suffix", USUAL)
def test_files_of_all_usual_kinds_are_read(tmp_path, suffix):
    root = tree(tmp_path)
    solid(9).save(root / "bee" / f"more{suffix}", USUAL[suffix])
    folder = ImageFolder(root, 8)
    assert f"bee/more{suffix}" in names(folder)
    assert folder[names(folder).index(f"bee/more{suffix}")][0].shape == (3, 8, 8)


def test_images_come_with_the_labels_of_their_folders(tmp_path):
    folder = ImageFolder(tree(tmp_path), 0)
    assert folder.classes == ["apple", "bee"]
    assert names(folder) == ["apple/0.png", "apple/1.png", "bee/0.png", "bee/1.png"]
    found = [(image[0, 0, 0].item(), label) for image, label in (folder[i] for i in range(4))]
    assert found == [(10, 0), (20, 0), (30, 1), (40, 1)]  # as write_tree has drawn them


@pytest.mark.parametrize("reverse", [False, True])
def test_images_come_in_the_order_of_their_names_whatever_order_the_disk_has(
    tmp_path, monkeypatch, reverse
):
    root = write_tree(tmp_path, parts=("train",), each=3)
    scandir = os.scandir

    def on_disk(path):
        return sorted(scandir(path), key=lambda entry: entry.name, reverse=reverse)

    monkeypatch.setattr(images.os, "scandir", on_disk)
    names = [Path(path).name for path in images.scan(root / "train" / "bee", [])]
    assert names == ["0.png", "1.png", "2.png"]


def test_folders_inside_a_class_belong_to_it(tmp_path):
    root = tree(tmp_path)
    (root / "apple" / "green").mkdir()
    solid(9).save(root / "apple" / "green" / "a.png")
    folder = ImageFolder(root, 8)
    assert folder.classes == ["apple", "bee"]
    assert folder.labels[names(folder).index("apple/green/a.png")] == 0


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git"])
@pytest.mark.parametrize("place", [".", "apple"])
def test_folders_that_programs_make_for_themselves_are_left_out(tmp_path, hidden, place):
    root = tree(tmp_path)
    (root / place / hidden).mkdir()
    solid(9).save(root / place / hidden / "0-checkpoint.png")
    folder = ImageFolder(root, 8)
    assert folder.classes == ["apple", "bee"]
    assert len(folder) == 4
    assert left_out(folder) == [str(Path(place) / hidden)]


@pytest.mark.parametrize(
    "name", ["notes.txt", "Thumbs.db", "._0.png", ".DS_Store", "model.pdf", "0.png.part"]
)
@pytest.mark.parametrize("place", [".", "bee"])
def test_files_that_are_no_images_are_left_out(tmp_path, name, place):
    root = tree(tmp_path)
    (root / place / name).write_bytes(b"no image")
    folder = ImageFolder(root, 8)
    assert len(folder) == 4
    assert left_out(folder) == [str(Path(place) / name)]


def test_an_image_outside_of_the_classes_is_left_out(tmp_path):
    root = tree(tmp_path)
    solid(9).save(root / "stray.png")
    folder = ImageFolder(root, 8)
    assert len(folder) == 4
    assert left_out(folder) == ["stray.png"]


LOOPS = {  # place of the link -> where it leads
    "a class leads to itself": {"bee/again": "../bee"},
    "a class leads to all classes": {"bee/again": ".."},
    "a class is all classes": {"again": "."},
    "a class is the whole data set": {"again": ".."},
    "a class leads to the root of the disk": {"bee/again": "/"},
    "two classes lead to each other": {"bee/one": "../apple", "apple/other": "../bee"},
    "two loops": {"bee/one": ".", "bee/two": "."},
    "a loop by the name of an image": {"bee/one.png": "."},
}


@pytest.mark.parametrize("kind", LOOPS)
def test_links_in_a_circle_give_each_image_once(tmp_path, kind):
    root = tree(tmp_path)
    for place, target in LOOPS[kind].items():
        (root / place).symlink_to(target)
    with at_once():
        folder = ImageFolder(root, 8)
    assert names(folder) == ["apple/0.png", "apple/1.png", "bee/0.png", "bee/1.png"]
    assert left_out(folder) == sorted(LOOPS[kind])


def test_a_class_may_be_a_link_to_a_folder_elsewhere(tmp_path):
    root = tree(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    solid(9).save(tmp_path / "elsewhere" / "a.png")
    (root / "cow").symlink_to(tmp_path / "elsewhere")
    folder = ImageFolder(root, 8)
    assert folder.classes == ["apple", "bee", "cow"]
    assert names(folder)[-1] == "cow/a.png"


def test_an_image_may_be_a_link(tmp_path):
    root = tree(tmp_path)
    (root / "bee" / "link.png").symlink_to("0.png")
    assert len(ImageFolder(root, 8)) == 5


def test_a_class_without_images_is_named(tmp_path):
    root = tree(tmp_path)
    (root / "cow").mkdir()
    (root / "cow" / "notes.txt").touch()
    with pytest.raises(ValueError, match=f"{root / 'cow'} has no images"):
        ImageFolder(root, 8)


def test_a_flat_test_folder_as_imagenets_gives_way_to_val(tmp_path):
    write_tree(tmp_path, parts=("train", "val"))
    (tmp_path / "test").mkdir()
    solid(9).save(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    assert image_folder(tmp_path, ("test", "val"), 8).root == tmp_path / "val"


def test_a_test_folder_with_classes_is_taken_before_val(tmp_path):
    write_tree(tmp_path, parts=("train", "val", "test"))
    assert image_folder(tmp_path, ("test", "val"), 8).root == tmp_path / "test"


def test_flat_folders_only_are_refused_with_what_is_expected(tmp_path):
    (tmp_path / "test").mkdir()
    solid(9).save(tmp_path / "test" / "a.png")
    expected = (
        f"{tmp_path} has no folder test or val with classes; expected {tmp_path}/test/<class>/"
    )
    with pytest.raises(ValueError, match=expected):
        image_folder(tmp_path, ("test", "val"), 8)
