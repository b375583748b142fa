"""Pictures of what a run has learned, drawn with Pillow."""

import io
import itertools
import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

from .files import write_safely

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
PUBLISHED = {  # on these classes: (FLOPs, accuracy), finetuned (paper, figure 4)
    "ResNet, paper": [(52e6, 0.902), (81e6, 0.913), (109e6, 0.921), (137e6, 0.923), (506e6, 0.932)],
    "BlockDrop, paper": [(87e6, 0.913), (116e6, 0.923), (153e6, 0.931), (183e6, 0.936)],
    "SACT, paper": [(76e6, 0.916), (108e6, 0.919), (119e6, 0.925), (314e6, 0.934)],
    "ACT, paper": [(96e6, 0.914), (127e6, 0.924), (204e6, 0.929), (378e6, 0.935)],
    "PFEC, paper": [(181e6, 0.931), (426e6, 0.936)],
    "LCCL, paper": [(52e6, 0.917), (98e6, 0.926), (130e6, 0.927)],
}
INK = (30, 30, 40)
FAINT = (205, 205, 215)
DARK = (8, 48, 107)
# Of Okabe and Ito: the colour-blind tell them apart, too.
COLOURS = ("#000000", "#d55e00", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
# Where a label may stand from its point, in pixels, the nearest place first.
OFFSETS = list(itertools.product(range(-700, 701, 10), range(-460, 461, 10)))
OFFSETS.sort(key=lambda offset: math.hypot(*offset))
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
    write_safely(path, content.getvalue())


def write(draw, place, text, size=18, anchor="lm"):
    """Text at a place (x, y) in pixels."""
    draw.text(place, text, INK, ImageFont.load_default(size), anchor=anchor)


def keep_rates(u, labels, classes, path):
    """A heat map: how often images of each class keep each block. u: [N, K].    labels: [N]."""
    num_blocks = u.shape[1]
    left, top = 160, 64
    across = max(1, min(28 if num_blocks <= 30 else 14, (LONGEST - left) // num_blocks))
    down = max(1, min(28, (LONGEST - top) // len(classes) - 1))
    image, draw = canvas(max(480, left + across * num_blocks + 20), top + down * len(classes) + 14)
    rates = torch.stack([u[labels == c].mean(0) for c in range(len(classes))]).nan_to_num()
    shades = 255 + (torch.tensor(DARK)[:, None, None] - 255) * rates  # [3, C, K]
    cells = to_pil_image(shades.round().byte())
    cells = cells.resize((across * num_blocks, down * len(classes)), Image.Resampling.NEAREST)
    image.paste(cells, (left, top))
    write(draw, (8, 20), "share of a class that keeps block k (dark: all)", 20)
    for k in range(0, num_blocks, 1 if num_blocks <= 15 else 5):
        write(draw, (left + across * (k + 0.5), top - 14), str(k), 20, "mm")
    for c in range(0, len(classes), math.ceil(28 / down)):
        write(draw, (left - 8, top + down * (c + 0.5)), classes[c][:14], 20, "rm")
    save(image, path)


def show(image, draw, x, y, pixels, text):
    """An image [3, H, W] at a place, SIDE pixels large, with a text below it."""
    shown = to_pil_image(pixels.cpu()).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    image.paste(shown, (x, y))
    write(draw, (x + SIDE / 2, y + SIDE + 9), text, 18, "mm")


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
        y = top + c * row
        write(draw, (left - 8, y + SIDE / 2), name[:14], anchor="rm")
        mine = (split.labels.cpu() == c).nonzero()[:, 0]
        order = mine[blocks[mine].argsort(stable=True)].tolist()
        for x, indices in ((left, order[:each]), (left + half, order[-each:])):
            for place, i in enumerate(indices):
                pixels = split.images[i] if split.in_memory else split.images[i][0]
                show(image, draw, x + place * (SIDE + 4), y, pixels, str(int(blocks[i])))
    save(image, path)


def answers(answered, path, columns=6):
    """Images in the order of their blocks, each with its blocks and the name of its class.

    answered: list of (uint8 [3, H, W], number of blocks, name).
    """
    width, height = 2 * SIDE + 18, SIDE + 24
    answered = sorted(answered, key=lambda one: one[1])[: columns * (LONGEST // height)]
    columns = min(columns, len(answered))
    image, draw = canvas(columns * width, math.ceil(len(answered) / columns) * height)
    for place, (pixels, blocks, name) in enumerate(answered):
        x, y = place % columns * width, place // columns * height
        show(image, draw, x + width // 4, y + 2, pixels, f"{blocks} {name[:11]}")
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


def label(draw, labels, spots, frame):
    """Writes each label (text, x, y) at the nearest place where it covers no spot and no label."""
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in spots]
    for text, x, y in labels:
        for dx, dy in OFFSETS:
            box = draw.textbbox((x + dx, y + dy), text, ImageFont.load_default(20), anchor="mm")
            inside = box[0] > frame[0] and box[1] > frame[1] and box[2] < frame[2]
            if inside and box[3] < frame[3] and not any(overlap(box, other) for other in taken):
                break
        taken.append(box)
        draw.line((x, y, min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])), INK)
        write(draw, (x + dx, y + dy), text, 20, "mm")


def overlap(a, b):
    """Whether two boxes (left, top, right, bottom) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def cross(spots):
    """A line from the mean of spots (x, y) along bars of one standard deviation each way."""
    spots = torch.tensor(spots, dtype=torch.float64)  # [runs, 2]
    mean = spots.mean(0)
    std = spots.std(0) if len(spots) > 1 else torch.zeros(2)
    low = torch.maximum(mean - std, mean / 10)  # a logarithm needs what is above 0
    (x, y), (left, down), (right, up) = torch.stack([mean, low, mean + std]).tolist()
    return [(x, y), (left, y), (right, y), (x, y), (x, down), (x, up)]


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
    for colour, (name, curve) in zip(itertools.cycle(COLOURS), curves.items(), strict=False):
        curve = [(along(x, xs, left, right), along(y, ys, top, bottom)) for x, y in curve]
        draw.line(curve, colour, 2)
        marks, size = (curve[:1], 7) if name in points else (curve, 4)
        for place in marks:
            draw.circle(place, size, colour, "white")
        marked += marks
        labels.append((name, *marks[-1]))
    label(draw, labels, marked, frame)
    save(image, path)
