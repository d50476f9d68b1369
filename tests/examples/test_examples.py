"""All examples run in a small setting and show what they should show."""

import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import (
    analytic_ratio,
    density_chasm,
    improve_generator,
    nnx_model,
    pretrained_samples,
    stale_and_guided,
)
from fdrl_jax import pretrained

EXAMPLES = Path(density_chasm.__file__).parent
CASES = [f"{case.training}, {case.prior}" for case in stale_and_guided.CASES]


def test_a_stale_analytic_ratio_stops_at_its_target_under_log_d_and_not_under_kl():
    means = analytic_ratio.main([])
    np.testing.assert_allclose(means["logd"], [1.0, 1.0], atol=0.2)
    assert min(means["kl"]) > 5.0


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_a_stale_estimator_fails_at_the_chasm_and_flow_guided_training_closes_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(density_chasm, "STEPS_BETWEEN_LOOKS", 500)
    monkeypatch.setattr(density_chasm, "BATCH_SIZE", 64)
    density_chasm.main([f"--out={tmp_path}"])
    numbers = json.loads((tmp_path / "density_chasm.json").read_text())
    near, far = numbers["stale, near"], numbers["stale, far"]
    assert near["energy_distance"] < near["of_prior"]["energy_distance"]
    assert far["energy_distance"] > 1.0
    looks = [look["energy_distance"] for look in numbers["flow-guided, far"]["course"]]
    assert looks[0] > 10.0
    assert looks[-1] < 0.1
    assert (tmp_path / "density_chasm.png").exists()


@pytest.mark.slow
def test_several_seeds_give_a_median_and_a_range_and_samples_early_in_training(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(density_chasm, "NUM_SAMPLES", 40)
    monkeypatch.setattr(density_chasm, "BATCH_SIZE", 16)
    monkeypatch.setattr(density_chasm, "SHOWN_STEPS", (2, 3))
    result = density_chasm.main(["--steps=4", "--seeds", "0", "1", "2", f"--out={tmp_path}"])
    last = capsys.readouterr().out.splitlines()[2]
    kls = sorted(end["kl"] for end in result["flow-guided, far"]["by_seed"].values())
    assert len({*kls}) == 3
    expected = f"KL {kls[1]:.3f} ({kls[0]:.3f} to {kls[2]:.3f})"
    assert expected in last
    course = result["flow-guided, far"]["course"]
    assert [look["train_step"] for look in course] == [0, 2, 3, 4]
    assert (tmp_path / "density_chasm.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_a_stale_estimator_separates_prior_and_data_and_guided_training_stays_hard(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(stale_and_guided, "NUM_SAMPLES", 40)
    argv = ["--steps=60", "--flow_steps=6", "--seeds", "0", f"--out={tmp_path}"]
    found = stale_and_guided.main(argv)
    loss = {name: np.mean(found[name][0]["course"]["loss"][-10:]) for name in CASES}
    assert loss["stale, uniform"] < loss["stale, data-dependent"]
    assert loss["stale, uniform"] < 0.2
    for prior in ("uniform", "data-dependent"):
        assert loss[f"flow-guided, {prior}"] > loss[f"stale, {prior}"]
    of_data = found["stale, uniform"][0]["course"]["on data"]
    assert np.mean(of_data[-10:]) < -3.0  # The estimator is certain, far from the true ratio.
    (from_prior, *_) = found["stale, data-dependent"][0]["frechet"]
    assert from_prior == found["flow-guided, data-dependent"][0]["frechet"][0] > found["real"]
    assert json.loads((tmp_path / "stale_and_guided.json").read_text())["lengths"] == [
        0,
        3,
        6,
        12,
        24,
    ]
    assert (tmp_path / "stale_and_guided.png").exists()


def test_images_of_a_zip_are_read_in_a_fixed_order_on_the_scale_of_the_flow(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for level in (0, 100, 255):
            with archive.open(f"a/{level}.png", "w") as file:
                Image.new("L", (4, 3), level).save(file, "PNG")
        archive.writestr("a/notes.txt", "no image")
    images = stale_and_guided.read_images(tmp_path / "x.zip", 100)
    assert images.shape == (3, 3, 4, 1)
    assert sorted(images[:, 0, 0, 0].tolist()) == pytest.approx([-1.0, 100 / 127.5 - 1.0, 1.0])
    np.testing.assert_array_equal(images, stale_and_guided.read_images(tmp_path / "x.zip", 100))


def test_the_divergence_of_a_gaussian_fit_is_that_of_its_closed_form():
    samples = density_chasm.target_samples(0.0)
    samples = (samples - samples.mean(axis=0)) @ np.linalg.inv(
        np.linalg.cholesky(np.cov(samples.T))
    )
    moved = 2.0 * density_chasm.STD * samples.astype(np.float64) + 0.5
    variance = np.cov(moved.T)
    expected = 0.5 * (
        np.trace(variance) / 0.1 + 0.5 / 0.1 - 2 - math.log(np.linalg.det(variance) / 0.01)
    )
    assert density_chasm.gaussian_kl(moved, 0.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_an_nnx_model_learns_a_flow_towards_data():
    distances = nnx_model.main(["--steps=150"])
    assert distances["samples"] < distances["prior"]


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_training_from_a_generators_samples_improves_them_and_the_default_refinement_does_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(improve_generator, "NUM_SAMPLES", 1_000)
    with pytest.warns(UserWarning, match="refinement moved the samples by"):
        distances = improve_generator.main(["--steps=500", f"--out={tmp_path}"])

    assert distances["trained from its samples"] < 0.5 * distances["generator"]
    assert distances["refined, default settings"] > distances["generator"]
    assert json.loads((tmp_path / "improve_generator.json").read_text()) == distances
    assert (tmp_path / "improve_generator.png").exists()


def without_magic(cell):
    """The code of a cell; it may install packages only where they are missing."""
    fails = r"\1raise AssertionError('installs a package that is there')"
    return re.sub(r"^( *)%pip .*$", fails, "".join(cell["source"]), flags=re.M)


@pytest.mark.slow
def test_digits_of_the_shipped_sampler_are_drawn_to_a_picture(tmp_path):
    path = tmp_path / "new" / "digits.png"
    images = pretrained_samples.main(["--num_samples=13", f"--out={path}"])
    assert images.shape == (13, 28, 28, 1)
    # Strokes on a black background.
    assert 0.05 < np.mean(images > 0) < 0.35
    with Image.open(path) as picture:
        assert picture.size == (10 * 29 * 3, 2 * 29 * 3)


def test_a_sampler_of_points_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pretrained_samples.main(["--sampler=swissroll", f"--out={tmp_path}/x.png"])
    assert "--sampler=swissroll draws points" in capsys.readouterr().err


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom():
    cells = json.loads((EXAMPLES / "first_look.ipynb").read_text())["cells"]
    code = [without_magic(cell) for cell in cells if cell["cell_type"] == "code"]
    space = {"__name__": "notebook"}
    for source in code:
        exec(compile(source.replace("NUM_STEPS = 1_000", "NUM_STEPS = 20"), "cell", "exec"), space)
    assert space["path"].shape == (61, 2_000, 2)
    assert len(space["distances"]) == 10


@pytest.mark.slow
def test_the_notebook_of_ratios_runs_from_top_to_bottom():
    cells = json.loads((EXAMPLES / "density_ratios.ipynb").read_text())["cells"]
    space = {"__name__": "notebook"}
    for cell in cells:
        if cell["cell_type"] == "code":
            short = r"\1, num_steps=20)"
            call = r"(fdrl\.(?:fit_ratio|mutual_information)\(.*)\)$"
            source = re.sub(call, short, without_magic(cell), flags=re.M)
            exec(compile(source, "cell", "exec"), space)
    assert space["weights"].shape == (3_000,)
    assert space["information"].ratio.num_steps <= 20


@pytest.mark.parametrize(
    ("name", "num_pictures", "words"),
    [("first_look", 6, "energy distance"), ("density_ratios", 2, "effective sample size")],
)
def test_notebooks_are_stored_with_small_outputs(name, num_pictures, words):
    text = (EXAMPLES / f"{name}.ipynb").read_text()
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == num_pictures
    assert any(words in "".join(output.get("text", ())) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    assert len(text) < 250_000


def test_the_outputs_of_the_notebook_are_of_the_sampler_that_ships():
    text = (EXAMPLES / "first_look.ipynb").read_text()
    assert repr(pretrained("mnist")) in text, "run the notebook again"


def test_the_index_names_every_example():
    index = (EXAMPLES / "README.md").read_text()
    files = {p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb")} - {"__init__.py"}
    assert all(name in index for name in files), files
