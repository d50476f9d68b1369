"""All examples run in a small setting and show what they should show."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import (
    analytic_ratio,
    density_chasm,
    improve_generator,
    interpolation,
    nnx_model,
    pretrained_samples,
    table,
)
from fdrl_jax import pretrained

EXAMPLES = Path(density_chasm.__file__).parent


def test_a_stale_analytic_ratio_stops_at_its_target_under_log_d_and_not_under_kl():
    means = analytic_ratio.main()
    np.testing.assert_allclose(means["logd"], [1.0, 1.0], atol=0.2)
    assert min(means["kl"]) > 5.0


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_a_stale_estimator_fails_at_the_chasm_and_flow_guided_training_closes_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(density_chasm, "BATCH_SIZE", 64)
    found = density_chasm.main(["--steps=400", f"--out={tmp_path}"])
    assert json.loads((tmp_path / "density_chasm.json").read_text()) == found
    assert found["stale, near"][0] < 1.0
    assert found["flow-guided, far"][0] < 0.5 * found["stale, far"][0]
    assert (tmp_path / "density_chasm.png").exists()


@pytest.mark.slow
def test_an_nnx_model_learns_a_flow_towards_data():
    distances = nnx_model.main(["--steps=150"])
    assert distances["samples"] < distances["prior"]


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_training_from_a_generators_samples_improves_them(tmp_path, monkeypatch):
    monkeypatch.setattr(improve_generator, "NUM_SAMPLES", 1_000)
    distances = improve_generator.main(["--steps=500", f"--out={tmp_path}"])
    for better in ("trained from its samples", "refined"):
        assert distances[better] < 0.5 * distances["generator"]
    assert json.loads((tmp_path / "improve_generator.json").read_text()) == distances
    assert (tmp_path / "improve_generator.png").exists()


@pytest.mark.slow
def test_digits_of_the_shipped_sampler_are_drawn_to_a_picture_and_points_are_refused(
    tmp_path, capsys
):
    with pytest.raises(SystemExit):
        pretrained_samples.main(["--sampler=swissroll", f"--out={tmp_path}/x.png"])
    assert "--sampler=swissroll draws points" in capsys.readouterr().err
    path = tmp_path / "new" / "digits.png"
    images = pretrained_samples.main(["--num_samples=13", f"--out={path}"])
    assert images.shape == (13, 28, 28, 1)
    assert 0.05 < np.mean(images > 0) < 0.35  # Strokes on a black background.
    with Image.open(path) as picture:
        assert picture.size == (10 * 29 * 3, 2 * 29 * 3)


@pytest.mark.slow
def test_a_path_in_the_prior_ends_at_images_that_change_gradually(tmp_path):
    images = interpolation.main(["--rows=1", f"--out={tmp_path}/new/x.png"])
    assert images.shape == (20, 28, 28, 1)
    steps = np.linalg.norm(np.diff(images[10:], axis=0).reshape(9, -1), axis=1)
    assert steps.max() < 0.7 * np.linalg.norm(images[-1] - images[10])
    assert (tmp_path / "new" / "x.png").exists()


def test_the_newest_evaluations_of_runs_become_a_table(tmp_path, capsys):
    for run, values in (("a", {"fid": 1.23456}), ("b", {"fid": 2.0, "recall": 0.5}), ("c", None)):
        folder = tmp_path / run / "evaluations" / "step_1"
        folder.mkdir(parents=True)
        if values:
            metrics = {name: {"value": value} for name, value in values.items()}
            (folder / "record.json").write_text(json.dumps({"metrics": metrics}))
    found = table.main([str(tmp_path / run) for run in "abc"])
    assert found == "| run | fid | recall |\n|---|---|---|\n| a | 1.235 |  |\n| b | 2 | 0.5 |"
    assert capsys.readouterr().out == f"{found}\n"


def cells(name, kind="code"):
    found = json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shorter"),
    [
        ("first_look", (r"NUM_STEPS = 1_000", "NUM_STEPS = 20")),
        ("density_ratios", (r"(fdrl\.(?:fit_ratio|mutual_information)\(.*)\)$", r"\1)")),
    ],
)
def test_a_notebook_runs_from_top_to_bottom(name, shorter):
    space = {"__name__": "notebook"}
    for cell in cells(name):
        # It may install packages only where they are missing.
        fails = r"\1raise AssertionError('installs a package that is there')"
        source = re.sub(r"^( *)%pip .*$", fails, "".join(cell["source"]), flags=re.M)
        exec(compile(re.sub(*shorter, source, flags=re.M), "cell", "exec"), space)


@pytest.mark.parametrize(("name", "num_pictures"), [("first_look", 6), ("density_ratios", 2)])
def test_notebooks_are_stored_with_small_outputs(name, num_pictures):
    outputs = [output for cell in cells(name) for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == num_pictures
    assert not any(output["output_type"] == "error" for output in outputs)
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 250_000


def test_the_notebook_shows_the_sampler_that_ships_and_the_page_names_each_example():
    text = (EXAMPLES / "first_look.ipynb").read_text()
    assert repr(pretrained("mnist")) in text, "run the notebook again"
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    files = {p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb")} - {"__init__.py"}
    assert [name for name in files if name not in page] == []
