"""The pictures: written, of the stated size, and showing the numbers that they are given."""

import itertools
from unittest.mock import Mock

import pytest
import torch
from PIL import Image, ImageColor, ImageDraw
from runs import split

from blockdrop_min.lab.data import Split
from blockdrop_min.lab.pictures import COLOURS, LONGEST, along, extremes, ticks, tradeoff

WHITE = (255, 255, 255)
LEFT, TOP, RIGHT, BOTTOM = 80, 44, 780, 500  # of the axes of a trade-off picture


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def faces(tmp_path, part, u, classes, **options):
    extremes(part, u, classes, tmp_path / "faces.png", **options)
    return opened(tmp_path / "faces.png")


def plot(tmp_path, series):
    """The picture of name -> (FLOPs, accuracy), or a list of them."""
    series = {n: spots if isinstance(spots, list) else [spots] for n, spots in series.items()}
    tradeoff(series, tmp_path / "plot.png")
    return opened(tmp_path / "plot.png")


def coloured(image, i):
    """The pixels (x, y) of the i-th colour between the axes of a plot."""
    colour = ImageColor.getrgb(COLOURS[i])
    pixels = image.load()
    inside = [(x, y) for x in range(LEFT - 9, RIGHT) for y in range(TOP - 9, BOTTOM + 9)]
    return [place for place in inside if pixels[place] == colour]


def centre(image, i):
    """The middle [x, y] of what has the i-th colour: its one mark."""
    found = coloured(image, i)
    return [(min(axis) + max(axis)) / 2 for axis in zip(*found, strict=True)]


def written(monkeypatch, draw):
    """The texts that draw() writes, each with the middle (x, y) of its box, from the first on."""
    texts = []
    draw_text = ImageDraw.ImageDraw.text

    def noting(self, place, text, fill, font, anchor):
        left, top, right, bottom = self.textbbox(place, text, font, anchor=anchor)
        texts.append((text, ((left + right) / 2, (top + bottom) / 2)))
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


# --------------------------------------------------------------------------------------- extremes
def test_the_fewest_blocks_stand_on_the_left_and_the_most_on_the_right(tmp_path):
    part, u = grey_ladder(6)
    image = faces(tmp_path, part, u, ["grey"], each=2)
    places = (28, 60 + 28, 136 + 28, 136 + 60 + 28)
    seen = [image.getpixel((150 + x, 34 + 28))[0] for x in places]
    assert seen == [0, 20, 80, 100]  # images 0 and 1 of six, then 4 and 5


def test_each_half_has_its_heading_and_each_face_its_number_of_blocks(tmp_path, monkeypatch):
    part, u = grey_ladder(6)
    texts = written(monkeypatch, lambda: faces(tmp_path, part, u, ["grey"], each=2))
    across = [text for text, _ in sorted(texts, key=lambda found: found[1][0])]
    assert across == ["grey", "0", "fewest blocks", "1", "4", "most blocks", "5"]


def test_the_name_of_a_class_stands_escaped_beside_its_row_of_faces(tmp_path, monkeypatch):
    draw = lambda: faces(tmp_path, split(9, classes=3), torch.ones(9, 3), ["a\nb", "c", "d"])  # noqa: E731
    texts = dict(written(monkeypatch, draw))
    places = [texts[name][1] for name in (r"a\nb", "c", "d")]
    assert places == pytest.approx([34 + 76 * row + 28 for row in range(3)], abs=4)


def test_a_thousand_classes_make_a_picture_of_4000_pixels_at_most(tmp_path):
    names = [f"class {i}" for i in range(1000)]
    image = faces(tmp_path, split(2000, classes=1000), torch.ones(2000, 3), names)
    assert 3900 < max(image.size) <= LONGEST == 4000


def test_images_that_are_read_from_files_are_shown_too(tmp_path):
    part, u = grey_ladder(6)
    streamed = Split([(image, 0) for image in part.images], part.labels)
    one, other = (faces(tmp_path, images, u, ["grey"]) for images in (part, streamed))
    assert one.tobytes() == other.tobytes()


def test_classes_with_few_images_or_none_show_those_they_have(tmp_path):
    part, u = grey_ladder(3)
    image = faces(tmp_path, part, u, ["grey", "none"], each=5)
    assert image.getpixel((150 + 2 * 60 + 28, 34 + 28))[0] == 40
    assert image.getpixel((150 + 3 * 60 + 28, 34 + 28)) == WHITE
    assert image.getpixel((150 + 28, 34 + 76 + 28)) == WHITE


# --------------------------------------------------------------------------------------- trade-off
def test_half_the_errors_are_a_step_up_and_twice_the_flops_a_step_to_the_right(tmp_path):
    image = plot(tmp_path, {"cheap": (1e8, 0.92), "dear": (2e8, 0.96), "dearest": (4e8, 0.98)})
    (x, y), (dear_x, dear_y), (dearest_x, dearest_y) = (centre(image, i) for i in range(3))
    assert dear_x - x == pytest.approx(dearest_x - dear_x, abs=2) and dear_x - x > 20
    assert y - dear_y == pytest.approx(dear_y - dearest_y, abs=2) and y - dear_y > 20


def test_a_point_lies_where_the_numbers_beside_the_axes_say(tmp_path, monkeypatch):
    series = {"corner": (1e8, 0.5), "here": (2e8, 0.9)}
    texts = dict(written(monkeypatch, lambda: plot(tmp_path, series)))
    x, y = centre(opened(tmp_path / "plot.png"), 1)
    assert texts["200"][0] == pytest.approx(x, abs=2) and texts["200"][1] > BOTTOM
    assert texts["90"][1] == pytest.approx(y, abs=4) and texts["90"][0] < LEFT
    assert "accuracy % against million FLOPs an image, policy network included" in texts


def test_the_spots_of_a_series_are_joined_in_their_order_and_the_first_series_is_on_top(tmp_path):
    image = plot(tmp_path, {"line": [(1e8, 0.8), (4e8, 0.95)], "between": (2e8, 0.9)})
    # 2 lies half way from 1 to 4, and 10 from 20 to 5, on logarithmic axes.
    x, y = centre(image, 1)
    found = coloured(image, 0)
    (left, low), (right, high) = min(found), max(found)
    assert left < x < right and low > y > high
    assert any(abs(a - x - 20) <= 1 and abs(b - y) < 40 for a, b in found)
    same = plot(tmp_path, {"ours": (1e8, 0.9), "rival": (1e8, 0.9)})
    assert coloured(same, 0) and not coloured(same, 1)


def test_the_marks_of_a_series_bear_its_number_in_the_legend(tmp_path, monkeypatch):
    series = {"ours": [(1e8, 0.8), (4e8, 0.95)], "rival": (2e8, 0.5)}
    texts = written(monkeypatch, lambda: plot(tmp_path, series))
    rows = {text: y for text, (_, y) in texts if text in series}
    image = opened(tmp_path / "plot.png")
    for number, name, i in (("1", "ours", 0), ("2", "rival", 1)):
        places = [place for text, place in texts if text == number]
        assert len(places) == (3 if name == "ours" else 2)  # its spots, and the legend
        assert places[-1][1] == pytest.approx(rows[name], abs=4) and rows[name] > BOTTOM
        legend = [image.getpixel((x, round(rows[name]))) for x in range(LEFT - 12, LEFT + 12)]
        assert ImageColor.getrgb(COLOURS[i]) in legend
    assert rows["ours"] < rows["rival"]


def test_the_lines_of_an_axis_are_round_numbers_around_all_values():
    assert ticks([81.1, 35.0]) == [20, 50, 100]
    assert ticks([0.7, 18.0]) == [0.5, 1, 2, 5, 10, 20]
    assert ticks([50.0]) == [20, 50, 100]
    places = [along(v, [1, 10, 100], 100, 300) for v in (1, 10, 100)]
    assert places == pytest.approx([100, 200, 300])


@pytest.mark.parametrize(("accuracy", "error"), [(0.0, 99.9), (1.0, 0.05)])
def test_no_and_all_predictions_right_are_points_of_the_tradeoff_too(tmp_path, accuracy, error):
    image = plot(tmp_path, {"one": (1e6, accuracy)})
    height = along(error, ticks([error]), TOP, BOTTOM)
    assert centre(image, 0)[1] == pytest.approx(height, abs=2)


def test_the_tradeoff_has_room_for_all_names(tmp_path, monkeypatch):
    series = {f"name {i}": (1e6, 0.5) for i in range(11)}
    places = dict(written(monkeypatch, lambda: plot(tmp_path, series)))
    rows = [places[name][1] for name in series]
    assert min(b - a for a, b in itertools.pairwise(rows)) > 20
    assert rows[-1] + 10 < opened(tmp_path / "plot.png").height


def test_colours_differ_for_those_who_see_no_red_or_no_green():
    # A rough simulation: red and green fall together. Then brightness or blue must differ.
    seen = [((red + green) / 2, blue) for red, green, blue in map(ImageColor.getrgb, COLOURS)]
    for (yellow, blue), (y, b) in itertools.combinations(seen, 2):
        assert abs(yellow - y) + abs(blue - b) > 25


# ------------------------------------------------------------------------------------------- both
def test_text_is_readable_when_the_picture_is_400_pixels_wide(tmp_path, monkeypatch):
    part, u = grey_ladder(6)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text := Mock())
    for image in (plot(tmp_path, {"one": (1e8, 0.5)}), faces(tmp_path, part, u, ["grey"])):
        sizes = [call.args[3].size for call in text.call_args_list]
        assert min(sizes) * 400 / image.width >= 8.5
