"""Pictures of what a run has learned, drawn with Pillow."""

import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

INK, FAINT = (30, 30, 40), (205, 205, 215)
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
PUBLISHED = {  # on these classes, (10^8 FLOPs, accuracy %), from the paper's figure 4: finetuned BlockDrop, and its rivals
    "ResNet": [(0.52, 90.2), (0.81, 91.3), (1.09, 92.1), (1.37, 92.3), (5.06, 93.2)],
    "BlockDrop": [(0.87, 91.3), (1.16, 92.3), (1.53, 93.1), (1.83, 93.6)],
    "SACT": [(0.76, 91.6), (1.08, 91.9), (1.19, 92.5), (3.14, 93.4)],
    "ACT": [(0.96, 91.4), (1.27, 92.4), (2.04, 92.9), (3.78, 93.5)],
    "PFEC": [(1.81, 93.1), (4.26, 93.6)],
    "LCCL": [(0.52, 91.7), (0.98, 92.6), (1.30, 92.7)],
}
COLOURS = [
    (60, 60, 70),
    (214, 39, 40),
    (31, 119, 180),
    (255, 140, 0),
    (44, 140, 44),
    (148, 103, 189),
    (140, 86, 75),
]


def canvas(width, height):
    """A white image, and what draws on it."""
    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def write(draw, place, text, size=13, anchor="lm", fill=INK):
    """Text at a place (x, y) in pixels."""
    draw.text(place, text, fill, ImageFont.load_default(size), anchor=anchor)


def keep_rates(u, labels, classes, path):
    """A heat map: how often images of each class keep each block. u: [N, K].    labels: [N]."""
    rates = torch.stack(
        [u[labels == c].mean(0) for c in range(len(classes))]
    ).nan_to_num()  # [C, K]
    cell, left, top = (28 if u.shape[1] <= 30 else 14), 110, 44
    image, draw = canvas(max(480, left + cell * u.shape[1] + 20), top + cell * len(classes) + 14)
    write(draw, (8, 12), "share of a class's images that keep block k (white: none, dark: all)")
    for k in range(0, u.shape[1], 1 if cell > 20 else 5):
        write(draw, (left + cell * (k + 0.5), top - 10), str(k), 11, "mm")
    for c, name in enumerate(classes):
        write(draw, (left - 8, top + cell * (c + 0.5)), name[:14], anchor="rm")
        for k, rate in enumerate(rates[c].tolist()):
            box = (
                left + cell * k,
                top + cell * c,
                left + cell * (k + 1) - 2,
                top + cell * (c + 1) - 2,
            )
            draw.rectangle(
                box,
                fill=tuple(round(255 + (dark - 255) * rate) for dark in (8, 48, 107)),
                outline=FAINT,
            )
    image.save(path)


def extremes(split, u, classes, path, each=5):
    """For each class the images that keep the fewest blocks, left, and the most, right, each with its number of blocks."""
    blocks, side, left, top = u.sum(1), 56, 110, 34
    image, draw = canvas(left + 2 * each * (side + 4) + 24, top + len(classes) * (side + 20))
    write(draw, (left, 14), "fewest blocks")
    write(draw, (left + each * (side + 4) + 16, 14), "most blocks")
    for c, name in enumerate(classes):
        mine = (split.labels.cpu() == c).nonzero()[:, 0]
        order = mine[blocks[mine].argsort(stable=True)]
        y = top + c * (side + 20)
        write(draw, (left - 8, y + side / 2), name[:14], anchor="rm")
        for half, index in enumerate((order[:each], order[-each:])):
            for j, i in enumerate(index.tolist()):
                x = left + half * (each * (side + 4) + 16) + j * (side + 4)
                pixels = (
                    split.images[i]
                    if isinstance(split.images, torch.Tensor)
                    else split.images[i][0]
                )
                image.paste(
                    to_pil_image(pixels.cpu()).resize((side, side), Image.Resampling.NEAREST),
                    (x, y),
                )
                write(draw, (x + side / 2, y + side + 8), f"{int(blocks[i])}", 12, "mm")
    image.save(path)


def ticks(values):
    """Round numbers, 1, 2, 5, 10, ..., for a logarithmic axis: from the last one below all values to the first one above."""
    steps = [step * 10.0**power for power in range(-9, 9) for step in (1, 2, 5)]
    first, last = max(t for t in steps if t < min(values)), min(t for t in steps if t > max(values))
    return [t for t in steps if first <= t <= last]


def tradeoff(points, path, published=None):
    """Accuracy against FLOPs, both means over the test set. Both axes are logarithmic, that of accuracy in the errors.

    points: name -> (FLOPs, accuracy in [0, 1]; drawn within 0.001 and 0.9995).    published: other people's results,
    `PUBLISHED`, as thin lines.
    """
    width, height, left, bottom, top, right = 760, 460, 70, 60, 40, 190
    image, draw = canvas(width, height)
    series = {name: [(f / 1e6, 100 * a)] for name, (f, a) in points.items()}
    series |= {
        f"{name}, paper": [(100 * f, a) for f, a in line]
        for name, line in (published or {}).items()
    }
    series = {
        name: [(f, min(max(100 - a, 0.05), 99.9)) for f, a in line] for name, line in series.items()
    }  # millions, error %
    xs, ys = (
        ticks(numbers)
        for numbers in zip(*(point for line in series.values() for point in line), strict=True)
    )

    def place(x, y):
        across, up = (math.log(v / axis[0], axis[-1] / axis[0]) for v, axis in ((x, xs), (y, ys)))
        return left + across * (width - left - right), top + up * (height - bottom - top)

    write(draw, (left, 18), "accuracy % against FLOPs, on logarithmic axes", 15)
    write(
        draw,
        ((left + width - right) / 2, height - 18),
        "million FLOPs an image, policy network included",
        anchor="mm",
    )
    for x in xs:
        draw.line((*place(x, ys[0]), *place(x, ys[-1])), FAINT)
        write(draw, (place(x, ys[0])[0], height - bottom + 14), f"{x:g}", 12, "mm")
    for y in ys:
        draw.line((*place(xs[0], y), *place(xs[-1], y)), FAINT)
        write(draw, (left - 8, place(xs[0], y)[1]), f"{100 - y:g}", 12, "rm")
    for i, (name, line) in enumerate(series.items()):
        colour, row, size = COLOURS[i % len(COLOURS)], top + 12 + 20 * i, 6 if name in points else 3
        draw.line([place(*point) for point in line], colour)
        for x, y in [*(place(*point) for point in line), (width - right + 19, row)]:
            draw.ellipse((x - size, y - size, x + size, y + size), fill=colour, outline="white")
        write(draw, (width - right + 32, row), name, 12)
    image.save(path)
