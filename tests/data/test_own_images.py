"""Images of one's own through the whole program."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
from experiments.request import Request
from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir
from image_files import encoded, numbered, picture, write_folder

from configs import folder
from experiments import build, modes
from experiments.build import parts
from experiments.errors import UserError
from experiments.sampling.draw import sample_state
from experiments.training import loop, metrics_log


def config(where, **changes):
    """The tiny folder config with a network that compiles in a second."""
    c = folder.get_config("tiny")
    c.data.dir = str(where)
    c.data.image_size = 8
    c.network.name, c.network.width, c.network.blocks = "resnet", 4, ((4, 2),)
    c.evaluate.num_samples = 16
    for key, value in changes.items():
        section, _, name = key.partition("__")
        c[section][name] = value
    return c.to_dict()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), numbered(60), size=12)


def train(settings, where):
    workdir = Workdir(where)
    workdir.create()
    return loop.train(build.experiment(settings, workdir.prior), workdir, "a command")


def assert_equal_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Images, and the workdir of a streamed run of 4 steps on them with a checkpoint at each."""
    where = write_folder(tmp_path_factory.mktemp("trained") / "images", numbered(60), size=12)
    run = where.parent / "run"
    modes.run(Request("train", streamed(where), run, "a command"))
    return where.parent


def streamed(where, **changes):
    return config(where, data__in_memory_megabytes=0, checkpoint__every_steps=1, **changes)


def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy" / "images", tmp_path / "copy" / "run"


def test_a_folder_trains_samples_and_reports(trained, tmp_path):
    images, run = copied(trained, tmp_path)
    modes.run(Request("sample", streamed(images), run, num_samples=5))
    workdir = Workdir(run)
    assert workdir.report.exists()
    assert "pixel_energy_distance" in json.loads(workdir.evaluation.read_text())["metrics"]
    assert np.load(workdir.samples / "step_4.npz")["arr_0"].shape == (5, 8, 8, 3)


def test_a_run_resumed_from_moved_images_equals_the_uninterrupted_one(trained, tmp_path):
    images, run = copied(trained, tmp_path)
    whole = restored(run, images)
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / str(step))
    train(streamed(images), run)
    assert_equal_bits(restored(run, images), whole)


def restored(run, images):
    experiment = build.experiment(streamed(images), Workdir(run).prior)
    store = Checkpoints(Workdir(run).checkpoints, 9)
    with contextlib.closing(store):
        return store.restore(
            jax.eval_shape(experiment.init_state), experiment.settings, ("data.dir",), 4
        )


def test_a_run_does_not_go_on_with_other_images(trained, tmp_path):
    images, run = copied(trained, tmp_path)
    write_folder(images, ["new.png"])
    with pytest.raises(UserError, match="images were added, removed or renamed"):
        train(streamed(images, train__num_steps=5), run)


def test_the_prior_is_fitted_once_and_again_for_other_data_or_another_transform(tmp_path, capsys):
    where, run = write_folder(tmp_path / "images", numbered(60), size=12), tmp_path / "run"

    def fits(**changes):
        modes.run(Request("prior", config(where, **changes), run))
        return "prior: fitted" in capsys.readouterr().out

    assert fits()
    assert (run / "pictures" / "prior.png").exists()
    assert not fits()
    assert fits(data__center_crop=10)
    assert fits(prior__rank=5)
    assert not fits(prior__rank=5, data__in_memory_megabytes=0)
    (where / "000.png").write_bytes((where / "001.png").read_bytes())
    assert fits(prior__rank=5)


def test_a_damaged_prior_is_fitted_anew(images, tmp_path, capsys, caplog):
    modes.run(Request("prior", config(images), tmp_path))
    Workdir(tmp_path).prior.write_bytes(b"PK cut")
    modes.run(Request("prior", config(images), tmp_path))
    assert capsys.readouterr().out.count("prior: fitted") == 2
    assert "damaged" in caplog.text


def test_streamed_and_stored_images_give_the_same_prior(images):
    kept, streamed = (
        build.experiment(config(images, data__in_memory_megabytes=m)).constants.prior
        for m in (256, 0)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, streamed)


def test_half_of_the_images_are_mirrored_and_the_rest_is_as_stored(images):
    source = build.experiment(config(images)).source
    key, positions = jax.random.key(0), np.arange(54, dtype=np.int32)
    real = np.asarray(source.draw(source.arrays, None, key, positions)["real"])
    levels = np.round((real + 1.0) * 127.5).astype(np.uint8)
    known = {image.tobytes() for image in source.arrays["real"]}
    straight = np.array([image.tobytes() in known for image in levels])
    assert all(image[:, ::-1].tobytes() in known for image in levels[~straight])
    assert 10 < straight.sum() < 44


@pytest.mark.parametrize("megabytes", [0, 256])
def test_a_pair_of_domains_samples_from_the_held_out_source_images(megabytes, tmp_path):
    names = [*numbered(20, "trainA/"), *numbered(30, "trainB/"), *numbered(5, "testA/")]
    where = write_folder(tmp_path / "pair", [*names, *numbered(5, "testB/")])
    changes = {"data__name": "pair", "prior__name": "source", "data__dequantisation": 0.0}
    changes["data__in_memory_megabytes"] = megabytes
    experiment = build.experiment(config(where, **changes))
    state = experiment.init_state()
    started = sample_state(experiment, state, 5).prior
    test_a = {picture(8, 8, 50 + i).tobytes() for i in range(5)}
    assert {np.round((x + 1) * 127.5).astype(np.uint8).tobytes() for x in started} == test_a


def test_a_train_step_on_a_pair_flows_from_source_images(tmp_path):
    where, levels = tmp_path / "pair", {"trainA": 255, "trainB": 0}
    for side, level in levels.items():
        (where / side).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((8, 8, 3), level, np.uint8)
            (where / side / f"{i}.png").write_bytes(encoded(pixels))
    changes = {"data__name": "pair", "prior__name": "source", "train__num_steps": 1}
    changes |= {"log__every_steps": 1, "data__dequantisation": 0.0, "data__in_memory_megabytes": 0}
    # So short that what has flowed is still what the flow started from.
    changes |= {"flow__step_size": 1e-12, "flow__noise_scale": 0.0}
    settings = config(where, **changes)
    train(settings, tmp_path / "run")
    (record,) = metrics_log.read(Workdir(tmp_path / "run").metrics)
    experiment = build.experiment(settings)
    white_and_black = np.stack([np.full((8, 8, 3), level, np.float32) for level in (1.0, -1.0)])
    outputs = experiment.network.apply(experiment.init_state().variables, white_and_black)
    assert not np.isclose(*outputs)
    told = (record["output_flowed"], record["output_real"])
    np.testing.assert_allclose(told, outputs, rtol=1e-4, atol=1e-6)


def test_the_source_prior_needs_a_pair(images):
    with pytest.raises(UserError, match="needs paired domains"):
        build.experiment(config(images, prior__name="source"))


def test_the_environment_may_say_where_the_data_are_and_is_not_stored(images, monkeypatch):
    monkeypatch.setenv("FDRL_DATA_DIR", str(images))
    experiment = build.experiment(config(""))
    assert len(experiment.source.train()) == 54
    assert experiment.settings["data.dir"] == ""


def test_the_network_follows_from_the_size_of_the_images():
    assert [parts.network_for(size) for size in (8, 32, 64, 128, 256)] == [
        "resnet32",
        "resnet32",
        "resnet64",
        "resnet128",
        "resnet128",
    ]


def test_a_look_at_shapes_and_times_fits_no_prior(images, capsys):
    params = build.experiment(config(images), fit_prior=False).constants.prior
    assert params["factor"].shape == (192, 192)
    assert "prior: fitted" not in capsys.readouterr().out
