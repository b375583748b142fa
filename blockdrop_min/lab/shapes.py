"""The embedded data set: drawn shapes of ten classes, each image with a known difficulty.

It needs no file and no network. The paper shows by eye that harder images keep more blocks; here
difficulty is a number, so that this can be measured. An easy image, half of them, has one shape in
a colour typical of its class, which the first layers can see. A hard one has grey shapes, turned
any way and up to four of them: the one that is underlined names the class, so that a network has
to read forms, and then to find out which of them counts.
"""

import math

import torch

HARD = 0.5  # the difficulty from which on images are grey, turned, and of up to four shapes


def polygon(points, p):
    """Signed distance of points to a polygon, negative inside.

    points: the corners, a list of (x, y).
    p: [N, H, W, 2].
    Returns [N, H, W].
    """
    distance = torch.full(p.shape[:-1], torch.inf)  # squared
    sign = torch.ones(p.shape[:-1])
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        edge = torch.tensor(b) - torch.tensor(a)
        w = p - torch.tensor(a)
        t = ((w @ edge) / (edge @ edge)).clamp(0, 1)
        distance = torch.minimum(distance, (w - t[..., None] * edge).square().sum(-1))
        # An edge that a ray to the right of p crosses, upwards or downwards, takes p from inside
        # to outside or back.
        above = p[..., 1] >= a[1]
        below = p[..., 1] < b[1]
        left = edge[0] * w[..., 1] > edge[1] * w[..., 0]
        crossed = (above & below & left) | ~(above | below | left)
        sign = torch.where(crossed, -sign, sign)
    return sign * distance.sqrt()


def turned(count, radii, start=-90.0):
    """`count` points around the centre, their radii in turn from `radii`; the first points up."""
    points = []
    for i in range(count):
        angle = math.radians(start + 360 * i / count)
        radius = radii[i % len(radii)]
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def disc(p, radius=0.85, x=0.0):
    """The distance of points p [..., 2] to a disc, negative inside."""
    return (p - torch.tensor([x, 0.0])).norm(dim=-1) - radius


def heart(count=20):
    """Points on a heart's curve."""
    points = []
    for i in range(count):
        t = 2 * math.pi * i / count
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -y / 16 - 0.1))
    return points


CROSS = [(-.3, -1.), (.3, -1.), (.3, -.3), (1., -.3), (1., .3), (.3, .3),
         (.3, 1.), (-.3, 1.), (-.3, .3), (-1., .3), (-1., -.3), (-.3, -.3)]  # fmt: skip
ARROW = [(0., -1.), (.85, -.1), (.32, -.1), (.32, 1.),
         (-.32, 1.), (-.32, -.1), (-.85, -.1)]  # fmt: skip
HOURGLASS = [(-.85, -1.), (.85, -1.), (.12, 0.), (.85, 1.), (-.85, 1.), (-.12, 0.)]  # fmt: skip
SHAPES = {
    "disc": disc,
    "ring": lambda p: (p.norm(dim=-1) - 0.72).abs() - 0.24,
    "square": lambda p: polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], p),
    "triangle": lambda p: polygon(turned(3, [1.1]), p),
    "star": lambda p: polygon(turned(10, [1.1, 0.42]), p),
    "cross": lambda p: polygon(CROSS, p),
    "crescent": lambda p: torch.maximum(disc(p, 0.95), -disc(p, 0.8, x=0.5)),
    "heart": lambda p: polygon(heart(), p),
    "arrow": lambda p: polygon(ARROW, p),
    "hourglass": lambda p: polygon(HOURGLASS, p),
}


def hue(h):
    """A bright colour by its hue in [0, 1). [N] -> [N, 3] in [0, 1]"""
    wheel = (h[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6
    return ((wheel - 3).abs() - 1).clamp(0, 1) * 0.8 + 0.1


def outline(labels, grid, centre, angle, scale):
    """How far each pixel is from the outline of its image's shape, in units of that shape.

    labels: [N].
    grid: [H, W, 2], pixel centres (x, y) in [-1, 1].
    centre: [N, 1, 1, 2], of the shape.
    angle, scale: [N, 1, 1], its turn in radians and its size.
    Returns [N, H, W], negative inside.
    """
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)
    p = (grid - centre).unsqueeze(-2).matmul(turn.unflatten(-1, (2, 2))).squeeze(-2)
    p = p / scale[..., None]  # [N, H, W, 2]
    distance = torch.empty(p.shape[:-1])
    for c, shape in enumerate(SHAPES.values()):
        distance[labels == c] = shape(p[labels == c])
    return distance


def underline(grid, centre, scale):
    """How far each pixel is from the line below a shape, as `outline` tells it. -> [N, H, W]"""
    x, y = ((grid - centre) / scale[..., None]).unbind(-1)
    return torch.maximum(x.abs() - 0.85, (y - 1.12).abs() - 0.14)


def ink(distance):
    """How much of a pixel is covered that lies so many pixels from an outline, in [0, 1]."""
    return (0.5 - distance).clamp(0, 1)


def paint(image, colour, cover):
    """image [N, 3, H, W] with a colour [N, 1 or 3, 1, 1] laid over it as thickly as `cover`."""
    return torch.lerp(image, colour.expand_as(image), cover[:, None])


def draw(labels, difficulty, generator, size=32):
    """Draws one image for each label and difficulty. [N], [N] -> uint8 [N, 3, size, size]"""
    d = difficulty.view(-1, 1, 1)
    hard = d >= HARD

    def uniform(low, high, *shape):  # [N, 1, 1, *shape]
        return low + (high - low) * torch.rand(len(d), 1, 1, *shape, generator=generator)

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # [H, W, 2]

    # Grey of some brightness; easy shapes have the colour of their class, paler as d grows.
    grey = uniform(0.15, 0.45)
    wander = (uniform(-1, 1) * (0.01 + 0.06 * d)).flatten()
    typical = hue((labels / len(SHAPES) + wander) % 1)[..., None, None]  # [N, 3, 1, 1]
    colour = torch.lerp(typical, (grey + 0.4)[:, None], torch.where(hard, 1, 0.6 * d)[:, None])

    ground = grey + (uniform(-0.12, 0.12, 2) * grid).sum(-1)  # brighter to one side
    image = ground[:, None].expand(-1, 3, -1, -1)

    # One shape, or up to four, each in its quarter of the image. The first names the class.
    count = 1 + (4 * (d - HARD) / (1 - HARD)).floor().clamp(0, 3)
    quarters = torch.rand(len(d), 4, generator=generator).argsort(1)
    for i in range(4):
        other = torch.randint(1, len(SHAPES), labels.shape, generator=generator)
        named = labels if i == 0 else (labels + other) % len(SHAPES)
        scale = torch.where(hard, uniform(0.32, 0.4), uniform(0.5, 0.75))
        angle = uniform(-1, 1) * torch.where(hard, math.pi, 0.15)
        quarter = torch.stack([quarters[:, i] % 2, quarters[:, i] // 2], -1)[:, None, None]
        quarter = 0.92 * quarter - torch.tensor([0.46, 0.52]) + uniform(-0.04, 0.04, 2)
        anywhere = uniform(-1, 1, 2) * (0.85 - scale)[..., None]
        centre = torch.where(hard[..., None], quarter, anywhere)
        distance = outline(named, grid, centre, angle, scale)
        if i == 0:
            distance = torch.minimum(distance, underline(grid, centre, scale))
        image = paint(image, colour, ink(distance * (scale * size / 2)) * (i < count))

    noise = torch.randn(image.shape, generator=generator) * 0.04
    return ((image + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def make_shapes(count, seed, size=32):
    """`count` images, as many of each class as of any other.

    Difficulty is uniform in [0, 1]. The same arguments give the same images.

    Returns images uint8 [count, 3, size, size], labels int64 [count], difficulty [count] in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) % len(SHAPES))[torch.randperm(count, generator=generator)]
    difficulty = torch.rand(count, generator=generator)
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for part in torch.arange(count).split(500):
        images[part] = draw(labels[part], difficulty[part], generator, size)
    return images, labels, difficulty
