"""Pictures of what a run has learned, drawn with Pillow."""

import io
import itertools
import math

from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

from .files import write_safely
from .program import shown

INK = (30, 30, 40)
FAINT = (205, 205, 215)
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
    write_safely(path, content.getvalue())


def write(draw, place, text, anchor="lm"):
    """Text at a place (x, y) in pixels."""
    draw.text(place, text, INK, ImageFont.load_default(18), anchor=anchor)


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
        write(draw, (left - 8, y + SIDE / 2), shown(name[:14]), "rm")
        mine = (split.labels.cpu() == c).nonzero()[:, 0]
        order = mine[blocks[mine].argsort(stable=True)].tolist()
        for start, indices in ((left, order[:each]), (left + half, order[-each:])):
            for place, i in enumerate(indices):
                x = start + place * (SIDE + 4)
                pixels = split.images[i] if split.in_memory else split.images[i][0]
                face = to_pil_image(pixels.cpu()).resize((SIDE, SIDE), Image.Resampling.NEAREST)
                image.paste(face, (x, y))
                write(draw, (x + SIDE / 2, y + SIDE + 9), str(int(blocks[i])), "mm")
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


def tradeoff(series, path):
    """Accuracy against FLOPs. Both axes are logarithmic, that of accuracy in the errors.

    series: name -> [(FLOPs, accuracy in [0, 1])], points on a line that bear its number, the first
        on top; accuracies are drawn within 0.001 and 0.9995.
    """
    left, top, right, bottom = (80, 44, 780, 500)
    lines = {}  # in million FLOPs and in errors in percent
    for name, spots in series.items():
        lines[name] = [(flops / 1e6, min(max(100 - 100 * a, 0.05), 99.9)) for flops, a in spots]
    xs, ys = (ticks(values) for values in zip(*itertools.chain(*lines.values()), strict=True))

    image, draw = canvas(800, bottom + 40 + 26 * len(series))
    write(draw, (8, 20), "accuracy % against million FLOPs an image, policy network included")
    for x in xs:
        place = along(x, xs, left, right)
        draw.line((place, top, place, bottom), FAINT)
        write(draw, (place, bottom + 18), f"{x:g}", "mm")
    for y in ys:
        place = along(y, ys, top, bottom)
        draw.line((left, place, right, place), FAINT)
        write(draw, (left - 8, place), f"{100 - y:g}", "rm")
    numbered = list(zip(itertools.count(1), itertools.cycle(COLOURS), lines.items(), strict=False))
    for number, colour, (name, line) in reversed(numbered):
        line = [(along(x, xs, left, right), along(y, ys, top, bottom)) for x, y in line]
        draw.line(line, colour, 2)
        legend = (left, bottom + 26 + 26 * number)
        write(draw, (left + 22, legend[1]), name)
        for place in [*line, legend]:
            draw.circle(place, 12, "white", colour, 2)
            write(draw, place, str(number), "mm")
    save(image, path)
