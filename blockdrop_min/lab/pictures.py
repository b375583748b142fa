"""Pictures of what a run has learned, drawn with Pillow."""

import io
import itertools
import math
import statistics
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

from .files import write_safely

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
PUBLISHED = {  # on these classes: (10^8 FLOPs, accuracy %), finetuned (paper, figure 4)
    "ResNet": [(0.52, 90.2), (0.81, 91.3), (1.09, 92.1), (1.37, 92.3), (5.06, 93.2)],
    "BlockDrop": [(0.87, 91.3), (1.16, 92.3), (1.53, 93.1), (1.83, 93.6)],
    "SACT": [(0.76, 91.6), (1.08, 91.9), (1.19, 92.5), (3.14, 93.4)],
    "ACT": [(0.96, 91.4), (1.27, 92.4), (2.04, 92.9), (3.78, 93.5)],
    "PFEC": [(1.81, 93.1), (4.26, 93.6)],
    "LCCL": [(0.52, 91.7), (0.98, 92.6), (1.30, 92.7)],
}
INK = (30, 30, 40)
FAINT = (205, 205, 215)
DARK = (8, 48, 107)
# Of Okabe and Ito: the colour-blind tell them apart, too.
COLOURS = ("#000000", "#d55e00", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
LONGEST = 4000  # pixels of a side
SIDE = 56  # of a shown image


def canvas(width, height):
    """A white image, and what draws on it."""
    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def save(image, path):
    """Writes a picture as a PNG file; OSError leaves what stood there."""
    content = io.BytesIO()
    image.save(content, "png")
    write_safely(Path(path), content.getvalue())


def write(draw, place, text, size=18, anchor="lm"):
    """Text at a place (x, y) in pixels."""
    draw.text(place, text, INK, ImageFont.load_default(size), anchor=anchor)


def keep_rates(u, labels, classes, path):
    """A heat map: how often images of each class keep each block. u: [N, K].    labels: [N]."""
    num_blocks = u.shape[1]
    wide = num_blocks > 15
    size, left, top = (22, 185, 64) if wide else (13, 110, 44)
    across = max(1, min(14 if num_blocks > 30 else 28, (LONGEST - left) // num_blocks))
    down = max(1, min(28, (LONGEST - top) // len(classes) - 1))
    image, draw = canvas(max(480, left + across * num_blocks + 20), top + down * len(classes) + 14)
    write(draw, (8, size), "share of a class that keeps block k (dark: all)", size)
    for k in range(0, num_blocks, 5 if wide else 1):
        write(draw, (left + across * (k + 0.5), top - 10), str(k), size, "mm")
    for c, name in enumerate(classes):
        y = top + down * c
        if c % math.ceil(28 / down) == 0:
            write(draw, (left - 8, y + down / 2), name[:14], size, "rm")
        rates = u[labels == c].mean(0).nan_to_num()  # [K]
        for k, rate in enumerate(rates.tolist()):
            x = left + across * k
            colour = tuple(round(255 + (dark - 255) * rate) for dark in DARK)
            outline = FAINT if min(across, down) > 4 else None
            draw.rectangle((x, y, x + max(0, across - 2), y + max(0, down - 2)), colour, outline)
    save(image, path)


def paste(image, pixels, x, y):
    """An image [3, H, W] at a place, SIDE pixels large."""
    shown = to_pil_image(pixels.cpu()).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    image.paste(shown, (x, y))


def extremes(split, u, classes, path, each=5):
    """Of each class the images that keep the fewest blocks, left, and the most, right."""
    blocks = u.sum(1)
    left, top, row = 150, 34, SIDE + 20
    classes = classes[: (LONGEST - top) // row]  # the first ones, if there are too many
    half = each * (SIDE + 4) + 16
    image, draw = canvas(left + 2 * half - 8, top + len(classes) * row)
    write(draw, (left, 16), "fewest blocks")
    write(draw, (left + half, 16), "most blocks")
    for c, name in enumerate(classes):
        mine = (split.labels.cpu() == c).nonzero()[:, 0]
        order = mine[blocks[mine].argsort(stable=True)].tolist()
        y = top + c * row
        write(draw, (left - 8, y + SIDE / 2), name[:14], anchor="rm")
        for x, images in ((left, order[:each]), (left + half, order[-each:])):
            for i in images:
                pixels = split.images[i]
                paste(image, pixels if isinstance(pixels, torch.Tensor) else pixels[0], x, y)
                write(draw, (x + SIDE / 2, y + SIDE + 9), f"{int(blocks[i])}", anchor="mm")
                x += SIDE + 4
    save(image, path)


def answers(images, blocks, names, path, columns=6):
    """Images in the order of their blocks, each with its blocks and the name of its class.

    images: list of uint8 [3, H, W].    blocks: list of int.    names: list of str.
    """
    width, height = 2 * SIDE + 18, SIDE + 30
    shown = sorted(range(len(images)), key=lambda i: blocks[i])[: columns * (LONGEST // height)]
    columns = min(columns, len(shown))
    image, draw = canvas(columns * width, math.ceil(len(shown) / columns) * height)
    for place, i in enumerate(shown):
        x, y = place % columns * width, place // columns * height
        paste(image, images[i], x + 4, y + 4)
        write(draw, (x + SIDE + 12, y + SIDE / 2), str(blocks[i]), 24)
        write(draw, (x + 4, y + SIDE + 16), names[i][:13], 16)
    save(image, path)


def ticks(values):
    """Round numbers, 1, 2, 5, 10, ..., for a logarithmic axis, from below all values to above."""
    steps = [step * 10.0**power for power in range(-9, 9) for step in (1, 2, 5)]
    first = max(step for step in steps if step < min(values))
    last = min(step for step in steps if step > max(values))
    return [step for step in steps if first <= step <= last]


def along(value, axis, start, end):
    """The pixel at which a value lies on a logarithmic axis from `start` to `end`."""
    return start + (end - start) * math.log(value / axis[0], axis[-1] / axis[0])


def label(draw, labels, spots, frame, size=20):
    """Writes each label (text, x, y) beside its point, where it covers no spot and no label."""
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in spots]
    for text, x, y in labels:
        width = draw.textlength(text, ImageFont.load_default(size))
        for i in range(16 * 60):  # around the point, then again at a larger distance
            angle = i % 16 * math.tau / 16
            distance = 11 + 6 * (i // 16)
            left = x + math.cos(angle) * (distance + width / 2) - width / 2
            middle = y - math.sin(angle) * (distance + size / 2)
            box = (left, middle - 0.6 * size, left + width, middle + 0.6 * size)
            inside = box[0] > frame[0] and box[1] > frame[1] and box[2] < frame[2]
            if inside and box[3] < frame[3] and not any(overlap(box, other) for other in taken):
                break
        taken.append(box)
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        draw.line((x, y, *near), INK)
        write(draw, (box[0], (box[1] + box[3]) / 2), text, size)


def overlap(a, b):
    """Whether two boxes (left, top, right, bottom) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def tradeoff(points, path, lines):
    """Accuracy against FLOPs. Both axes are logarithmic, that of accuracy in the errors.

    points: name -> [(FLOPs, accuracy in [0, 1])], one for each run. Drawn is their mean, with bars
        of one standard deviation each way; accuracies within 0.001 and 0.9995.
    lines: name -> the same, drawn as a thin line.
    """
    left, top, right, bottom = frame = (80, 44, 780, 500)
    curves = {}  # name -> where its line goes, in million FLOPs and in errors in percent
    for name, values in (points | lines).items():
        spots = [(flops / 1e6, min(max(100 - 100 * a, 0.05), 99.9)) for flops, a in values]
        curves[name] = cross(spots) if name in points else spots
    xs, ys = (ticks(values) for values in zip(*itertools.chain(*curves.values()), strict=True))

    image, draw = canvas(800, 560)
    write(draw, (8, 20), "accuracy % against million FLOPs an image, policy network included")
    for x in xs:
        place = along(x, xs, left, right)
        draw.line((place, top, place, bottom), FAINT)
        write(draw, (place, bottom + 18), f"{x:g}", anchor="mm")
    for y in ys:
        place = along(y, ys, top, bottom)
        draw.line((left, place, right, place), FAINT)
        write(draw, (left - 8, place), f"{100 - y:g}", anchor="rm")
    labels = []
    marked = []
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        curve = [(along(x, xs, left, right), along(y, ys, top, bottom)) for x, y in curve]
        draw.line(curve, colour, 2)
        for x, y in curve[:1] if name in points else curve:
            size = 7 if name in points else 4
            draw.ellipse((x - size, y - size, x + size, y + size), colour, "white")
            marked.append((x, y))
        labels.append((name, *marked[-1]))
    label(draw, labels, marked, frame)
    save(image, path)


def cross(spots):
    """A line from the mean of spots (x, y) along bars of one standard deviation each way."""
    means = []
    ends = []
    for values in zip(*spots, strict=True):
        mean = statistics.mean(values)
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        means.append(mean)
        ends.append((max(mean - std, mean / 10), mean + std))  # a logarithm needs what is above 0
    (x, y), (xs, ys) = means, ends
    return [(x, y), (xs[0], y), (xs[1], y), (x, y), (x, ys[0]), (x, ys[1])]
