"""The drawn shapes: repeatable, balanced, and truly harder as the difficulty grows."""

import math
import time

import pytest
import torch
from helpers import rng, seeds
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min.lab import shapes
from blockdrop_min.lab.shapes import HARD, SHAPES, draw, hue, make_shapes, polygon

SQUARE = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]


def points(*xy):
    return torch.tensor(xy).view(1, len(xy), 1, 2)


def of_class(name, difficulty, count=40, seed=0):
    """`count` images of a class, all of the same difficulty, float in [0, 1]."""
    labels = torch.full((count,), list(SHAPES).index(name))
    return draw(labels, torch.full((count,), difficulty), rng(seed)).float() / 255


def colourfulness(images):
    return (images.amax(1) - images.amin(1)).flatten(1).quantile(0.95, dim=1).mean().item()


# ------------------------------------------------------------------------------------------ by hand
def test_the_distance_to_a_polygon_by_hand():
    # The centre is 1 from every side; (3, 0) is 2 off the right side; (4, 5) is 3 and 4 off the
    # corner (1, 1).
    distance = polygon(SQUARE, points((0.0, 0.0), (3.0, 0.0), (4.0, 5.0), (0.25, 0.5), (1.0, 0.0)))
    assert distance.flatten().tolist() == pytest.approx([-1, 2, 5, -0.5, 0])


def test_hues_by_hand():
    thirds = hue(torch.tensor([0.0, 1 / 3, 2 / 3]))
    torch.testing.assert_close(thirds, 0.1 + 0.8 * torch.eye(3))  # red, green, blue


BY_HAND = {  # points (x, y) inside and outside, y grows downwards
    "triangle": ([(0, -0.9), (-0.8, 0.5), (0.8, 0.5)], [(-0.5, -0.5), (0.5, -0.5), (0, 0.7)]),
    "star": ([(0, -0.9), (-0.9, -0.3), (0.9, -0.3)], [(0, 0.6), (-0.5, -0.6), (0.5, -0.6)]),
    "heart": ([(0, 0.8), (-0.7, -0.5), (0.7, -0.5)], [(0, -0.7), (-0.7, 0.6), (0.7, 0.6)]),
    "arrow": ([(0, -0.9), (-0.6, -0.2), (0.2, 0.9)], [(-0.6, -0.8), (0.6, 0.2), (-0.6, 0.9)]),
    "hourglass": ([(0, -0.9), (0, 0.9), (0, 0)], [(-0.6, 0), (0.6, 0)]),
    "crescent": ([(-0.7, 0), (-0.3, 0.8)], [(0.5, 0), (0, 0)]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_corners_of_a_shape_point_where_they_should(name):
    for expected, places in zip((True, False), BY_HAND[name], strict=True):
        for x, y in places:
            inside = SHAPES[name](points((float(x), float(y)))).item() < 0
            assert inside == expected, f"({x}, {y})"


# ---------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_covers_the_share_of_the_image_that_its_outline_encloses(name):
    axis = torch.linspace(-1.5, 1.5, 301)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]
    area = (SHAPES[name](grid) < 0).float().mean().item() * 9
    expected = {
        "disc": math.pi * 0.85**2,
        "ring": math.pi * (0.96**2 - 0.48**2),
        "square": 1.6**2,
        "triangle": 3 * math.sqrt(3) / 4 * 1.1**2,
        "star": 5 * 1.1 * 0.42 * math.sin(math.pi / 5),
        "cross": 4 * 0.6 * 0.7 + 0.36,
        "crescent": math.pi * 0.95**2 - 1.519,  # less the lens of the discs of 0.95 and 0.8
        "heart": 180 / 256 * math.pi - 0.09,  # the curve's, less what is outside of 20 chords
        "arrow": 0.9 * 0.85 + 0.64 * 1.1,
        "hourglass": 0.85 + 0.85 + 2 * 0.12,
    }[name]
    assert area == pytest.approx(expected, abs=0.08)


# --------------------------------------------------------------------------------------------- laws
@given(seeds, st.integers(1, 30), st.sampled_from((8, 16)))
def test_the_same_arguments_give_the_same_images(seed, count, size):
    two = [make_shapes(count, seed, size) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*two, strict=True))


def test_another_seed_gives_other_images_labels_and_difficulties():
    for one, other in zip(make_shapes(50, seed=0), make_shapes(50, seed=1), strict=True):
        assert not torch.equal(one, other)


@given(st.integers(0, 99))
def test_classes_are_balanced_to_within_one_image(count):
    _, labels, _ = make_shapes(count, seed=0, size=8)
    counts = labels.bincount(minlength=10)
    assert counts.sum() == count and counts.max() - counts.min() <= 1


def test_images_labels_and_difficulties_have_the_types_and_ranges_that_are_stated():
    images, labels, difficulty = make_shapes(70, seed=0, size=16)
    assert (images.shape, images.dtype, labels.dtype) == ((70, 3, 16, 16), torch.uint8, torch.int64)
    assert difficulty.shape == (70,) and difficulty.min() >= 0 and difficulty.max() <= 1


def test_difficulties_are_uniform_and_do_not_depend_on_the_class():
    _, labels, difficulty = make_shapes(4000, seed=0, size=4)
    assert difficulty.histc(4, 0, 1).tolist() == pytest.approx([1000] * 4, abs=120)
    for c in range(10):
        assert difficulty[labels == c].mean().item() == pytest.approx(0.5, abs=0.06), f"class {c}"


@pytest.mark.parametrize("name", SHAPES)
def test_an_easy_image_has_colour_that_pales_and_a_hard_one_has_none(name):
    easy, paler, hard = (colourfulness(of_class(name, d)) for d in (0.0, 0.45, HARD))
    assert easy > paler + 0.1 > hard + 0.1


def test_the_colour_tells_the_class_of_an_easy_image_and_not_of_a_hard_one():
    def colours(d, seed):  # [10, 12, 3]: the mean of each image's most colourful pixels
        images = torch.stack([of_class(name, d, 12, seed) for name in SHAPES])
        pixels = (images - images.mean(2, keepdim=True)).flatten(3)
        strongest = pixels.norm(dim=2, keepdim=True).topk(60).indices.expand(-1, -1, 3, -1)
        return pixels.gather(3, strongest).mean(3)

    def accuracy(d):  # of the nearest mean colour, learned on other images
        nearest = torch.cdist(colours(d, 2), colours(d, 1).mean(1)).argmin(-1)
        return (nearest == torch.arange(10)[:, None]).float().mean().item()

    assert accuracy(0.0) > 0.95 and accuracy(0.45) > 0.9 and accuracy(1.0) < 0.3


def spy(monkeypatch, name):
    """The list to which each call of a function of the module adds its arguments."""
    calls, function = [], getattr(shapes, name)
    monkeypatch.setattr(shapes, name, lambda *args: calls.append(args) or function(*args))
    return calls


@pytest.mark.parametrize("d, count", [(0.3, 1), (0.6, 1), (0.65, 2), (0.85, 3), (0.9, 4), (1.0, 4)])
def test_harder_images_have_more_shapes(d, count, monkeypatch):
    painted = spy(monkeypatch, "paint")
    of_class("disc", d)
    drawn = sum((cover.flatten(1) > 0).any(1).long() for _, _, cover in painted)
    assert drawn.tolist() == [count] * 40


def test_the_underlined_shape_names_the_class_and_no_other_shape_is_of_it(monkeypatch):
    drawn = spy(monkeypatch, "outline")
    underlined = spy(monkeypatch, "underline")
    of_class("heart", 1.0)
    (first, _, centre, _, scale), *others = drawn
    assert (first == 7).all() and not any((other == 7).any() for other, *_ in others)
    assert [(c is centre, s is scale) for _, c, s in underlined] == [(True, True)]


@pytest.mark.parametrize("d", [0.2, 1.0])
def test_a_line_is_drawn_right_below_its_shape_and_within_the_image(d, monkeypatch):
    drawn = spy(monkeypatch, "outline")
    lined = of_class("disc", d)
    monkeypatch.setattr(shapes, "underline", lambda grid, centre, scale: scale + torch.inf)
    _, _, centre, _, scale = drawn[0]
    changed = (lined - of_class("disc", d)).abs().amax(1) > 0.1
    for image, (x, y), s in zip(changed, centre.flatten(1), scale.flatten(), strict=True):
        rows, columns = (((v + 0.5) / 16 - 1) for v in image.nonzero().unbind(1))
        assert rows.mean().item() == pytest.approx((y + 1.12 * s).item(), abs=0.05)
        assert columns.mean().item() == pytest.approx(x.item(), abs=0.08)
        assert len(rows) >= 8


@pytest.mark.parametrize("size", [32, 128])
def test_an_edge_is_a_pixel_wide_whatever_the_size(size):
    labels = torch.full((20,), list(SHAPES).index("disc"))
    images = draw(labels, torch.zeros(20), rng(0), size).float() / 255
    steps = (images[..., 1:] - images[..., :-1]).abs().flatten(1).amax(1)
    contrast = images.flatten(2).amax(2) - images.flatten(2).amin(2)  # [N, 3]
    assert (steps > 0.4 * contrast.amax(1)).all()


# -------------------------------------------------------------------------------------------- edges
def test_no_images_at_all():
    images, labels, difficulty = make_shapes(0, seed=0)
    assert images.shape == (0, 3, 32, 32) and len(labels) == len(difficulty) == 0


def test_ten_thousand_images_are_drawn_in_less_than_a_minute():
    start = time.process_time()  # of a processor; a fast one takes 5 seconds, a slow, shared one 21
    make_shapes(1000, seed=0)
    assert 10 * (time.process_time() - start) < 60
