"""A folder of images through the whole program."""

import shutil

import jax
import numpy as np
import pytest
from image_files import encoded, numbered, picture, write_folder
from small_runs import SMALL_RESNET, command, start, train

from experiments import draw, log, run
from experiments.data import stored
from experiments.errors import UserError

CONFIG = "folder:tiny"
CLEAN = {"data.dequantisation": 0.0, "network.denoiser_width": 0}
PAIR = {"data.name": "pair", "prior.name": "source", **CLEAN}


def changes(where, **more):
    """Small images and a network that compiles in a second."""
    small = {"data.dir": where, "data.image_size": 8, "evaluate.num_samples": 16}
    return small | SMALL_RESNET | more


@pytest.fixture
def streamed(monkeypatch):
    """No set of images is small enough to be kept in memory."""
    monkeypatch.setattr(stored, "MAX_IN_MEMORY_BYTES", 0)


@pytest.mark.usefixtures("streamed")
def test_a_run_samples_without_its_images_and_resumes_with_moved_but_not_with_other_ones(tmp_path):
    images, folder = write_folder(tmp_path / "images", numbered(60), size=12), tmp_path / "run"
    every = {"checkpoint.every_steps": 1, "checkpoint.keep": 9}
    start("train", folder, CONFIG, changes(images, **every))
    created = run.open_run(folder)
    assert "No verdict: only 6 held-out images" in created.report.read_text()
    moved = images.rename(images.with_name("moved"))
    start("sample", folder, num_samples=5)
    (samples,) = created.samples.glob("*.npz")
    assert np.load(samples)["arr_0"].shape == (5, 8, 8, 3)
    whole = run.open_checkpoint(command("sample", folder)).state
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / str(step))
    again = train(folder, {"data.dir": moved})
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, again), whole)
    for change, error in (({"data.center_crop": 10}, "center_crop"), ({"prior.rank": 5}, "rank")):
        with pytest.raises(UserError, match=error):
            train(folder, {"data.dir": moved, **change})
    (moved / "000.png").write_bytes(encoded(picture(12, 12, 99)))
    with pytest.raises(UserError, match="renamed or replaced since the run"):
        train(folder, {"data.dir": moved})


@pytest.mark.slow
@pytest.mark.parametrize("levels", [(0, 255), (40,) * 20], ids=["2", "equal"])
def test_few_or_equal_images_train_and_sample_and_their_report_says_what_is_missing(
    levels, tmp_path
):
    where, folder = tmp_path / "images", tmp_path / "run"
    where.mkdir()
    for i, level in enumerate(levels):  # The covariance of constant images is singular.
        (where / f"{i}.png").write_bytes(encoded(np.full((8, 8, 3), level, np.uint8)))
    start("train", folder, CONFIG, changes(where, **{"train.batch_size": 64}))
    start("sample", folder, num_samples=1)
    (samples,) = (folder / "samples").glob("*.npz")
    assert np.load(samples)["arr_0"].shape == (1, 8, 8, 3)
    assert "held-out image" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("streamed")
def test_a_pair_flows_from_source_images_held_out_ones_first(tmp_path):
    where, folder, levels = tmp_path / "pair", tmp_path / "run", {"A": 255, "B": 0}
    for side, level in levels.items():
        (where / f"train{side}").mkdir(parents=True)
        for i in range(20):
            pixels = np.full((8, 8, 3), level, np.uint8)
            (where / f"train{side}" / f"{i}.png").write_bytes(encoded(pixels))
    write_folder(where, [*numbered(5, "testA/"), *numbered(5, "testB/")])
    # So short that flowed samples still equal their start.
    short = {"flow.step_size": 1e-12, "flow.noise_scale": 0.0, "train.num_steps": 1}
    train(folder, changes(where, **PAIR, **short, **{"log.every_steps": 1}), CONFIG)
    opened = run.open_checkpoint(command("sample", folder))
    started = draw.sample_state(opened.experiment, opened.state, 5, num_prior=5).prior
    held_out = {picture(8, 8, i).tobytes() for i in range(5)}
    assert {np.round((x + 1) * 127.5).astype(np.uint8).tobytes() for x in started} == held_out
    (record,) = log.read(folder / "metrics.jsonl")
    white_and_black = np.stack([np.full((8, 8, 3), level, np.float32) for level in (1.0, -1.0)])
    outputs = opened.experiment.network.apply(
        opened.experiment.init_state().variables, white_and_black
    )
    assert not np.isclose(*outputs)
    logged = (record["output_flowed"], record["output_real"])
    np.testing.assert_allclose(logged, outputs, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="stores only 25 images to start from"):
        start("sample", folder, num_samples=26)
