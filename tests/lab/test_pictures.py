"""The pictures: written, of the stated size, and showing the numbers that they are given."""

import pytest
import torch
from helpers import rng
from PIL import Image
from runs import split

import evaluate
from blockdrop_min.lab.data import Data, Split
from blockdrop_min.lab.pictures import CIFAR10, COLOURS, PUBLISHED, extremes, keep_rates, ticks, tradeoff
from blockdrop_min.lab.evaluation import Result
from blockdrop_min.lab.settings import Settings

DARK, WHITE = (8, 48, 107), (255, 255, 255)


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def heat(tmp_path, u, labels, classes=("cat", "dog"), name="heat.png"):
    keep_rates(torch.tensor(u).float(), torch.tensor(labels), classes, tmp_path / name)
    return opened(tmp_path / name)


def cell(image, c, k):
    """The colour in the middle of the cell of class c and block k."""
    return image.getpixel((110 + 28 * k + 13, 44 + 28 * c + 13))


def faces(tmp_path, part, u, classes, name="faces.png", **options):
    extremes(part, u, classes, tmp_path / name, **options)
    return opened(tmp_path / name)


def plot(tmp_path, points, published=None, name="plot.png"):
    tradeoff(points, tmp_path / name, published)
    return opened(tmp_path / name)


def inside(image, colour):
    """The pixels (x, y) of this colour between the axes of a plot."""
    pixels = image.load()
    return [(x, y) for x in range(70, 570) for y in range(image.height) if pixels[x, y] == colour]


def centre(image, colour):
    """The middle [x, y] of what has this colour in a plot."""
    found = inside(image, colour)
    return [sum(axis) / len(found) for axis in zip(*found, strict=True)]


def grey_ladder(count):
    """Images of one class, ever brighter; image i keeps i blocks of `count`."""
    images = (torch.arange(count) * 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    return Split(images, torch.zeros(count, dtype=torch.int64)), torch.ones(count, count).tril(-1)


# ------------------------------------------------------------------------------------------------------- by hand
def test_a_block_that_a_class_always_keeps_is_dark_and_one_that_it_never_keeps_white(tmp_path):
    image = heat(tmp_path, [[1, 0], [1, 0], [0, 1]], [0, 0, 1])
    assert [[cell(image, c, k) for k in (0, 1)] for c in (0, 1)] == [[DARK, WHITE], [WHITE, DARK]]


def test_a_keep_rate_of_one_half_is_half_way_between_white_and_dark(tmp_path):
    image = heat(tmp_path, [[1, 1], [0, 1], [1, 1]], [0, 0, 1])
    assert cell(image, 0, 0) == tuple(round((255 + dark) / 2) for dark in DARK)


def test_the_image_with_the_fewest_blocks_stands_on_the_left_and_the_one_with_the_most_on_the_right(tmp_path):
    part, u = grey_ladder(6)
    image = faces(tmp_path, part, u, ["grey"], each=2)
    shown = [image.getpixel((110 + x, 34 + 28))[0] for x in (28, 60 + 28, 136 + 28, 136 + 60 + 28)]
    assert shown == [0, 20, 80, 100]  # images 0 and 1 of six, then 4 and 5


def test_half_the_errors_are_a_step_up_and_twice_the_flops_a_step_to_the_right(tmp_path):
    image = plot(tmp_path, {"cheap": (1e8, 0.92), "dear": (2e8, 0.96), "dearest": (4e8, 0.98)})
    (x, y), (dear_x, dear_y), (dearest_x, dearest_y) = (centre(image, COLOURS[i]) for i in range(3))
    assert dear_x - x > 20 and y - dear_y > 20
    assert dearest_x - dear_x == pytest.approx(dear_x - x, abs=1.5) and dear_y - dearest_y == pytest.approx(y - dear_y, abs=1.5)


def test_the_lines_of_an_axis_are_round_numbers_around_all_values():
    assert (
        ticks([81.1, 35.0]) == [20, 50, 100] and ticks([0.7, 18.0]) == [0.5, 1, 2, 5, 10, 20] and ticks([50.0]) == [20, 50, 100]
    )


# ---------------------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize(("num_blocks", "width"), [(2, 480), (15, 110 + 28 * 15 + 20), (54, 110 + 14 * 54 + 20)])
def test_the_heat_map_has_a_cell_for_each_class_and_block(tmp_path, num_blocks, width):
    image = heat(tmp_path, [[1] * num_blocks, [0] * num_blocks], [0, 1])
    assert image.size == (width, 44 + 2 * (28 if num_blocks < 31 else 14) + 14)


@pytest.mark.parametrize("classes", [1, 4])
def test_the_extremes_have_a_row_for_each_class(tmp_path, classes):
    image = faces(tmp_path, split(12 * classes, classes=classes), torch.ones(12 * classes, 3), ["name"] * classes)
    assert image.size == (110 + 2 * 5 * 60 + 24, 34 + 76 * classes)


def test_the_tradeoff_has_its_size(tmp_path):
    assert plot(tmp_path, {"one": (1e6, 0.5)}).size == (760, 460)


def test_other_keep_rates_give_another_heat_map(tmp_path):
    one, other = (heat(tmp_path, [[1, 0], u], [0, 1]) for u in ([0, 1], [1, 1]))
    assert one.tobytes() != other.tobytes()


def test_other_images_and_other_counts_give_other_extremes(tmp_path):
    u = (torch.rand(20, 6, generator=rng(0)) < 0.5).float()
    pictures = [faces(tmp_path, split(20, seed, classes=2), policy, ["a", "b"]) for seed, policy in ((0, u), (1, u), (0, 1 - u))]
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_other_numbers_and_other_names_give_another_tradeoff(tmp_path):
    base = {"ours": (1e8, 0.9), "rival": (2e8, 0.8)}
    others = [base | {"ours": (1e8, 0.91)}, base | {"ours": (1.2e8, 0.9)}, {"ours": (1e8, 0.9), "other": (2e8, 0.8)}]
    assert len({plot(tmp_path, points).tobytes() for points in (base, *others)}) == 4


def test_published_results_are_a_line_beside_ours_on_the_same_axes(tmp_path):
    image = plot(tmp_path, {"ours": (1e8, 0.9)}, {"theirs": [(0.5, 80.0), (2.0, 95.0)]})
    line = inside(image, COLOURS[1])
    (left, low), (right, high) = min(line), max(line)
    assert centre(image, COLOURS[0]) == pytest.approx([(left + right) / 2, (low + high) / 2], abs=2) and low > high


@pytest.mark.parametrize(("policy", "name"), [("learned", "BlockDrop"), ("first:2", "first:2")])
@pytest.mark.parametrize(("classes", "lines"), [(CIFAR10.split(), PUBLISHED), (CIFAR10.split()[:5], None)])
def test_the_papers_points_are_drawn_for_the_ten_classes_of_cifar_alone(tmp_path, monkeypatch, classes, lines, policy, name):
    drawn = []
    monkeypatch.setattr("blockdrop_min.pictures.tradeoff", lambda points, path, published: drawn.append(([*points], published)))
    part = split(20, classes=len(classes))
    data = Data(part, part, part, tuple(classes), (0.0,) * 3, (1.0,) * 3, 32, 4)
    u = torch.ones(20, 3)
    evaluate.draw(tmp_path, Settings(policy=policy), data, {"blockdrop": Result(u[:, 0] > 0, u, u.sum(1), 3)})
    assert drawn == [([name], lines)]


def test_the_papers_points_are_those_of_its_text():
    assert PUBLISHED["BlockDrop"][-1] == (1.83, 93.6) and PUBLISHED["ResNet"][-1] == (5.06, 93.2)
    assert all(0.5 < flops < 5.1 and 90 < accuracy < 94 for series in PUBLISHED.values() for flops, accuracy in series)


# --------------------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize(("accuracy", "height"), [(0.0, 400), (1.0, 245)])  # 245: an error of 0.05 % between 0.02 and 0.1
def test_no_and_all_predictions_right_are_points_of_the_tradeoff_too(tmp_path, accuracy, height):
    assert centre(plot(tmp_path, {"one": (1e6, accuracy)}), COLOURS[0])[1] == pytest.approx(height, abs=2)


def test_a_class_with_fewer_images_than_places_shows_those_it_has(tmp_path):
    part, u = grey_ladder(3)
    assert faces(tmp_path, part, u, ["grey"], each=5).getpixel((110 + 2 * 60 + 28, 34 + 28))[0] == 40


def test_a_class_without_images_leaves_its_row_empty(tmp_path):
    part, u = grey_ladder(3)
    image = faces(tmp_path, part, u, ["grey", "none"])
    assert image.getpixel((110 + 28, 34 + 76 + 28)) == WHITE


def test_a_class_without_images_is_white_in_the_heat_map(tmp_path):
    assert cell(heat(tmp_path, [[1, 1]], [0]), 1, 0) == WHITE


def test_images_that_are_read_from_files_are_shown_too(tmp_path):
    part, u = grey_ladder(6)
    streamed = Split([(image, 0) for image in part.images], part.labels)
    shown = [faces(tmp_path, p, u, ["grey"], name).tobytes() for p, name in ((part, "a.png"), (streamed, "b.png"))]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("points", [{"one": (1e6, 1.0)}, {"a": (1e6, 0.5), "b": (1e6, 0.5)}, {"none": (1e6, 0.0)}])
def test_points_that_fall_together_can_be_drawn(tmp_path, points):
    assert plot(tmp_path, points).size == (760, 460)
