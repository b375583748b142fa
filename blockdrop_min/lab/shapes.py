"""The embedded data set: drawn shapes of ten classes, each image with a known difficulty. No file, no network.

The paper shows by eye that harder images keep more blocks. Here difficulty is a number, so that can be measured. An easy
image has a colour typical of its class, which the first layers can see; the colour fades as difficulty grows, and contrast
falls while noise, clutter (strokes), occlusion (a bar) and turning grow, until only the form tells the class.
"""

import math

import torch

FADED = 0.65  # the difficulty from which on an image is grey


def polygon(points, p):
    """Signed distance of p to a polygon, negative inside. points: list of (x, y).    p: [N, H, W, 2]. -> [N, H, W]"""
    distance, sign = torch.full(p.shape[:-1], torch.inf), torch.ones(p.shape[:-1])
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        edge, w = torch.tensor(b) - torch.tensor(a), p - torch.tensor(a)
        t = ((w @ edge) / (edge @ edge)).clamp(0, 1)
        distance = torch.minimum(distance, (w - t[..., None] * edge).square().sum(-1))
        # An edge that a ray to the right of p crosses, upwards or downwards, takes p from inside to outside or back.
        above, below, left = (
            p[..., 1] >= a[1],
            p[..., 1] < b[1],
            edge[0] * w[..., 1] > edge[1] * w[..., 0],
        )
        sign = torch.where((above & below & left) | ~(above | below | left), -sign, sign)
    return sign * distance.sqrt()


def turned(count, radii, start=-90.0):
    """`count` points around the centre, their radii taken in turn from `radii`; the first points up."""
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


def disc(p, radius=0.85, x=0.0):
    """The distance of points p [..., 2] to a disc, negative inside."""
    return (p - torch.tensor([x, 0.0])).norm(dim=-1) - radius


HEART = [(math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1)
         for t in (2 * math.pi * i / 20 for i in range(20))]  # fmt: skip
CROSS = [(-.3, -1.), (.3, -1.), (.3, -.3), (1., -.3), (1., .3), (.3, .3),
         (.3, 1.), (-.3, 1.), (-.3, .3), (-1., .3), (-1., -.3), (-.3, -.3)]  # fmt: skip
ARROW = [(0., -1.), (.85, -.1), (.32, -.1), (.32, 1.), (-.32, 1.), (-.32, -.1), (-.85, -.1)]  # fmt: skip
HOURGLASS = [(-.85, -1.), (.85, -1.), (.12, 0.), (.85, 1.), (-.85, 1.), (-.12, 0.)]  # fmt: skip
SHAPES = {
    "disc": disc,
    "ring": lambda p: (p.norm(dim=-1) - 0.72).abs() - 0.24,
    "square": lambda p: polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], p),
    "triangle": lambda p: polygon(turned(3, [1.1]), p),
    "star": lambda p: polygon(turned(10, [1.1, 0.42]), p),
    "cross": lambda p: polygon(CROSS, p),
    "crescent": lambda p: torch.maximum(disc(p, 0.95), -disc(p, 0.8, x=0.5)),
    "heart": lambda p: polygon(HEART, p),
    "arrow": lambda p: polygon(ARROW, p),
    "hourglass": lambda p: polygon(HOURGLASS, p),
}


def hue(h):
    """A bright colour by its hue in [0, 1). [N] -> [N, 3] in [0, 1]"""
    return (((h[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6 - 3).abs() - 1).clamp(
        0, 1
    ) * 0.8 + 0.1


def draw(labels, difficulty, generator, size=32):
    """Draws one image for each label and difficulty. [N], [N] -> uint8 [N, 3, size, size]"""
    n, d = len(labels), difficulty

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def lerp(easy, hard):
        return easy + (hard - easy) * d

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    grid = torch.stack(
        torch.meshgrid(axis, axis, indexing="xy"), -1
    )  # [H, W, 2], x and y in [-1, 1]
    scale, angle = uniform(0.5, 0.75), uniform(-1, 1) * lerp(0.15, 0.55)
    centre = uniform(-1, 1, 2) * (0.8 - scale)[:, None]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(n, 1, 2, 2)
    p = (grid.view(1, -1, 2) - centre[:, None]).unsqueeze(2).matmul(turn).view(
        n, size, size, 2
    ) / scale.view(n, 1, 1, 1)
    distance = torch.empty(n, size, size)
    for c, shape in enumerate(SHAPES.values()):
        distance[labels == c] = shape(p[labels == c])

    def ink(distance):  # [N, H, W] in pixels -> how much of each pixel is covered
        return (0.5 - distance).clamp(0, 1)[:, None]

    # Colours: grey of some brightness; easy shapes are blended with the colour of their class.
    grey = uniform(0.15, 0.45)
    tone = (grey + lerp(0.5, 0.29)).clamp(0, 1)[:, None].expand(n, 3)
    typical = hue((labels / len(SHAPES) + uniform(-1, 1) * lerp(0.01, 0.12)) % 1)
    colour = torch.lerp(tone, typical, (1 - d / FADED).clamp(0, 1).sqrt()[:, None])
    slope = uniform(-0.12, 0.12, 2)
    ground = grey[:, None, None] + (slope[:, None, None] * grid).sum(-1)  # [N, H, W]
    image = ground[:, None].expand(n, 3, size, size)
    for i in range(4):  # clutter: short strokes in the colour of the shape, more of them the harder
        a, b = uniform(-1, 1, 2)[:, None, None], uniform(-0.35, 0.35, 2)[:, None, None]
        along = (((grid - a) * b).sum(-1) / b.square().sum(-1)).clamp(0, 1)[..., None]
        stroke = ink((grid - a - along * b).norm(dim=-1) * size / 2 - 0.7) * (
            d > 0.3 + 0.15 * i
        ).view(n, 1, 1, 1)
        image = torch.lerp(image, colour[..., None, None].expand_as(image), stroke)
    image = torch.lerp(
        image,
        colour[..., None, None].expand_as(image),
        ink(distance * (scale * size / 2).view(n, 1, 1)),
    )
    bar, tilt = (grid - uniform(-0.5, 0.5, 2)[:, None, None]), uniform(0, math.pi)
    across = (bar * torch.stack([tilt.cos(), tilt.sin()], -1)[:, None, None]).sum(-1).abs()
    occlusion = ink((across - lerp(-0.25, 0.115).view(n, 1, 1)) * size / 2)
    image = torch.lerp(image, (grey + 0.1).view(n, 1, 1, 1).expand_as(image), occlusion)
    noise = torch.randn(image.shape, generator=generator) * lerp(0.02, 0.09).view(n, 1, 1, 1)
    return ((image + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def make_shapes(count, seed, size=32):
    """`count` images, as many of each class as of any other. Difficulty is U^2, U uniform: easy images are commoner.

    Returns images uint8 [count, 3, size, size], labels int64 [count] and difficulty float [count] in [0, 1]; the same
    for the same arguments.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) % len(SHAPES))[torch.randperm(count, generator=generator)]
    difficulty = torch.rand(count, generator=generator) ** 2
    parts = [
        draw(*part, generator, size)
        for part in zip(labels.split(500), difficulty.split(500), strict=True)
    ]
    return torch.cat(parts), labels, difficulty
