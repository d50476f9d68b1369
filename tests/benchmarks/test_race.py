"""The contestants of the race train and draw, and its results are complete and resumable."""

import io
import itertools
import json
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks.race import __main__ as program
from benchmarks.race import data, judges, methods, training
from configs import base
from fdrl_jax import priors
from fdrl_jax.training import rng
from fdrl_jax.training.problem import Constants


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A zip of dark and bright images, and its parts."""
    file = tmp_path_factory.mktemp("race") / "set.zip"
    rs = np.random.default_rng(0)
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(120):
            stream = io.BytesIO()
            pixels = rs.integers(0, 60, (8, 8)) + 150 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(stream, "png")
            archive.writestr(f"set/{'ab'[i % 2]}/{i}.png", stream.getvalue())
    return file, data.load(file)


@pytest.fixture
def small(monkeypatch):
    """The recipe with a network that compiles in seconds; a pilot step takes 0.1 CPU seconds."""

    def recipe(task):
        c = base.small_images()
        c.data.channels, c.precision = 1, "float32"
        c.network.width, c.network.blocks, c.network.denoiser_width = 8, ((8, 2),), 4
        c.prior.num_components, c.prior.rank = 2, 3
        c.flow.num_steps, c.flow.num_refine_steps = 2, 1
        c.train.batch_size = 8
        return c

    monkeypatch.setattr(methods, "recipe", recipe)
    monkeypatch.setattr(training, "_NUM_PILOT_STEPS", 2)
    monkeypatch.setattr(training, "_BATCH", 16)
    clock = types.SimpleNamespace(process_time=itertools.count(step=0.2).__next__)
    monkeypatch.setattr(training, "time", clock)
    return {"width": 8, "num_blocks": 1, "batch_size": 8, "num_evaluations": (3,)}


def test_the_parts_of_a_zip_have_no_common_image_and_are_data_of_the_program(images, tmp_path):
    _, split = images
    assert [part.pixels.shape for part in split] == [(n, 8, 8, 1) for n in (84, 24, 12)]
    found = {image.tobytes() for part in split for image in part.pixels}
    assert len(found) == 120
    assert all(((p.pixels.mean(axis=(1, 2, 3)) > 100) == p.labels).all() for p in split)
    with np.load(split.write("judge", tmp_path / "cache" / "judge.npz")) as arrays:
        np.testing.assert_array_equal(arrays["images"], split.judge.pixels)
        np.testing.assert_array_equal(arrays["held_out_labels"], split.reference.labels)


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.METHODS)
def test_a_contestant_trains_for_its_budget_and_draws(method, images, small, tmp_path):
    file = images[1].write("contestants", tmp_path / "contestants.npz")
    contestant = methods.build(method, "mnist", file, 1, {} if method == "fdrl" else small)
    trained = training.train(contestant, contestant.fit_seconds + 0.35)
    assert trained.num_steps == 3
    assert trained.training.settings.train.num_steps == trained.num_steps  # Of its schedule.
    assert int(trained.state.step) == trained.num_steps
    entries = contestant.entries(trained.training)
    expected = {"fdrl": [("prior", "evaluations", 0), ("fdrl", "gradients", 3)]}
    assert [entry[:3] for entry in entries] == expected.get(method, [(method, "evaluations", 3)])
    for entry in entries:
        pixels, _ = training.draw(trained, entry.sampler, 20)
        assert (pixels.shape, pixels.dtype) == ((20, 8, 8, 1), np.uint8)
        if method == "fdrl":  # It starts from dark and from bright images.
            levels = pixels.mean(axis=(1, 2, 3))
            assert levels.min() < 90 < 120 < levels.max()


@pytest.mark.parametrize("num", [3, 9])
def test_the_integrator_follows_the_velocity_and_ends_with_the_expected_image(num):
    start = priors.normal((2, 2, 1))

    def velocity(variables, x, t):  # Of data at zero: x_t = t ε, so v = x_t / t.
        return x / t[:, None, None, None]

    sampler = methods.integrator(velocity, start, num, stop=0.02)
    batch = {"position": np.arange(4, dtype=np.int32)}
    drawn = sampler(rng.root_key(0), {}, Constants((), start.params), batch)
    np.testing.assert_allclose(drawn, jnp.zeros((4, 2, 2, 1)), atol=1e-6)


FLOW = ("fdrl", "gradients", 3, 5)
JUDGE = {"frechet_classifier": "classifier of mnist, 90.00% correct"}
NAMES = {**JUDGE, "frechet_public": "public network, 32 raw samples"}


def features(pixels):
    """Mean level and contrast, in place of those of networks."""
    return np.stack([pixels.mean(axis=(1, 2, 3)), pixels.std(axis=(1, 2, 3))], -1) / 255.0


def classify(unit):
    bright = (unit.mean(axis=(1, 2, 3)) > -0.2).astype(int)
    return np.eye(2)[bright], features(127.5 * (unit + 1.0))


def test_the_judges_rank_real_images_before_noise(images):
    _, split = images
    reference = split.reference.pixels
    of_reference = classify(reference / 127.5 - 1.0)[1]
    opened = judges.Judges(classify, 1.0, of_reference, features, features(reference), NAMES)
    real, noise = opened.figures(split.judge.pixels), opened.figures(np.zeros_like(reference))
    assert (noise["min_share"], noise["max_share"]) == (0.0, 1.0)
    assert real["min_share"] > 0.3
    for metric in ("frechet_classifier", "frechet_public"):
        assert real[metric] < 0.1 * noise[metric]


def test_a_race_writes_its_lines_once_and_prints_the_table(images, tmp_path, monkeypatch, capsys):
    _, split = images
    of_reference = classify(split.reference.pixels / 127.5 - 1.0)[1]
    opened = judges.Judges(classify, 0.9, of_reference, None, None, JUDGE)
    entries = [methods.Entry(*e) for e in (("prior", "evaluations", 0, 9), FLOW)]
    contestant = methods.Contestant(None, 0.0, lambda trained: entries)
    monkeypatch.setattr(judges, "open_judges", lambda *_: opened)
    monkeypatch.setattr(methods, "build", lambda *_: contestant)
    trained = training.Trained(None, None, 12, 0.5)
    monkeypatch.setattr(training, "train", lambda contestant, budget: trained)
    pixels = split.contestants.pixels
    monkeypatch.setattr(training, "draw", lambda _, shift, num: (pixels[:num] + shift, 0.1))
    results = tmp_path / "results.jsonl"
    command = [f"--cache={tmp_path}", f"--results={results}", f"--data={images[0]}"]
    command += ["--num_samples=32", "--budgets", "0.5", "--methods", "fdrl"]
    program.main(command)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    for line in lines:
        assert line.keys() >= {"seed", "machine", "budget", "judge", "commit", "command", "steps"}
        assert len(line["also"]["class shares"]) == 3  # Of samples, the prior and real images.
    assert lines[0]["prior"] == lines[0]["value"] == lines[1]["prior"] != lines[1]["value"]
    assert "0.5 CPU s, seed 1, FDRL, 3 gradients: " in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(methods, "build", None)  # A second run would fail.
    program.main(command)
    assert len(results.read_text().splitlines()) == len(lines) == 2
