"""Flow strips and interpolations: drawn from a run, with noise that the points of a path share."""

import numpy as np
import pytest
from experiments.request import Request
from experiments.storage.workdir import Workdir

from experiments import build, modes
from experiments.errors import UserError
from experiments.pictures import flow, images
from experiments.training import loop


@pytest.fixture(scope="module")
def of_digits(tiny, tmp_path_factory):
    workdir = Workdir(tmp_path_factory.mktemp("digits"))
    workdir.create()
    loop.train(build.experiment(tiny("digits")), workdir, "a command")
    return workdir


@pytest.mark.parametrize("mode", ["strips", "interpolate"])
def test_a_run_on_images_gives_the_picture(of_digits, tiny, capsys, mode):
    modes.run(Request(mode, tiny("digits"), of_digits.root))
    path = capsys.readouterr().out.split("picture: ")[1].strip()
    assert path.endswith(".png")
    assert (of_digits.pictures / path.split("/")[-1]).exists()


def test_the_points_of_a_path_share_their_noise_and_its_ends_are_samples_of_the_prior(
    tiny, monkeypatch
):
    sheets = {}
    monkeypatch.setattr(images, "interpolations", sheets.update)
    # Without a drift all that moves the points is the noise.
    config = tiny("digits", {"flow.step_size": 1e-12, "flow.noise_scale": 0.5})
    experiment = build.experiment(config)
    flow.interpolations(experiment, experiment.init_state())
    for start, end in sheets.values():
        noise = end - start
        np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1], noise.shape), atol=1e-5)
        assert not np.allclose(noise[0], noise[1], atol=0.1)
    (spherical, _), (linear, _) = sheets["spherical"], sheets["linear"]
    np.testing.assert_allclose(spherical[:, [0, -1]], linear[:, [0, -1]], atol=1e-5)


def test_figures_of_images_are_refused_for_points(tiny):
    experiment = build.experiment(tiny())
    for draw in (flow.flow_strip, flow.interpolations):
        with pytest.raises(UserError, match="'swissroll' are points"):
            draw(experiment, experiment.init_state())
