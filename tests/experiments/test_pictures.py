"""Pictures of arrays: grids, strips, curves, in a style of their own."""

import numpy as np
from PIL import Image

from experiments import pictures
from experiments.data.source import Source

PATH = np.linspace(-1.0, 1.0, 5)[:, None, None, None, None] * np.ones((5, 2, 4, 4, 1))


def test_an_animation_plays_all_steps_for_ever_and_shows_the_last_one_longer(tmp_path):
    pictures.animate_flow(Source("x", (4, 4, 1)), PATH, tmp_path / "flow.webp")
    with Image.open(tmp_path / "flow.webp") as played:
        assert (played.n_frames, played.info["loop"]) == (5, 0)
        durations, centres = [], []
        for frame in range(5):
            played.seek(frame)
            played.load()
            durations.append(played.info["duration"])
            centres.append(np.asarray(played.convert("L"))[played.height // 2, played.width // 4])
    assert durations[-1] > max(durations[:-1])
    assert centres == sorted(set(centres)), "from black to white"


def test_a_strip_has_a_row_per_sample_and_the_numbers_of_its_steps():
    (ax,) = pictures.strips(Source("x", (4, 4, 1)), PATH, 3, "the prior").axes
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", "3", "4"]
    sheet = np.asarray(ax.get_images()[0].get_array())
    assert sheet.shape == (2 * 5, 5 * 5)
    np.testing.assert_array_equal(sheet[0, ::5], [0, 64, 128, 191, 255])
