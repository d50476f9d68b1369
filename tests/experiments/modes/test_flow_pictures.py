"""Flow strips and interpolations of a run; the points of a path share their noise."""

import numpy as np
import pytest
from small_runs import start

from experiments import build
from experiments.errors import UserError
from experiments.modes import creation
from experiments.pictures import flow, images


def untrained(wanted):
    experiment = build.experiment(wanted, creation.load_data(wanted))
    return experiment, build.ratio_training(experiment).init_state()


@pytest.mark.parametrize(("mode", "name"), [("strips", "strips"), ("interpolate", "interpolation")])
def test_a_run_on_images_produces_the_picture(of_digits, capsys, mode, name):
    start(mode, of_digits.root)
    path = of_digits.pictures / f"{name}.png"
    assert capsys.readouterr().out == f"picture: {path}\n"
    assert path.stat().st_size > 1_000


def test_a_grid_of_few_images_is_at_the_top_below_its_title():
    many, few = np.zeros((100, 8, 8, 1)), np.zeros((6, 8, 8, 1))
    figure = images.side_by_side({"samples": many, "data": few})
    assert [ax.get_anchor() for ax in figure.axes] == ["N", "N"]
    assert [ax.title.get_position()[0] for ax in figure.axes] == [0.5, 0.3]


def test_a_picture_of_too_many_strips_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--num_samples=65: .* at most 64 rows"):
        start("strips", tmp_path, num_samples=65)


def test_the_points_of_a_path_share_their_noise_and_its_ends_are_samples_of_the_prior(
    tiny, monkeypatch
):
    sheets = {}
    monkeypatch.setattr(images, "interpolations", sheets.update)
    # Without a drift, only the noise moves the points.
    wanted = tiny("digits", {"flow.step_size": 1e-12, "flow.noise_scale": 0.5})
    flow.interpolations(*untrained(wanted))
    for first, last in sheets.values():
        noise = last - first
        np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1], noise.shape), atol=1e-5)
        assert not np.allclose(noise[0], noise[1], atol=0.1)
    (spherical, _), (linear, _) = sheets["spherical"], sheets["linear"]
    np.testing.assert_allclose(spherical[:, [0, -1]], linear[:, [0, -1]], atol=1e-5)


def test_figures_of_images_are_refused_for_points(tiny):
    for draw in (flow.flow_strip, flow.interpolations):
        with pytest.raises(UserError, match="'swissroll' are points"):
            draw(*untrained(tiny()))
