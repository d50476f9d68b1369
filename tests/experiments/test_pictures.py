"""Pictures of arrays: grids, strips, curves."""

import numpy as np
import pytest

from experiments.evaluation.metrics import Estimate, Metric
from experiments.pictures import curves, flow, images


def test_a_grid_of_few_images_is_at_the_top_below_its_title():
    many, few = np.zeros((100, 8, 8, 1)), np.zeros((6, 8, 8, 1))
    figure = images.side_by_side({"samples": many, "data": few})
    assert [ax.get_anchor() for ax in figure.axes] == ["N", "N"]
    assert [ax.title.get_position()[0] for ax in figure.axes] == [0.5, 0.3]


def test_a_strip_has_a_row_per_sample_and_the_numbers_of_its_steps():
    path = np.linspace(-1.0, 1.0, 5)[:, None, None, None, None] * np.ones((5, 2, 4, 4, 1))
    (ax,) = flow.strips(path, 3, "the prior").axes
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", "3", "4"]
    sheet = np.asarray(ax.get_images()[0].get_array())
    assert sheet.shape == (2 * 5, 5 * 5)
    np.testing.assert_array_equal(sheet[0, ::5], [0, 64, 128, 191, 255])


def test_the_marks_of_a_curve_do_not_overlap_and_its_axis_is_in_words():
    points = [(at, Metric("frechet_svc_9", "frechet", Estimate(1.0 + at))) for at in range(9)]
    (ax,) = curves.metric(points, "title", "length", {"$K$": 6, "$K+2$": 8}).axes
    assert [text.get_ha() for text in ax.texts] == ["right", "left"]
    assert ax.get_ylabel().startswith("Fréchet distance")


def test_the_best_of_a_curve_is_the_lowest_number():
    values = (float("nan"), 2.0, 1.0, 3.0)
    metrics = [Metric("metric", "frechet", Estimate(value)) for value in values]
    assert curves.best_of(list(enumerate(metrics)))[0] == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_tiled_row_by_row_with_white_gaps(channels):
    grey = np.arange(5)[:, None, None, None] / 5 * np.ones((5, 2, 3, channels))
    sheet = images.tile(grey, 2)
    assert sheet.shape == (3 * 3, 2 * 4, channels)
    assert sheet[0, 0, 0] < sheet[0, 4, 0] < sheet[3, 0, 0] < 255
    assert (sheet[2] == 255).all()
    assert (sheet[6:, 4:] == 255).all(), "the missing sixth image"
