"""The pictures: written, of the stated size, and showing the numbers that they are given."""

from itertools import pairwise

import pytest
import torch
from helpers import rng
from PIL import Image, ImageColor, ImageDraw
from runs import split

from blockdrop_min.lab import pictures
from blockdrop_min.lab.data import Split
from blockdrop_min.lab.pictures import (
    COLOURS,
    LONGEST,
    PUBLISHED,
    along,
    answers,
    cross,
    extremes,
    keep_rates,
    label,
    overlap,
    ticks,
    tradeoff,
)

DARK = (8, 48, 107)
WHITE = (255, 255, 255)
LEFT, TOP, RIGHT, BOTTOM = 80, 44, 780, 500  # of the axes of a trade-off picture


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def heat(tmp_path, u, labels, classes=("cat", "dog"), name="heat.png"):
    keep_rates(torch.tensor(u).float(), torch.tensor(labels), classes, tmp_path / name)
    return opened(tmp_path / name)


def cell(image, c, k):
    """The colour in the middle of the cell of class c and block k."""
    return image.getpixel((160 + 28 * k + 13, 64 + 28 * c + 13))


def faces(tmp_path, part, u, classes, name="faces.png", **options):
    extremes(part, u, classes, tmp_path / name, **options)
    return opened(tmp_path / name)


def plot(tmp_path, points, lines=None, name="plot.png"):
    """The picture of points name -> (FLOPs, accuracy), or a list of them, one for each run."""
    points = {n: runs if isinstance(runs, list) else [runs] for n, runs in points.items()}
    tradeoff(points, tmp_path / name, lines or {})
    return opened(tmp_path / name)


def coloured(image, i):
    """The pixels (x, y) of the i-th colour between the axes of a plot."""
    colour = ImageColor.getrgb(COLOURS[i])
    pixels = image.load()
    inside = [(x, y) for x in range(LEFT, RIGHT) for y in range(TOP - 9, BOTTOM + 9)]
    return [place for place in inside if pixels[place] == colour]


def centre(image, i):
    """The middle [x, y] of the widest rows of what has the i-th colour: its marker."""
    found = coloured(image, i)
    return [(min(axis) + max(axis)) / 2 for axis in zip(*found, strict=True)]


def written(monkeypatch, draw):
    """The texts that draw() writes: text -> the box that it covers, or a list of (text, box)."""
    texts = []
    draw_text = ImageDraw.ImageDraw.text

    def noting(self, place, text, fill, font, anchor):
        texts.append((text, self.textbbox(place, text, font, anchor=anchor)))
        draw_text(self, place, text, fill, font, anchor=anchor)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", noting)
        draw()
    return texts


def grey_ladder(count):
    """Images of one class, ever brighter; image i keeps i blocks of `count`."""
    images = (torch.arange(count) * 20).to(torch.uint8).view(-1, 1, 1, 1)
    images = images.expand(-1, 3, 8, 8).contiguous()
    return Split(images, torch.zeros(count, dtype=torch.int64)), torch.ones(count, count).tril(-1)


# ---------------------------------------------------------------------------------------- by hand
def test_a_block_that_a_class_always_keeps_is_dark_and_one_that_it_never_keeps_white(tmp_path):
    image = heat(tmp_path, [[1, 0], [1, 0], [0, 1]], [0, 0, 1])
    cells = [[cell(image, c, k) for k in (0, 1)] for c in (0, 1)]
    assert cells == [[DARK, WHITE], [WHITE, DARK]]


def test_a_keep_rate_of_one_half_is_half_way_between_white_and_dark(tmp_path):
    image = heat(tmp_path, [[1, 1], [0, 1], [1, 1]], [0, 0, 1])
    assert cell(image, 0, 0) == tuple(round((255 + dark) / 2) for dark in DARK)


def test_the_fewest_blocks_stand_on_the_left_and_the_most_on_the_right(tmp_path):
    part, u = grey_ladder(6)
    image = faces(tmp_path, part, u, ["grey"], each=2)
    places = (28, 60 + 28, 136 + 28, 136 + 60 + 28)
    shown = [image.getpixel((150 + x, 34 + 28))[0] for x in places]
    assert shown == [0, 20, 80, 100]  # images 0 and 1 of six, then 4 and 5


def test_the_number_below_a_face_is_its_number_of_blocks(tmp_path, monkeypatch):
    part, u = grey_ladder(6)
    texts = written(monkeypatch, lambda: faces(tmp_path, part, u, ["grey"], each=2))
    numbers = [(text, box[0]) for text, box in texts if text.isdigit()]
    assert [text for text, _ in sorted(numbers, key=lambda number: number[1])] == list("0145")


def test_answers_stand_in_the_order_of_their_blocks(tmp_path, monkeypatch):
    part, _ = grey_ladder(3)
    answered = list(zip(part.images, [7, 2, 5], ["seven", "two", "five"], strict=True))
    path = tmp_path / "a.png"
    texts = written(monkeypatch, lambda: answers(answered, path))
    assert [text for text, _ in texts] == ["2 two", "5 five", "7 seven"]
    shown = [opened(path).getpixel((130 * place + 60, 30))[0] for place in range(3)]
    assert shown == [20, 40, 0]


def test_half_the_errors_are_a_step_up_and_twice_the_flops_a_step_to_the_right(tmp_path):
    points = {"cheap": (1e8, 0.92), "dear": (2e8, 0.96), "dearest": (4e8, 0.98)}
    image = plot(tmp_path, points)
    # Colours other than black, which the labels have, too.
    (x, y), (dearest_x, dearest_y) = centre(image, 1), centre(image, 2)
    cheap = along(100, ticks([100, 400]), LEFT, RIGHT), along(8, ticks([2, 8]), TOP, BOTTOM)
    assert x - cheap[0] == pytest.approx(dearest_x - x, abs=2) and x - cheap[0] > 20
    assert cheap[1] - y == pytest.approx(y - dearest_y, abs=2) and cheap[1] - y > 20


def test_a_point_lies_where_the_numbers_beside_the_axes_say(tmp_path, monkeypatch):
    points = {"corner": (1e8, 0.5), "here": (2e8, 0.9)}
    texts = dict(written(monkeypatch, lambda: plot(tmp_path, points)))
    x, y = centre(opened(tmp_path / "plot.png"), 1)
    assert (texts["200"][0] + texts["200"][2]) / 2 == pytest.approx(x, abs=2)
    assert (texts["90"][1] + texts["90"][3]) / 2 == pytest.approx(y, abs=4)
    assert texts["200"][1] > BOTTOM and texts["90"][2] < LEFT


def test_the_numbers_beside_the_axes_are_those_of_their_lines(tmp_path, monkeypatch):
    texts = dict(written(monkeypatch, lambda: plot(tmp_path, {"one": (3e8, 0.93)})))
    assert {"200", "500", "90", "95"} <= set(texts)
    assert texts["200"][0] < texts["500"][0] and texts["95"][1] < texts["90"][1]


def test_several_runs_are_a_point_at_their_mean_with_bars_of_a_deviation():
    # FLOPs 2, 4, 6: mean 4, deviation 2. Errors 10, 10, 10: no bar.
    line = cross([(2.0, 10.0), (4.0, 10.0), (6.0, 10.0)])
    assert line == [(4, 10), (2, 10), (6, 10), (4, 10), (4, 10), (4, 10)]


def test_a_single_run_has_no_bars():
    assert set(cross([(3.0, 7.0)])) == {(3, 7)}


def test_bars_are_drawn_as_far_as_the_deviation_reaches(tmp_path):
    runs = [(1e8, 0.9), (1e8, 0.7)]
    image = plot(tmp_path, {"black": (1e8, 0.85), "several": runs})
    ys = [y for _, y in coloured(image, 1)]
    axis = ticks([15, 20 - 200**0.5, 20 + 200**0.5])  # errors 10 and 30: 20 +- 14.1
    assert min(ys) == pytest.approx(along(20 - 200**0.5, axis, TOP, BOTTOM), abs=3)
    assert max(ys) == pytest.approx(along(20 + 200**0.5, axis, TOP, BOTTOM), abs=3)


def test_the_lines_of_an_axis_are_round_numbers_around_all_values():
    assert ticks([81.1, 35.0]) == [20, 50, 100]
    assert ticks([0.7, 18.0]) == [0.5, 1, 2, 5, 10, 20]
    assert ticks([50.0]) == [20, 50, 100]


@pytest.mark.parametrize(("value", "pixel"), [(1, 100), (10, 200), (100, 300)])
def test_a_logarithmic_axis_by_hand(value, pixel):
    assert along(value, [1, 10, 100], 100, 300) == pytest.approx(pixel)


# ------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize(
    ("num_blocks", "width"), [(2, 480), (15, 160 + 28 * 15 + 20), (54, 160 + 14 * 54 + 20)]
)
def test_the_heat_map_has_a_cell_for_each_class_and_block(tmp_path, num_blocks, width):
    image = heat(tmp_path, [[1] * num_blocks, [0] * num_blocks], [0, 1])
    assert image.size == (width, 64 + 2 * 28 + 14)


@pytest.mark.parametrize("classes", [1, 4])
def test_the_extremes_have_a_row_for_each_class(tmp_path, classes):
    part = split(12 * classes, classes=classes)
    image = faces(tmp_path, part, torch.ones(12 * classes, 3), ["name"] * classes)
    assert image.size == (150 + 2 * 5 * 60 + 24, 34 + 76 * classes)


def test_a_thousand_classes_and_blocks_make_pictures_of_4000_pixels_at_most(tmp_path):
    part = split(2000, classes=1000)
    u = torch.ones(2000, 300)
    names = [f"class {i}" for i in range(1000)]
    keep_rates(u, part.labels, names, tmp_path / "heat.png")
    extremes(part, u, names, tmp_path / "faces.png")
    answers([(image, 1, "name") for image in part.images], tmp_path / "answers.png")
    for name in ("heat.png", "faces.png", "answers.png"):
        assert max(opened(tmp_path / name).size) <= LONGEST == 4000


def test_names_beside_a_thousand_classes_do_not_cover_each_other(tmp_path, monkeypatch):
    names = [f"class {i}" for i in range(1000)]
    labels = torch.arange(1000)
    path = tmp_path / "heat.png"
    texts = written(monkeypatch, lambda: keep_rates(torch.ones(1000, 3), labels, names, path))
    boxes = [box for text, box in texts if text.startswith("class")]
    assert len(boxes) > 50
    assert not any(overlap(a, b) for a, b in pairwise(boxes))


def test_the_name_of_a_class_stands_beside_its_row(tmp_path, monkeypatch):
    path = tmp_path / "heat.png"
    u, labels = torch.eye(3), torch.arange(3)
    texts = written(monkeypatch, lambda: keep_rates(u, labels, ["a", "b", "c"], path))
    image = opened(path)
    for name, k in (("a", 0), ("b", 1), ("c", 2)):
        box = next(box for text, box in texts if text == name)
        middle = round((box[1] + box[3]) / 2)
        assert image.getpixel((160 + 28 * k + 13, middle)) == DARK


@pytest.mark.parametrize(("num_blocks", "step"), [(3, 1), (20, 5), (54, 5)])
def test_the_number_of_a_block_stands_above_its_column(tmp_path, monkeypatch, num_blocks, step):
    path = tmp_path / "heat.png"
    u, labels = torch.eye(num_blocks), torch.arange(num_blocks)
    names = [f"class {i}" for i in range(num_blocks)]
    texts = written(monkeypatch, lambda: keep_rates(u, labels, names, path))
    image = opened(path)
    for k in range(0, num_blocks, step):
        box = next(box for text, box in texts if text == str(k))
        assert image.getpixel((round((box[0] + box[2]) / 2), 64 + 28 * k + 13)) == DARK


def test_the_tradeoff_has_its_size(tmp_path):
    assert plot(tmp_path, {"one": (1e6, 0.5)}).size == (800, 560)


def test_other_keep_rates_give_another_heat_map(tmp_path):
    one, other = (heat(tmp_path, [[1, 0], u], [0, 1]) for u in ([0, 1], [1, 1]))
    assert one.tobytes() != other.tobytes()


def test_other_images_and_other_counts_give_other_extremes(tmp_path):
    u = (torch.rand(20, 6, generator=rng(0)) < 0.5).float()
    cases = [(0, u), (1, u), (0, 1 - u)]
    drawn = [faces(tmp_path, split(20, seed, classes=2), policy, "ab") for seed, policy in cases]
    assert len({picture.tobytes() for picture in drawn}) == 3


def test_other_numbers_and_other_names_give_another_tradeoff(tmp_path):
    base = {"ours": (1e8, 0.9), "rival": (2e8, 0.8)}
    others = [base | {"ours": (1e8, 0.91)}, base | {"ours": (1.2e8, 0.9)}]
    others.append({"ours": (1e8, 0.9), "other": (2e8, 0.8)})
    assert len({plot(tmp_path, points).tobytes() for points in (base, *others)}) == 4


def test_a_line_is_drawn_on_the_same_axes_as_the_points(tmp_path):
    lines = {"theirs": [(0.5e8, 0.8), (2e8, 0.95)]}
    image = plot(tmp_path, {"black": (4e8, 0.5), "ours": (1e8, 0.9)}, lines)
    line = coloured(image, 2)
    (left, low), (right, high) = min(line), max(line)
    assert centre(image, 1) == pytest.approx([(left + right) / 2, (low + high) / 2], abs=4)
    assert low > high


def test_each_point_and_line_has_a_label_near_it(tmp_path, monkeypatch):
    points = {"black": (4e8, 0.5), "ours": (1e8, 0.9)}
    texts = dict(written(monkeypatch, lambda: plot(tmp_path, points, {"line": [(2e8, 0.7)]})))
    x, y = centre(opened(tmp_path / "plot.png"), 1)
    left, top, right, bottom = texts["ours"]
    assert left - 25 < x < right + 25 and top - 25 < y < bottom + 25
    assert {"black", "ours", "line"} <= set(texts)


@pytest.mark.parametrize("seed", range(6))
def test_labels_cover_no_other_label_and_no_point_and_stay_in_the_frame(monkeypatch, seed):
    spots = 80 + 420 * torch.rand(12, 2, generator=rng(seed))
    spots = [(x, y) for x, y in spots.tolist()] + [(779, 45), (81, 499)]  # and two corners
    labels = [(f"policy number {i}", x, y) for i, (x, y) in enumerate(spots)]
    image, draw = pictures.canvas(800, 560)
    frame = (LEFT, TOP, RIGHT, BOTTOM)
    texts = written(monkeypatch, lambda: label(draw, labels, spots, frame))
    boxes = [box for _, box in texts]
    assert len(boxes) == 14 and image.size == (800, 560)
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= LEFT and right <= RIGHT and top >= TOP and bottom <= BOTTOM
        assert not any(overlap(boxes[i], other) for other in boxes[:i])
        assert not any(left < x < right and top < y < bottom for x, y in spots)


def test_text_is_readable_when_the_picture_is_400_pixels_wide(tmp_path, monkeypatch):
    part, u = grey_ladder(6)
    draws = [
        lambda: plot(tmp_path, {"one": (1e8, 0.5)}),
        lambda: faces(tmp_path, part, u, ["grey"], name="plot.png"),
        lambda: heat(tmp_path, [[1] * 54, [0] * 54], [0, 1], name="plot.png"),
        lambda: heat(tmp_path, [[1] * 9, [0] * 9], [0, 1], name="plot.png"),
    ]
    sizes = []
    write = pictures.write
    monkeypatch.setattr(
        pictures,
        "write",
        lambda draw, place, text, size=18, anchor="lm": (
            sizes.append(size) or write(draw, place, text, size, anchor)
        ),
    )
    for draw in draws:
        sizes.clear()
        draw()
        assert min(sizes) * 400 / opened(tmp_path / "plot.png").width >= 8.5


def test_colours_differ_for_those_who_see_no_red_or_no_green():
    # A rough simulation: red and green fall together. Then brightness or blue must differ.
    seen = []
    for colour in COLOURS:
        red, green, blue = ImageColor.getrgb(colour)
        seen.append(((red + green) / 2, blue))
    for i, (yellow, blue) in enumerate(seen):
        assert all(abs(yellow - y) + abs(blue - b) > 25 for y, b in seen[:i])


def test_the_papers_points_are_those_of_its_text():
    assert PUBLISHED["BlockDrop, paper"][-1] == (1.83e8, 0.936)
    assert PUBLISHED["ResNet, paper"][-1] == (5.06e8, 0.932)
    every = [point for series in PUBLISHED.values() for point in series]
    assert all(0.5e8 < flops < 5.1e8 and 0.9 < accuracy < 0.94 for flops, accuracy in every)


def test_a_picture_that_cannot_be_written_leaves_what_stood_there(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError("No space left on device")

    heat(tmp_path, [[1, 0]], [0])
    before = (tmp_path / "heat.png").read_bytes()
    monkeypatch.setattr(pictures, "write_safely", full)
    with pytest.raises(OSError, match="No space"):
        heat(tmp_path, [[0, 1]], [0])
    assert (tmp_path / "heat.png").read_bytes() == before


# ------------------------------------------------------------------------------------------ edges
@pytest.mark.parametrize(("accuracy", "error"), [(0.0, 99.9), (1.0, 0.05)])
def test_no_and_all_predictions_right_are_points_of_the_tradeoff_too(tmp_path, accuracy, error):
    image = plot(tmp_path, {"black": (1e6, accuracy), "one": (1e6, accuracy), "b": (9e6, accuracy)})
    height = along(error, ticks([error]), TOP, BOTTOM)
    assert centre(image, 1)[1] == pytest.approx(height, abs=2)


def test_a_class_with_fewer_images_than_places_shows_those_it_has(tmp_path):
    part, u = grey_ladder(3)
    image = faces(tmp_path, part, u, ["grey"], each=5)
    assert image.getpixel((150 + 2 * 60 + 28, 34 + 28))[0] == 40


def test_a_class_without_images_leaves_its_row_empty(tmp_path):
    part, u = grey_ladder(3)
    image = faces(tmp_path, part, u, ["grey", "none"])
    assert image.getpixel((150 + 28, 34 + 76 + 28)) == WHITE


def test_a_class_without_images_is_white_in_the_heat_map(tmp_path):
    assert cell(heat(tmp_path, [[1, 1]], [0]), 1, 0) == WHITE


def test_images_that_are_read_from_files_are_shown_too(tmp_path):
    part, u = grey_ladder(6)
    streamed = Split([(image, 0) for image in part.images], part.labels)
    cases = [(part, "a.png"), (streamed, "b.png")]
    shown = [faces(tmp_path, images, u, ["grey"], name).tobytes() for images, name in cases]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "points", [{"one": (1e6, 1.0)}, {"a": (1e6, 0.5), "b": (1e6, 0.5)}, {"none": (1e6, 0.0)}]
)
def test_points_that_fall_together_can_be_drawn(tmp_path, points):
    assert plot(tmp_path, points).size == (800, 560)
