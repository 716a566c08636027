"""Figures hold what they were given, and leave nothing open."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image

import editbook
from editbook import plot
from editbook.bench import drawn_tasks
from editbook.errors import EditbookError
from editbook.inversion import Gap
from editbook.pocket import bench

HEAT = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)


@pytest.fixture(autouse=True)
def _nothing_stays_open():
    yield
    assert not plt.get_fignums()


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def test_pictures_stand_in_order_in_a_grid(picture):
    figure = plot.pictures([picture, HEAT, picture], ["a", "b", "c"], columns=2)
    assert titles(figure) == ["a", "b", "c", ""]
    shown = [axis.images[0].get_array() for axis in figure.axes[:3]]
    assert np.array_equal(shown[0], np.asarray(picture))
    assert np.array_equal(shown[1], HEAT)
    assert not figure.axes[3].images
    assert len(plot.pictures([picture] * 3).axes) == 3


def test_heat_is_drawn_on_the_scale_from_zero_to_one():
    figure = plot.pictures([HEAT / 2])
    assert figure.axes[0].images[0].get_clim() == (0, 1)


def test_a_truth_has_a_green_frame(picture):
    figure = plot.pictures([picture, picture], ["edit", "truth"], truth=[1])
    colours = [axis.spines["left"].get_edgecolor() for axis in figure.axes]
    assert colours[1] == to_rgba(plot.TRUTH) != colours[0]
    assert figure.axes[1].axison
    assert not figure.axes[0].axison


def test_no_pictures_raise():
    with pytest.raises(EditbookError, match="no pictures"):
        plot.pictures([])


def test_an_edit_row_shows_the_truth_last(picture):
    edit = editbook.Edit(picture, picture, mask=HEAT, settings={"method": "img2img"})
    assert titles(plot.edit_row(edit, picture)) == ["source", "mask", "img2img", "exact truth"]
    assert titles(plot.edit_row(edit)) == ["source", "mask", "img2img"]


def test_an_overlay_is_bright_where_the_map_is():
    black = Image.new("RGB", (64, 64))
    laid = np.asarray(plot.overlay(HEAT, black), float)
    assert laid.shape == (256, 256, 3)
    assert laid[-16:].mean() > laid[:16].mean() + 50
    assert np.array_equal(np.asarray(plot.overlay(HEAT, black, 0.0)), np.zeros((256, 256, 3)))


def test_heat_takes_a_map_with_or_without_a_picture(picture):
    assert plot.heat(HEAT, title="cat").axes[0].images[0].get_array().shape == (8, 8)
    assert plot.heat(HEAT, picture, "cat").axes[0].images[0].get_array().shape == (256, 256, 3)


def test_both_sides_of_equation_9_are_drawn():
    terms = torch.ones(5, 1, 4, 4, 4)
    gap = Gap(terms.cumsum(0), terms.cumsum(0), terms, torch.zeros_like(terms), [900, 700, 500, 300, 100])
    figure = plot.eq9({"w = 1": gap, "w = 7.5": gap})
    axis = figure.axes[0]
    drawn = [line for line in axis.lines if len(line.get_xdata())]
    assert len(drawn) == 4
    assert axis.xaxis_inverted()
    np.testing.assert_allclose(drawn[0].get_ydata(), drawn[1].get_ydata())
    np.testing.assert_allclose(drawn[0].get_ydata(), [1, 2, 3, 4, 5])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["w = 1", "w = 7.5", "left side", "right side"]


def test_whole_numbers_get_whole_ticks():
    def ticks(x):
        return plot.curves(x, {"a": [float(value) for value in x]}, "step", "y").axes[0].get_xticks()

    assert all(tick == int(tick) for tick in ticks(range(11)))
    assert all(tick == int(tick) for tick in ticks(np.arange(3)))
    assert any(tick != int(tick) for tick in ticks([0.0, 0.5, 1.0]))


def test_curves_are_named_only_if_there_are_several():
    one = plot.curves([1, 2], {"a": [1, 2]}, "x", "y").axes[0]
    two = plot.curves([1, 2], {"a": [1, 2], "b": [2, 4]}, "x", "y", logarithmic=True).axes[0]
    assert one.get_legend() is None
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["a", "b"]
    assert two.get_xscale() == two.get_yscale() == "log"


def test_a_short_logarithmic_axis_says_more_than_its_powers_of_ten():
    short = plot.curves([1, 2], {"a": [0.04, 0.6]}, "x", "y", logarithmic=True)
    long = plot.curves([1, 2], {"a": [1e-6, 1]}, "x", "y", logarithmic=True)
    for figure, expected in ((short, {0.05, 0.1, 0.2, 0.5}), (long, {1e-6, 1e-4, 1e-2, 1})):
        figure.canvas.draw()
        ticks = {float(f"{tick:.1g}") for tick in figure.axes[0].get_yticks()}
        assert expected <= ticks
    assert 0.2 not in {float(f"{tick:.1g}") for tick in long.axes[0].get_yticks()}


def test_a_matrix_has_its_names_on_both_axes():
    axis = plot.matrix(np.eye(2, 3), ["a", "b"], ["x", "y", "z"], "M").axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "b"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["x", "y", "z"]


def test_words_draws_the_picture_and_each_map(random_model, picture):
    edit = editbook.edit(random_model, None, source="a cat", target="a fox", steps=1)
    assert titles(plot.words(edit.attention, ["a", "fox"], picture, row=1)) == ["picture", "a", "fox"]


def test_source_is_the_code_without_docstrings():
    text = plot.source(plot.frame).data
    assert text.startswith("```python\ndef frame(")
    assert '"""' not in text
    assert "set_color" in text or "spine.set" in text
    whole = plot.source(editbook.methods["img2img"]).data
    assert "def __call__" in whole
    assert '"""' not in whole


def test_the_front_of_a_scatter_is_what_nothing_beats():
    points = {"cheap": (10.0, 0.2), "good": (100.0, 0.9), "beaten": (100.0, 0.3), "worse": (200.0, 0.9)}
    axis = plot.scatter(points, "NFE", "success").axes[0]
    line = axis.lines[-1]
    assert list(zip(*line.get_data(), strict=True)) == [points["cheap"], points["good"]]
    assert {text.get_text() for text in axis.texts} == set(points)


def test_names_of_a_scatter_cover_neither_each_other_nor_a_point():
    points = {f"an entry of the table {k}": (100.0 + 5 * (k // 2), 0.9 + 0.004 * (k % 2)) for k in range(5)}
    points["far away"] = (1000.0, 0.2)
    figure = plot.scatter(points, "NFE", "success")
    figure.draw_without_rendering()
    axis = figure.axes[0]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert all(not box.count_overlaps(boxes[:k]) for k, box in enumerate(boxes))
    at = axis.transData.transform(list(points.values()))
    assert not any(box.contains(*point) for box in boxes for point in at)
    assert all(axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 for box in boxes)


def test_tasks_stand_between_source_and_truth_and_a_refused_one_is_white(picture):
    tasks = [bench().task(name) for name in drawn_tasks(1)[:2]]
    made = {"an-entry": {tasks[0].id: picture}, "other": {task.id: picture for task in tasks}}
    figure = plot.task_grid(tasks, made)
    assert titles(figure)[:4] == [tasks[0].edit_type, "an-\nentry", "other", "exact truth"]
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert np.array_equal(shown[4], np.asarray(tasks[1].source_image))
    assert (shown[5] == 1).all()
    assert np.array_equal(shown[7], np.asarray(tasks[1].truth))
    assert figure.axes[7].spines["left"].get_edgecolor() == to_rgba(plot.TRUTH)


def test_a_table_of_pictures_has_its_names_at_the_edges_and_white_where_there_is_none(picture):
    figure = plot.picture_table(["a", "b"], ["x", "y", "z"], {("a", "x"): picture, ("b", "z"): picture})
    axes = figure.axes
    assert [bool(axis.images) for axis in axes] == [True, False, False, False, False, True]
    assert [axis.get_ylabel() for axis in axes] == ["a", "", "", "b", "", ""]
    assert [axis.get_title("left") for axis in axes] == ["x", "y", "z", "", "", ""]


def test_correspondences_join_the_points_of_two_pictures_of_any_size(picture):
    small = np.zeros((8, 16))
    matches = [((0.25, 0.5), [(0.5, 0.25), (1.0, 1.0)], torch.tensor([0.6, 0.3])), ((0.5, 0.5), [(0.0, 0.0)], [1.0])]
    figure = plot.correspondences(picture, small, matches, ("new", "old"))
    assert titles(figure) == ["new", "old"]
    asking, answering = ([line.get_xydata()[0].tolist() for line in axis.lines] for axis in figure.axes)
    assert asking == [[15.5, 31.5], [31.5, 31.5]]
    assert answering == [[7.5, 1.5], [15.5, 7.5], [-0.5, -0.5]]
    widths = [patch.get_linewidth() for patch in figure.artists]
    assert len(widths) == 3
    assert widths[0] == widths[2] > widths[1]
    with pytest.raises(EditbookError, match="Match 1 has 1 points and 2 weights"):
        plot.correspondences(picture, small, [matches[0], ((0, 0), [(0, 0)], [1.0, 2.0])])
    with pytest.raises(EditbookError, match="0 points"):
        plot.correspondences(picture, small, [((0, 0), [], [])])
