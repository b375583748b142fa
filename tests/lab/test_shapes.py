"""The drawn shapes: repeatable, balanced, and truly harder as the difficulty grows."""

import math
import time
from itertools import pairwise

import pytest
import torch
from helpers import rng, seeds
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min.lab.shapes import FADED, SHAPES, draw, hue, make_shapes, polygon, turned

SQUARE = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]


def points(*xy):
    return torch.tensor(xy).view(1, len(xy), 1, 2)


def of_class(name, difficulty, count=40, seed=0):
    """`count` images of a class, all of the same difficulty, float in [0, 1]."""
    labels = torch.full((count,), list(SHAPES).index(name))
    return draw(labels, torch.full((count,), difficulty), rng(seed)).float() / 255


def colourfulness(images):
    return (images.amax(1) - images.amin(1)).flatten(1).quantile(0.95, dim=1).mean().item()


def noise(images):
    """A robust spread of the difference of neighbouring pixels: edges hardly change it."""
    return (images[..., 1:] - images[..., :-1]).abs().median().item()


# ------------------------------------------------------------------------------------------ by hand
def test_the_distance_to_a_polygon_by_hand():
    # The centre is 1 from every side; (3, 0) is 2 off the right side; (4, 5) is 3 and 4 off the
    # corner (1, 1).
    distance = polygon(SQUARE, points((0.0, 0.0), (3.0, 0.0), (4.0, 5.0), (0.25, 0.5), (1.0, 0.0)))
    assert distance.flatten().tolist() == pytest.approx([-1, 2, 5, -0.5, 0])


def test_a_notch_of_a_polygon_is_outside_of_it():
    notched = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (-1.0, 1.0)]
    inside, notch = polygon(notched, points((0.0, -0.5), (0.0, 0.5))).flatten()
    assert inside < 0 < notch.item() == pytest.approx(0.5 / math.sqrt(2))


def test_turned_points_start_at_the_top_and_take_their_radii_in_turn():
    corners = [number for point in turned(4, [1.0, 0.5]) for number in point]
    assert corners == pytest.approx(
        [0, -1, 0.5, 0, 0, 1, -0.5, 0], abs=1e-6
    )  # y grows downwards, as in an image


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


MIDDLES = {  # where the middle of the covered pixels is between left and right, top and bottom
    "triangle": (0.5, 0.67),  # points up: two thirds of its height from the top
    "heart": (0.5, 0.41),  # points down
    "crescent": (0.35, 0.5),  # is open to the right
    "square": (0.5, 0.5),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_pictures_of_a_shape_are_upright(name):
    images = of_class(name, 0.0)  # hardly turned, and no clutter
    inside = (images - images[..., :1, :1]).abs().amax(1) > 0.3
    middles = []
    for picture in inside:
        rows, columns = picture.nonzero().double().unbind(1)
        middles.append(
            [((v.mean() - v.min()) / (v.max() - v.min())).item() for v in (columns, rows)]
        )
    assert torch.tensor(middles).mean(0).tolist() == pytest.approx(MIDDLES[name], abs=0.06)


def test_there_are_ten_classes():
    assert len(SHAPES) == 10


# ---------------------------------------------------------------------------------------- two roads
@given(seeds, st.integers(3, 9))
def test_the_distance_equals_a_walk_around_the_polygon(seed, count):
    corners = turned(count, (0.3 + torch.rand(count, generator=rng(seed))).tolist())
    p = torch.rand(1, 4, 4, 2, generator=rng(seed + 1)) * 3 - 1.5

    def slow(x, y):
        angle, nearest = 0.0, math.inf
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            turn = math.atan2(by - y, bx - x) - math.atan2(ay - y, ax - x)
            angle += (turn + math.pi) % (
                2 * math.pi
            ) - math.pi  # the whole turn is 2 pi inside and 0 outside
            steps = [i / 2000 for i in range(2001)]
            nearest = min(
                nearest,
                *(math.hypot(ax + t * (bx - ax) - x, ay + t * (by - ay) - y) for t in steps[::50]),
            )
        return nearest if abs(angle) < 1 else -nearest

    expected = torch.tensor([slow(*point) for point in p.view(-1, 2).tolist()])
    torch.testing.assert_close(polygon(corners, p).flatten(), expected, atol=0.03, rtol=0)


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
    for one, other in zip(
        make_shapes(count, seed, size), make_shapes(count, seed, size), strict=True
    ):
        assert torch.equal(one, other)


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


def test_difficulties_are_powers_of_uniform_numbers_and_do_not_depend_on_the_class():
    _, labels, difficulty = make_shapes(4000, seed=0, size=4)
    quarters = (0, 0.25, 0.5, 0.75, 1)
    below = [4000 * quarter**0.5 for quarter in quarters]  # P(U^2 < d) = d^(1/2)
    expected = [high - low for low, high in pairwise(below)]
    assert difficulty.histc(4, 0, 1).tolist() == pytest.approx(expected, abs=120)
    for c in range(10):
        mean = difficulty[labels == c].mean().item()
        assert mean == pytest.approx(1 / 3, abs=0.06), f"class {c}"  # E U^2 = 1 / 3


@pytest.mark.parametrize("name", SHAPES)
def test_colour_fades_as_difficulty_grows(name):
    easy, middle, hard = (colourfulness(of_class(name, d)) for d in (0.0, 0.6, FADED))
    assert easy > middle + 0.1 > hard + 0.1


@pytest.mark.parametrize("name", SHAPES)
def test_noise_grows_with_difficulty(name):
    easy, middle, hard = (noise(of_class(name, d)) for d in (0.0, 0.5, 1.0))
    assert 2 * easy < middle and 1.3 * middle < hard


def test_the_colour_tells_the_class_of_an_easy_image_and_not_of_a_hard_one():
    def accuracy(
        d,
    ):  # nearest mean colour of the most colourful tenth of the pixels, learned on other images
        def colours(seed):
            images = torch.stack(
                [of_class(name, d, 12, seed) for name in SHAPES]
            )  # [10, 12, 3, H, W]
            pixels = (images - images.mean(2, keepdim=True)).flatten(3)
            strongest = pixels.norm(dim=2, keepdim=True).topk(60).indices.expand(-1, -1, 3, -1)
            return pixels.gather(3, strongest).mean(3)

        means = colours(1).mean(1)
        return (
            (torch.cdist(colours(2), means).argmin(-1) == torch.arange(10)[:, None])
            .float()
            .mean()
            .item()
        )

    assert accuracy(0.0) > 0.95 > 0.3 > accuracy(1.0)


@pytest.mark.parametrize("size", [32, 128])
def test_an_edge_is_a_pixel_wide_whatever_the_size(size):
    labels = torch.full((20,), list(SHAPES).index("disc"))
    images = draw(labels, torch.zeros(20), rng(0), size).float() / 255
    steps = (images[..., 1:] - images[..., :-1]).abs().flatten(1).amax(1)
    contrast = images.flatten(2).amax(2) - images.flatten(2).amin(2)  # [N, 3]
    assert (steps > 0.4 * contrast.amax(1)).all()


def test_clutter_comes_with_difficulty():
    # With the same draws, an image that is a little harder differs most where a stroke was added.
    just_below, just_above = (of_class("disc", d) for d in (0.2999, 0.3001))
    added = (just_above - just_below).abs().amax(1).flatten(1).amax(1)
    assert (added > 0.15).float().mean() > 0.5


# -------------------------------------------------------------------------------------------- edges
def test_no_images_at_all():
    images, labels, difficulty = make_shapes(0, seed=0)
    assert images.shape == (0, 3, 32, 32) and len(labels) == len(difficulty) == 0


def test_ten_thousand_images_are_drawn_in_less_than_15_seconds():
    start = time.process_time()
    make_shapes(1000, seed=0)
    assert 10 * (time.process_time() - start) < 15
