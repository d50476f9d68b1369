"""The shipped samplers draw good samples, and samplers load by name, folder and repository."""

import functools
import hashlib
import json
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
NAMES = ["cifar10", "digits", "mnist", "swissroll"]
# By name, `random_conv_features` of 128 images that the sampler was not trained on.
REAL = Path(__file__).parents[1] / "golden" / "features_of_real_images.npz"
KEY = rng.root_key(5)
shipped = functools.cache(fdrl.pretrained)


def test_shipped_samplers_are_small_and_described():
    assert sorted(path.parent.name for path in SHIPPED.glob("*/config.json")) == NAMES
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*/*")) < 2_900_000
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    for name in NAMES:
        assert f"| `{name}` |" in page
        assert len((SHIPPED / name / "README.md").read_text().split()) < 150


@pytest.mark.usefixtures("optimised")
def test_points_of_the_swiss_roll_are_on_all_of_it():
    swissroll = shipped("swissroll")
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


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_digits_are_close_to_real_ones_where_a_classifier_sees_them():
    images, labels = load_digits(return_X_y=True)
    judge = SVC().fit(images[::2], labels[::2])

    def features(x):
        return judge.decision_function(8.0 * (x.reshape(len(x), -1) + 1.0))

    real = judge.decision_function(images[1::2])
    sampler = fdrl.pretrained("digits")
    samples, prior = (features(np.asarray(draw(KEY, 400))) for draw in (sampler, sampler.prior))
    assert frechet_distance(samples, real) < 0.5 * frechet_distance(prior, real)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_images_of_mnist_are_far_closer_to_real_ones_than_the_prior():
    with np.load(REAL) as stored:
        real = stored["mnist"].astype(np.float32)

    def distance(images):
        return energy_distance(random_conv_features(np.asarray(images)), real)

    sampler = shipped("mnist")
    assert distance(sampler(KEY, 64)) < 0.1 * distance(sampler.prior(KEY, 64))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_images_of_cifar10_have_edges_and_the_prior_has_none():
    # A guard against a broken file: 3 for a Gaussian, 7.5 for real images, 8.4 for samples.
    def kurtosis(images):
        gaps = np.diff(np.asarray(images), axis=1)
        return np.mean(gaps**4) / np.mean(gaps**2) ** 2

    sampler = shipped("cifar10")
    assert kurtosis(sampler.prior(KEY, 64)) < 4.0
    assert 5.5 < kurtosis(sampler(KEY, 64, clip=False)) < 10.0


def test_samples_start_at_the_prior_and_depend_only_on_the_key_and_their_index():
    swissroll = shipped("swissroll")
    samples = swissroll(KEY, 9)
    np.testing.assert_allclose(swissroll(KEY, 9, batch_size=4), samples, rtol=1e-4, atol=1e-5)
    path = swissroll.path(KEY, 9)
    assert path.shape == (121, 9, 2)
    np.testing.assert_allclose(path[0], swissroll.prior(KEY, 9), rtol=1e-6)
    np.testing.assert_allclose(path[-1], samples, rtol=1e-4, atol=1e-5)
    assert not np.allclose(swissroll(rng.root_key(6), 9), samples)

    root = rng.stream_key(KEY, rng.Stream.SAMPLE)
    keys = rng.example_keys(root, rng.Stream.FLOW, jnp.arange(9))
    by_parts = swissroll.method.sample(keys, path[0], swissroll.estimator)
    np.testing.assert_allclose(by_parts, samples, rtol=1e-4, atol=1e-5)


def test_the_flow_is_compiled_once_per_size_and_the_log_ratio_is_small_only_on_samples():
    sampler = fdrl.pretrained("swissroll")
    for key in (*jax.random.split(KEY, 2), jax.random.PRNGKey(0)):
        samples = sampler(key, 500, batch_size=200)
    assert sampler._run._cache_size() == 1
    on_samples, away = map(sampler.log_ratio, (samples, sampler.prior(KEY, 500)))
    assert on_samples.shape == (500,)
    assert abs(float(jnp.mean(on_samples))) < 0.03 < float(jnp.mean(away))
    of_integers = sampler.log_ratio(np.ones((1, 2), np.int64))
    np.testing.assert_array_equal(of_integers, sampler.log_ratio(np.ones((1, 2))))


def test_labels_are_numbers_or_names_of_each_sample_or_of_all():
    sampler, by_number = shipped("cifar10"), [7] * 3
    starts = sampler.prior(KEY, 3, labels=by_number)
    for labels in (7, "horse", ["horse"] * 3, np.int64(7), jnp.full(3, 7)):
        np.testing.assert_array_equal(sampler.prior(KEY, 3, labels=labels), starts)
    assert not np.array_equal(sampler.prior(KEY, 3), starts)
    ratios = [sampler.log_ratio(starts, labels) for labels in ("horse", by_number)]
    np.testing.assert_array_equal(*ratios)
    traced = jax.jit(lambda labels: sampler.prior(KEY, 3, labels=labels))(jnp.array(by_number))
    np.testing.assert_allclose(traced, starts, atol=1e-5)


def test_images_are_clipped_unless_asked_otherwise():
    sampler = shipped("digits")
    raw = sampler(KEY, 20, clip=False)
    assert float(jnp.abs(raw).max()) > 1.0
    np.testing.assert_array_equal(sampler(KEY, 20), jnp.clip(raw, -1.0, 1.0))
    assert np.isfinite(sampler.log_ratio(raw)).all()
    assert np.isnan(sampler.log_ratio(raw.at[0].set(jnp.nan))[0])


MISUSES = [
    ("swissroll", lambda s: s(KEY, 0), "num_samples must be a whole number >= 1, got 0"),
    ("swissroll", lambda s: s(7, 3), "key must be a JAX key, .* got int 7"),
    ("swissroll", lambda s: s(KEY, 3, labels=[0, 0, 0]), "so it has no labels"),
    ("cifar10", lambda s: s(KEY, 3, labels="hors"), "did you mean 'horse'"),
    ("cifar10", lambda s: s(KEY, 3, labels=[1, 2]), r"per example, \(3,\), got \(2,\)"),
    ("cifar10", lambda s: s(KEY, 3, labels=10), "from 0 to 9, got"),
    ("cifar10", lambda s: s.log_ratio(np.zeros((2, 32, 32, 3))), "labels of x are missing"),
    ("digits", lambda s: s.log_ratio(np.zeros((2, 8, 8, 3))), r"\[B, 8, 8, 1\], got"),
    ("digits", lambda s: s.log_ratio(np.full((2, 8, 8, 1), 200.0)), "got values from 200 to 200"),
    ("swisroll", None, "unknown sampler 'swisroll'; allowed: .* did you mean 'swissroll'"),
    ("zebra", None, f"allowed: {', '.join(NAMES)}, the folder of an export"),
]


@pytest.mark.parametrize(("name", "call", "message"), MISUSES)
def test_wrong_arguments_and_names_are_explained(name, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(shipped(name))


def copied(folder, config=None, arrays=None, name="swissroll"):
    """Writes a sampler with changes to a folder; `None` removes an entry."""
    found = json.loads((SHIPPED / name / "config.json").read_text())
    stored = safetensors.numpy.load_file(SHIPPED / name / "model.safetensors") | (arrays or {})
    content = safetensors.numpy.save({k: v for k, v in stored.items() if v is not None})
    found |= {"sha256": hashlib.sha256(content).hexdigest()}
    for key, value in (config or {}).items():
        *path, last = key.split(".")
        functools.reduce(dict.__getitem__, path, found)[last] = value
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in found.items() if v is not None})
    )
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_a_folder_is_loaded_and_arrays_of_8_bits_are_multiplied_by_their_factors(tmp_path):
    name = "network/params/mlp_0/kernel"
    bytes_ = {name: np.full((2, 64), 4, np.int8), f"{name}.scale": np.linspace(0, 1, 64)}
    sampler = fdrl.pretrained(copied(tmp_path, arrays=bytes_))
    kernel = sampler.variables["params"]["mlp_0"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, np.tile(np.linspace(0, 4, 64), (2, 1)), rtol=1e-6)


KERNEL = "network/params/mlp_2/kernel"
DAMAGES = [
    ("swissroll", {"network": None}, {}, "it has no 'network'"),
    ("swissroll", {"sha256": "0" * 64}, {}, "its SHA-256 is not that of config"),
    ("swissroll", {}, {KERNEL: np.full((64, 64), np.nan, np.float32)}, f"{KERNEL} .* not finite"),
    ("swissroll", {}, {KERNEL: None}, rf"{KERNEL} must have shape \(64, 64\), got None"),
    ("swissroll", {}, {"network/params/other": np.zeros(2, np.float32)}, "must have shape None"),
    *(("swissroll", {"event_shape": s}, {}, "positive sizes") for s in ("a", [-2], [10**9])),
    ("swissroll", {"prior.event_shape": [3]}, {}, "samples of the prior have shape"),
    ("swissroll", {"prior": {"name": "gauss"}}, {}, "unknown prior 'gauss'"),
    ("swissroll", {"prior.scale": "1"}, {}, "TypeError"),
    ("swissroll", {"flow.num_steps": 10**9}, {}, "more than 100,000 steps"),
    ("swissroll", {"flow.step_size": float("nan")}, {}, "step_size must be"),
    ("swissroll", {"flow.other": 1}, {}, "unexpected keyword"),
    ("swissroll", {"loss": "lrr"}, {}, "did you mean 'lr'"),
    ("swissroll", {"network.hidden_sizes": [64] * 1_000}, {}, "more layers than"),
    ("swissroll", {"network.hidden_sizes": [2**70]}, {}, "OverflowError"),
    ("swissroll", {"data": {"classes": [1]}}, {}, "names of classes must be text"),
    ("digits", {"denoiser": {"depth": 10**9}}, {}, "more layers than"),
    ("digits", {}, {"prior/mean": None}, "it has no 'mean'"),
]


@pytest.mark.parametrize(("name", "config", "arrays", "message"), DAMAGES)
def test_a_wrong_folder_is_the_documented_error(name, config, arrays, message, tmp_path):
    with pytest.raises(ValueError, match=f"(?s)not a sampler that --mode=export .*{message}"):
        fdrl.pretrained(copied(tmp_path, config, arrays, name))


def test_damaged_files_and_runs_that_are_not_exported_are_the_documented_error(tmp_path):
    for name in NAMES:
        stored = bytearray((SHIPPED / name / "model.safetensors").read_bytes())
        stored[-100] ^= 1
        (tmp_path / "model.safetensors").write_bytes(stored)
        (tmp_path / "config.json").write_text((SHIPPED / name / "config.json").read_text())
        with pytest.raises(ValueError, match=r"model\.safetensors has changed"):
            fdrl.pretrained(tmp_path)
    for file in ("model.safetensors", "config.json"):
        copied(tmp_path, {"sha256": None})
        for content in ("5", "[" * 100_000, "{", "", '"a"', "\0"):
            (tmp_path / file).write_text(content)
            with pytest.raises(ValueError, match="not a sampler that --mode=export"):
                fdrl.pretrained(tmp_path)
        (tmp_path / file).unlink()
        with pytest.raises(ValueError, match=f"not a sampler .*{file}"):
            fdrl.pretrained(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"Export it first: .*{tmp_path.name} --mode=export"):
        fdrl.pretrained(tmp_path)


def test_ratios_and_other_priors_are_supported(tmp_path):
    prior = {"name": "uniform", "event_shape": [2]}
    changes = {"loss": "lsif", "divergence": "pearson", "prior": prior}
    sampler = fdrl.pretrained(copied(tmp_path, changes))
    x0 = np.asarray(sampler.prior(KEY, 100))
    assert -1.0 <= x0.min() < -0.9
    assert sampler.method.output == "ratio"
    expected = np.log(np.maximum(np.asarray(sampler.estimator(x0)), 1e-6))
    np.testing.assert_allclose(sampler.log_ratio(x0), expected, rtol=1e-4, atol=1e-5)
    # One that translates images needs them.
    sampler = fdrl.pretrained(copied(tmp_path, {"prior": {"name": "batch"}}))
    with pytest.raises(ValueError, match="starts from images, not from a prior"):
        sampler(KEY, 3)
    assert sampler.method.sample(KEY, np.zeros((3, 2)), sampler.estimator).shape == (3, 2)


def test_a_repository_is_loaded_from_the_hub_whose_package_is_optional(monkeypatch):
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
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match="pip install huggingface_hub"):
        fdrl.pretrained("someone/swissroll")
