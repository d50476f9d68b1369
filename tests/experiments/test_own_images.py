"""A folder of images through the whole program."""

import json
import shutil

import jax
import numpy as np
import pytest
from experiments.build.network import _for_image_size
from experiments.modes import creation
from experiments.sampling import curve
from experiments.sampling.draw import batch_size, sample_state
from experiments.sampling.opened import open_checkpoint
from experiments.training import metrics_log
from image_files import encoded, numbered, picture, write_folder
from small_runs import SMALL_RESNET, command, start, train

from experiments import build, run, settings
from experiments.errors import UserError

CONFIG = "folder:tiny"
STREAMED = {"data.in_memory_megabytes": 0}


def changes(where, **more):
    """Small images and a network that compiles in a second."""
    small = {"data.dir": where, "data.image_size": 8, "evaluate.num_samples": 16}
    return small | SMALL_RESNET | more


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), numbered(60), size=12)


@pytest.fixture(scope="module")
def trained_on(images, tmp_path_factory):
    """Images, and a run of 4 steps on them, streamed, with a checkpoint at each step."""
    where = tmp_path_factory.mktemp("trained")
    shutil.copytree(images, where / "images")
    every = {"checkpoint.every_steps": 1, "checkpoint.keep": 9}
    start("train", where / "run", CONFIG, changes(where / "images", **every, **STREAMED))
    return where


@pytest.fixture
def copied(trained_on, tmp_path):
    shutil.copytree(trained_on, tmp_path / "copy")
    return tmp_path / "copy" / "images", tmp_path / "copy" / "run"


def built(where, **more):
    wanted = settings.checked(command("dry_run", None, CONFIG, changes(where, **more)).config)
    source = creation.load_data(wanted)
    return build.experiment(wanted, source)


def last_state(folder):
    return open_checkpoint(command("sample", folder, checkpoint=4)).checkpoint.state


def assert_equal_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_folder_trains_samples_and_reports(copied):
    images, folder = copied
    shutil.rmtree(images)
    start("sample", folder, num_samples=5)
    created = run.open_run(folder)
    assert created.report.exists()
    record = json.loads((created.evaluations / "step_4" / "record.json").read_text())
    assert "frechet_random_conv_3" in record["metrics"]
    assert "Only 6 held-out images are stored: " in created.report.read_text()
    assert np.load(created.samples / "step_4.npz")["arr_0"].shape == (5, 8, 8, 3)


def test_a_run_resumed_from_moved_images_equals_the_uninterrupted_one(copied):
    images, folder = copied
    whole = last_state(folder)
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / str(step))
    train(folder, {"data.dir": images.rename(images.with_name("moved"))})
    assert_equal_bits(last_state(folder), whole)


def test_a_prior_is_fitted_once_and_never_again(images, tmp_path, capsys):
    folder = tmp_path / "run"
    start("prior", folder, CONFIG, changes(images))
    assert "prior: fitted to 54 examples" in capsys.readouterr().out
    assert (folder / "pictures" / "prior.png").exists()
    before = (folder / "prior.npz").read_bytes()
    start("prior", folder)
    assert "prior: fitted" not in capsys.readouterr().out
    for change in ({"data.center_crop": 10}, {"prior.rank": 5}):
        with pytest.raises(UserError, match="differs from the run"):
            start("prior", folder, None, change)
    assert (folder / "prior.npz").read_bytes() == before


def test_streamed_and_stored_images_give_the_same_prior(images, tmp_path):
    fitted = []
    for name, more in (("stored", {}), ("streamed", STREAMED)):
        start("prior", tmp_path / name, CONFIG, changes(images, **more))
        fitted.append(run.open_run(tmp_path / name).prior())
    np.testing.assert_allclose(fitted[0].mean, fitted[1].mean, atol=1e-6)
    np.testing.assert_allclose(fitted[0].factor, fitted[1].factor, atol=1e-6)


def num_mirrored(source):
    """Draws each of the 54 training images once; all must be stored ones or their mirror images."""
    key, positions = jax.random.key(0), np.arange(54, dtype=np.int32)
    real = np.asarray(source.draw(source.arrays, None, key, positions)["real"])
    levels = np.round((real + 1.0) * 127.5).astype(np.uint8)
    known = {image.tobytes() for image in source.arrays["real"]}
    mirrored = np.array([image.tobytes() not in known for image in levels])
    assert all(image[:, ::-1].tobytes() in known for image in levels[mirrored])
    return mirrored.sum()


@pytest.mark.parametrize("asked", [{}, {"data.random_flip": False}, {"data.random_flip": True}])
def test_your_images_are_mirrored_only_if_you_ask_for_it(asked, images, tmp_path):
    expected = asked.get("data.random_flip", False)
    wanted = command("train", tmp_path / "run", CONFIG, changes(images, **asked))
    with run.locked_folder(wanted.folder):
        created, experiment = creation.create_or_resume(wanted)
    record = json.loads((created.root / "run.json").read_text())
    assert record["settings"]["data.random_flip"] is expected
    num = num_mirrored(experiment.source)
    assert 10 < num < 44 if expected else num == 0


@pytest.mark.parametrize("megabytes", [0, 256])
def test_a_pair_of_domains_samples_from_the_held_out_source_images(megabytes, tmp_path):
    names = [*numbered(20, "trainA/"), *numbered(30, "trainB/"), *numbered(5, "testA/")]
    where = write_folder(tmp_path / "pair", [*names, *numbered(5, "testB/")])
    pair = {"data.name": "pair", "prior.name": "source", "data.dequantisation": 0.0}
    experiment = built(where, **pair, **{"data.in_memory_megabytes": megabytes})
    state = build.ratio_training(experiment).init_state()
    started = sample_state(experiment, state, 5, num_prior=5).prior
    test_a = {picture(8, 8, 50 + i).tobytes() for i in range(5)}
    assert {np.round((x + 1) * 127.5).astype(np.uint8).tobytes() for x in started} == test_a


def test_a_train_step_on_a_pair_flows_from_source_images(tmp_path):
    where, levels = tmp_path / "pair", {"trainA": 255, "trainB": 0}
    for side, level in levels.items():
        (where / side).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((8, 8, 3), level, np.uint8)
            (where / side / f"{i}.png").write_bytes(encoded(pixels))
    pair = {"data.name": "pair", "prior.name": "source", "train.num_steps": 1, **STREAMED}
    pair |= {"log.every_steps": 1, "data.dequantisation": 0.0}
    # So short that flowed samples still equal their start.
    pair |= {"flow.step_size": 1e-12, "flow.noise_scale": 0.0}
    train(tmp_path / "run", changes(where, **pair), CONFIG)
    (record,) = metrics_log.read(tmp_path / "run" / "metrics.jsonl")
    experiment = open_checkpoint(command("sample", tmp_path / "run")).experiment
    white_and_black = np.stack([np.full((8, 8, 3), level, np.float32) for level in (1.0, -1.0)])
    variables = build.ratio_training(experiment).init_state().variables
    outputs = experiment.network.apply(variables, white_and_black)
    assert not np.isclose(*outputs)
    logged = (record["output_flowed"], record["output_real"])
    np.testing.assert_allclose(logged, outputs, rtol=1e-4, atol=1e-6)
    num, batches = experiment.source.starts.num, {"evaluate.batch_size": 6}
    assert num % batch_size(experiment, 6)
    start("sample", tmp_path / "run", None, batches, num_samples=num)
    opened = open_checkpoint(command("curve", tmp_path / "run", None, batches))
    assert [length for length, _ in curve.over_length(opened, (0, 1), num)] == [0, 1]
    with pytest.raises(UserError, match=f"stores only {num} images of the source domain"):
        start("sample", tmp_path / "run", None, batches, num_samples=num + 1)


def test_the_source_prior_needs_a_pair(images):
    with pytest.raises(UserError, match="needs paired domains"):
        built(images, **{"prior.name": "source"})


def test_the_network_depends_on_the_size_of_the_images():
    sizes = {8: "resnet32", 32: "resnet32", 64: "resnet64", 128: "resnet128", 256: "resnet128"}
    assert {size: _for_image_size(size) for size in sizes} == sizes


def test_building_fits_no_prior_and_prints_nothing(images, capsys):
    experiment = built(images)
    assert experiment.settings["prior.name"] == "data_dependent"
    assert experiment.constants.prior["factor"].shape == (192, 192)
    assert capsys.readouterr() == ("", "")
