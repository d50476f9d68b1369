"""The shipped samplers draw good samples, and samplers load by name, folder and repository."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import fdrl_jax as fdrl
from fdrl_jax.metrics import energy_distance, frechet_distance, random_conv_features
from fdrl_jax.training import rng

SHIPPED = Path(fdrl.__file__).parent / "pretrained"
NAMES = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
# By name, `random_conv_features` of 128 images that the sampler was not trained on.
REAL = Path(__file__).parents[1] / "golden" / "features_of_real_images.npz"
MAX_BYTES = 3_200_000
KEY = rng.root_key(5)


@pytest.fixture(scope="module")
def swissroll():
    return fdrl.pretrained("swissroll")


def test_shipped_samplers_are_small_and_described():
    assert NAMES == ["cifar10", "digits", "mnist", "swissroll"]
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*/*")) < MAX_BYTES
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    for name in NAMES:
        assert f"| `{name}` |" in page
        assert "license: unknown" not in (SHIPPED / name / "README.md").read_text()


@pytest.mark.usefixtures("optimised")
def test_points_of_the_swiss_roll_are_on_all_of_it(swissroll):
    angle = np.linspace(1.5 * np.pi, 4.5 * np.pi, 1_000)
    roll = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1) / 7.5
    sigma = 0.25 / 7.5

    def nearest(x):
        gaps = np.linalg.norm(np.asarray(x)[:, None] - roll, axis=-1)
        return gaps.min(axis=1), gaps.argmin(axis=1)

    gaps, places = nearest(swissroll(KEY, 2_000))
    assert np.mean(gaps < 4.0 * sigma) > 0.97
    # Data are uniform in the angle.
    assert np.histogram(places, 10, (0, 1_000))[0].min() > 100
    assert np.mean(nearest(swissroll.prior(KEY, 2_000))[0] < 4.0 * sigma) < 0.6


@pytest.mark.usefixtures("optimised")
def test_digits_are_close_to_real_ones_where_a_classifier_sees_them():
    images, labels = load_digits(return_X_y=True)
    judge = SVC().fit(images[::2], labels[::2])

    def features(x):
        return judge.decision_function(8.0 * (x.reshape(len(x), -1) + 1.0))

    real = judge.decision_function(images[1::2])
    sampler = fdrl.pretrained("digits")
    samples, prior = (features(np.asarray(draw(KEY, 400))) for draw in (sampler, sampler.prior))
    distances = [frechet_distance(x, real) for x in (samples, prior)]
    assert distances[0] < 0.5 * distances[1], distances
    # How far the best class is ahead of the second.
    of_samples, of_prior, of_real = (
        np.mean(np.diff(np.sort(x)[:, -2:])) for x in (samples, prior, real)
    )
    assert of_samples > 0.5 * (of_prior + of_real)


@pytest.mark.usefixtures("optimised")
def test_images_of_mnist_are_far_closer_to_real_ones_than_the_prior():
    with np.load(REAL) as stored:
        real = stored["mnist"].astype(np.float32)
    sampler = fdrl.pretrained("mnist")
    samples, prior = (
        energy_distance(random_conv_features(np.asarray(draw(KEY, 64))), real)
        for draw in (sampler, sampler.prior)
    )
    assert samples < 0.1 * prior


@pytest.mark.usefixtures("optimised")
def test_images_of_cifar10_have_edges_and_the_prior_has_none():
    def kurtosis(images):
        gaps = np.diff(np.asarray(images), axis=1)
        return np.mean(gaps**4) / np.mean(gaps**2) ** 2

    sampler = fdrl.pretrained("cifar10")
    # This guards against a broken file and does not measure quality. The kurtosis is 3 for a
    # Gaussian and 7.5 for 64 real images, because most pixels are like their neighbours; here it is
    # 3.5 for the prior and 8.4 for the samples.
    assert kurtosis(sampler.prior(KEY, 64)) < 4.0
    assert 5.5 < kurtosis(sampler(KEY, 64)) < 10.0


def test_samples_start_at_the_prior_and_depend_only_on_the_key_and_their_index(swissroll):
    samples = swissroll(KEY, 9)
    np.testing.assert_allclose(swissroll(KEY, 9, batch_size=4), samples, rtol=1e-4, atol=1e-5)
    path = swissroll.path(KEY, 9)
    assert path.shape == (121, 9, 2)
    np.testing.assert_allclose(path[0], swissroll.prior(KEY, 9), rtol=1e-6)
    np.testing.assert_allclose(path[-1], samples, rtol=1e-4, atol=1e-5)
    assert not np.allclose(swissroll(rng.root_key(6), 9), samples)


def test_the_flow_is_compiled_once_per_size():
    sampler = fdrl.pretrained("swissroll")
    for seed in range(3):
        sampler(jax.random.key(seed), 10, batch_size=4)
    sampler(jax.random.PRNGKey(0), 4)
    assert sampler._draw._cache_size() == 1


def test_the_parts_of_a_sampler_give_its_samples(swissroll):
    root = rng.stream_key(KEY, rng.Stream.SAMPLE)
    keys = rng.example_keys(root, rng.Stream.FLOW, jnp.arange(5))
    x0 = swissroll.prior(KEY, 5)
    samples = swissroll.method.sample(keys, x0, swissroll.estimator)
    np.testing.assert_allclose(samples, swissroll(KEY, 5), rtol=1e-4, atol=1e-5)


def test_the_log_ratio_is_large_away_from_data_and_small_on_samples(swissroll):
    on_samples = swissroll.log_ratio(swissroll(KEY, 500))
    away = swissroll.log_ratio(swissroll.prior(KEY, 500))
    assert on_samples.shape == (500,)
    assert abs(float(jnp.mean(on_samples))) < 0.03 < float(jnp.mean(away))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((KEY, 0), "num_samples must be .* got 0"),
        ((KEY, 2.0), r"num_samples must be .* got 2\.0"),
        ((7, 3), "key must be a JAX key, .* got int 7"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, swissroll):
    with pytest.raises((ValueError, TypeError), match=message):
        swissroll(*arguments)


def test_a_path_needs_a_positive_number_of_samples(swissroll):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        swissroll.path(KEY, 0)


def test_an_unknown_name_lists_the_allowed_ones_and_the_closest():
    with pytest.raises(ValueError, match=r"no sampler 'swisroll'; did you mean 'swissroll'\?"):
        fdrl.pretrained("swisroll")
    with pytest.raises(ValueError, match=f"Allowed: {', '.join(NAMES)}, the folder of an export"):
        fdrl.pretrained("zebra")


def copied(folder, config=None, arrays=None):
    """Writes a sampler with changes to a folder."""
    found = json.loads((SHIPPED / "swissroll" / "config.json").read_text()) | (config or {})
    found = {key: value for key, value in found.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(found))
    stored = safetensors.numpy.load_file(SHIPPED / "swissroll" / "model.safetensors")
    safetensors.numpy.save_file({**stored, **(arrays or {})}, folder / "model.safetensors")
    return folder


def test_a_folder_is_loaded_and_arrays_of_8_bits_are_multiplied_by_their_factors(
    tmp_path, swissroll
):
    name = "network/params/mlp_0/kernel"
    eighth = {name: np.full((2, 64), 4, np.int8), f"{name}.scale": np.linspace(0, 1, 64)}
    sampler = fdrl.pretrained(copied(tmp_path, arrays=eighth))
    kernel = sampler.variables["params"]["mlp_0"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, np.tile(np.linspace(0, 4, 64), (2, 1)), rtol=1e-6)


def test_a_folder_that_is_not_an_export_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"not a sampler .* wrote: .*config\.json"):
        fdrl.pretrained(tmp_path)
    copied(tmp_path, {"network": None})
    with pytest.raises(ValueError, match=r"config\.json has no network"):
        fdrl.pretrained(tmp_path)
    copied(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"it has no model\.safetensors"):
        fdrl.pretrained(str(tmp_path))


def test_ratios_combinations_and_other_priors_are_supported(tmp_path):
    changes = {
        "divergence": [[0.5, 0.5], ["kl", "js"]],
        "prior": {"name": "uniform", "event_shape": [2]},
    }
    sampler = fdrl.pretrained(copied(tmp_path, changes))
    assert sampler.problem.divergence.name == "0.5*kl + 0.5*js"
    x0 = np.asarray(sampler.prior(KEY, 100))
    assert -1.0 <= x0.min() < -0.9
    of_ratio = fdrl.pretrained(copied(tmp_path, {"loss": "lsif", "divergence": "pearson"}))
    assert of_ratio.method.output == "ratio"
    expected = np.log(np.maximum(np.asarray(of_ratio.estimator(x0)), 1e-6))
    np.testing.assert_allclose(of_ratio.log_ratio(x0), expected, rtol=1e-4, atol=1e-5)


def test_a_sampler_that_translates_images_needs_them(tmp_path):
    sampler = fdrl.pretrained(copied(tmp_path, {"prior": {"name": "batch"}}))
    with pytest.raises(ValueError, match="starts from images, not from a prior"):
        sampler(KEY, 3)
    assert sampler.method.sample(KEY, np.zeros((3, 2)), sampler.estimator).shape == (3, 2)


def test_a_repository_is_loaded_from_the_hub(monkeypatch):
    asked = []

    def snapshot_download(repository, *, allow_patterns):
        asked.append((repository, allow_patterns))
        if repository == "nobody/nothing":
            raise RuntimeError("404 Not Found\nRequest ID: 1")
        return str(SHIPPED / "swissroll")

    fake = ModuleType("huggingface_hub")
    fake.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert fdrl.pretrained("someone/swissroll").event_shape == (2,)
    assert asked == [("someone/swissroll", ["config.json", "model.safetensors"])]
    with pytest.raises(OSError, match=r"'nobody/nothing'.*Hub: 404 Not Found$"):
        fdrl.pretrained("nobody/nothing")


def test_the_package_for_the_hub_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match="pip install huggingface_hub"):
        fdrl.pretrained("someone/swissroll")


def test_the_prior_of_labels_is_where_their_samples_start():
    sampler = fdrl.pretrained("cifar10")
    starts = sampler.prior(KEY, 3, labels=[7] * 3)
    np.testing.assert_array_equal(starts, sampler.path(KEY, 3, labels=[7] * 3)[0])
    assert not np.array_equal(starts, sampler.prior(KEY, 3))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [((2, 32, 32, 1), np.float32, r"\[B, 28, 28, 1\], got"), ((2, 28, 28, 1), np.uint8, "uint8")],
)
def test_the_ratio_is_of_images_as_they_are_drawn(shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        fdrl.pretrained("mnist").log_ratio(np.zeros(shape, dtype))


def test_arrays_that_are_damaged_are_named(tmp_path):
    shutil.copytree(SHIPPED / "swissroll", tmp_path / "export")
    (tmp_path / "export" / "model.safetensors").write_text("version https://git-lfs")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        fdrl.pretrained(tmp_path / "export")
