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
COLOURS = [(60, 60, 70), (214, 39, 40), (31, 119, 180), (255, 140, 0), (44, 140, 44), (148, 103, 189), (140, 86, 75)]


def canvas(width, height):
    """A white image, and what draws on it."""
    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def write(draw, place, text, size=13, anchor="lm", fill=INK):
    """Text at a place (x, y) in pixels."""
    draw.text(place, text, fill, ImageFont.load_default(size), anchor=anchor)


def keep_rates(u, labels, classes, path):
    """A heat map: how often images of each class keep each block. u: [N, K].    labels: [N]."""
    rates = torch.stack([u[labels == c].mean(0) for c in range(len(classes))]).nan_to_num()  # [C, K]
    cell, left, top = (28 if u.shape[1] <= 30 else 14), 110, 44
    image, draw = canvas(max(480, left + cell * u.shape[1] + 20), top + cell * len(classes) + 14)
    write(draw, (8, 12), "share of a class's images that keep block k (white: none, dark: all)")
    for k in range(0, u.shape[1], 1 if cell > 20 else 5):
        write(draw, (left + cell * (k + 0.5), top - 10), str(k), 11, "mm")
    for c, name in enumerate(classes):
        write(draw, (left - 8, top + cell * (c + 0.5)), name[:14], anchor="rm")
        for k, rate in enumerate(rates[c].tolist()):
            box = (left + cell * k, top + cell * c, left + cell * (k + 1) - 2, top + cell * (c + 1) - 2)
            draw.rectangle(box, fill=tuple(round(255 + (dark - 255) * rate) for dark in (8, 48, 107)), outline=FAINT)
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
                pixels = split.images[i] if isinstance(split.images, torch.Tensor) else split.images[i][0]
                image.paste(to_pil_image(pixels.cpu()).resize((side, side), Image.Resampling.NEAREST), (x, y))
                write(draw, (x + side / 2, y + side + 8), f"{int(blocks[i])}", 12, "mm")
    image.save(path)


def tradeoff(points, path, published=None):
    """Accuracy against FLOPs, both means over the test set.

    points: name -> (FLOPs, accuracy in [0, 1]).    published: other people's results, `PUBLISHED`, as thin lines.
    """
    width, height, left, bottom, top, right = 760, 460, 70, 60, 40, 190
    image, draw = canvas(width, height)
    lines = {f"{name}, paper": [(100 * f, a) for f, a in series] for name, series in (published or {}).items()}
    points = {name: [(f / 1e6, 100 * a)] for name, (f, a) in points.items()}
    xs, ys = zip(*(point for series in (points | lines).values() for point in series), strict=True)
    x_high, y_low, y_high = max(xs) * 1.08, math.floor(min(ys) - 0.5), math.ceil(max(ys) + 0.5)

    def place(x, y):
        return left + x / x_high * (width - left - right), top + (y_high - y) / (y_high - y_low) * (height - bottom - top)

    write(draw, (left, 18), "accuracy % against FLOPs", 15)
    write(draw, ((left + width - right) / 2, height - 18), "million FLOPs an image, policy network included", anchor="mm")
    for i in range(6):
        x, y = x_high * i / 5, y_low + (y_high - y_low) * i / 5
        draw.line((*place(x, y_low), *place(x, y_high)), FAINT)
        draw.line((*place(0, y), *place(x_high, y)), FAINT)
        write(draw, (place(x, 0)[0], height - bottom + 14), f"{x:.0f}", 12, "mm")
        write(draw, (left - 8, place(0, y)[1]), f"{y:.1f}", 12, "rm")
    for i, (name, series) in enumerate((points | lines).items()):
        colour, row, size = COLOURS[i % len(COLOURS)], top + 12 + 20 * i, 3 if name in lines else 6
        draw.line([place(*point) for point in series], colour)
        for x, y in [*(place(*point) for point in series), (width - right + 19, row)]:
            draw.ellipse((x - size, y - size, x + size, y + size), fill=colour, outline="white")
        write(draw, (width - right + 32, row), name, 12)
    image.save(path)
