"""Contestants of the race train and draw, and the results of a race are complete and resumable."""

import io
import json
import math
import re
import zipfile
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from benchmarks.peers import __main__ as program
from benchmarks.peers import data, denoising, efficientnet, judge, methods, page, race
from experiments.data.decode import to_uint8, to_unit
from experiments.errors import UserError
from fdrl_jax import metrics
from fdrl_jax.training import rng

SHAPE = (8, 8, 1)
SMALL = {
    "fdrl": {"blocks": [[8, 2]], "num_components": 1, "num_steps": 2, "evaluations": [0, 3]},
    "flow_matching": {"num_blocks": 1, "evaluations": [4]},
    "ot_flow_matching": {"num_blocks": 1, "evaluations": [4]},
    "meanflow": {"num_blocks": 1, "evaluations": [1, 2]},
    "r3gan": {"blocks": [[8, 2]], "evaluations": [1]},
}


def settings(method: str) -> dict:
    return methods.defaults(SHAPE, 600.0)[method] | {"width": 8, "batch_size": 8} | SMALL[method]


@pytest.fixture(scope="module")
def images() -> data.Images:
    rs = np.random.default_rng(0)
    pixels = rs.integers(0, 256, (160, *SHAPE), dtype=np.uint8)
    return data.Images(pixels, np.arange(160, dtype=np.int32) % 2)


@pytest.mark.parametrize("method", page.NAMES)
def test_a_contestant_trains_and_draws(method, images):
    chosen = settings(method)
    contestant = methods.build(method, images, chosen, seed=0, dtype=jnp.float32)
    key = rng.root_key(0)
    before = jax.tree.map(np.asarray, contestant.train_state.variables["params"])
    state, found = race.train(contestant, 1e-3, key, budget=1e-6)
    assert found["steps"] == 1
    assert not found["diverged"]
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.variables["params"])
    assert any(jax.tree.leaves(changed))
    for num, sampler in contestant.samplers.items():
        draw = jax.jit(sampler)
        drawn = draw(key, state.ema_variables, contestant.constants, jnp.arange(4))
        assert drawn.shape == (4, *SHAPE), num
        assert np.isfinite(drawn).all()
        # A sample depends on its position and not on its place in the batch.
        moved = draw(key, state.ema_variables, contestant.constants, 2 + jnp.arange(4))
        np.testing.assert_allclose(moved[:2], drawn[2:], atol=1e-4)


def test_the_directional_derivative_is_that_of_forward_mode():
    def function(x, t):
        return jnp.sin(x) * t[:, None] ** 2

    x, t = jnp.arange(6.0).reshape(2, 3), jnp.array([0.5, 2.0])
    direction = (jnp.cos(x), jnp.ones(2))
    expected = jax.jvp(function, (x, t), direction)[1]
    found = methods.directional_derivative(function, (x, t), direction)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_noise_is_paired_with_the_nearest_images_in_total():
    noise, real = jax.random.normal(jax.random.key(0), (2, 16, 4, 4, 1))
    costs = np.sum((np.asarray(real)[:, None] - np.asarray(noise)[None]) ** 2, axis=(2, 3, 4))
    smallest = costs[linear_sum_assignment(costs)].sum()
    pairs = methods.paired(noise, real)
    assert jnp.sum((pairs - real) ** 2) == pytest.approx(smallest, rel=1e-5)
    np.testing.assert_array_equal(jnp.sort(pairs, axis=0), jnp.sort(noise, axis=0))


def test_flow_matching_learns_a_constant_image():
    images = data.Images(np.full((16, *SHAPE), 191, np.uint8), np.zeros(16, np.int32))
    chosen = settings("flow_matching") | {"ema_rate": 0.9}
    contestant = methods.build("flow_matching", images, chosen, seed=0, dtype=jnp.float32)
    state, _ = race.train(contestant, 1e-2, rng.root_key(0), budget=2.0)
    key, at = rng.root_key(1), jnp.arange(8)
    drawn = contestant.samplers[4](key, state.ema_variables, contestant.constants, at)
    prior = jax.random.normal(key, drawn.shape)
    target = 191 / 127.5 - 1
    assert jnp.mean((drawn - target) ** 2) < 0.2 * jnp.mean((prior - target) ** 2)


@pytest.mark.parametrize("method", ["fdrl", "flow_matching", "meanflow"])
def test_with_labels_samples_are_of_all_classes_in_turn(method, monkeypatch):
    # A Gaussian for each class would be of its class without any training.
    fit = methods._data_dependent
    one_gaussian = {"by_class": False}
    monkeypatch.setattr(methods, "_data_dependent", lambda data, of: fit(data, of | one_gaussian))
    labels = np.arange(64, dtype=np.int32) % 2
    pixels = np.where(labels == 0, 60, 200).astype(np.uint8)[:, None, None, None]
    images = data.Images(np.broadcast_to(pixels, (64, *SHAPE)).copy(), labels)
    chosen = settings(method) | {"by_class": True, "ema_rate": 0.9}
    contestant = methods.build(method, images, chosen, seed=0, dtype=jnp.float32)
    key, at = rng.root_key(0), jnp.arange(200)
    state, _ = race.train(contestant, 1e-2, key, budget=contestant.fit_seconds + 3.0)
    arguments = (key, state.ema_variables, contestant.constants, at)
    moved = contestant.samplers[max(contestant.samplers)](*arguments)
    if 0 in contestant.samplers:  # The prior of FDRL.
        moved = moved - contestant.samplers[0](*arguments)
    of_each = moved.mean(axis=(1, 2, 3))
    assert of_each[::2].mean() < of_each[1::2].mean() - 0.1
    if contestant.log_ratio is not None:
        x = jnp.full((2, *SHAPE), 60 / 127.5 - 1)  # Of class 0, so too rare in samples of it.
        of_dark, of_bright = contestant.log_ratio(state.ema_variables, x, jnp.arange(2))
        assert of_dark < of_bright


@pytest.mark.parametrize("changes", [{"num_components": 2}, {"by_class": True}])
@pytest.mark.parametrize("method", ["fdrl", "flow_matching"])
def test_a_mixture_starts_near_each_kind_of_image(method, changes):
    labels = np.arange(64, dtype=np.int32) % 2
    pixels = np.where(labels == 0, 60, 200).astype(np.uint8)[:, None, None, None]
    images = data.Images(np.broadcast_to(pixels, (64, *SHAPE)).copy(), labels)
    start = {"from_prior": True} if method == "flow_matching" else {}
    chosen = settings(method) | start | changes
    contestant = methods.build(method, images, chosen, seed=0, dtype=jnp.float32)
    assert contestant.fit_seconds > 0.0
    means = contestant.constants.prior["mean"].mean(axis=1)
    np.testing.assert_allclose(np.sort(means), np.array([60, 200]) / 127.5 - 1.0, atol=1e-5)
    state, found = race.train(contestant, 1e-3, rng.root_key(0), budget=1e-6)
    assert found["steps"] == 1
    arguments = (rng.root_key(0), state.ema_variables, contestant.constants, jnp.arange(64))
    drawn = contestant.samplers[min(contestant.samplers)](*arguments)
    assert np.isfinite(drawn).all()
    if method == "fdrl":  # Flow matching has no samples of its start.
        of_each = np.round((np.sort(drawn.mean(axis=(1, 2, 3))) + 1.0) * 127.5)
        assert {*of_each[:16]} <= {59, 60, 61}
        assert {*of_each[-16:]} <= {199, 200, 201}


def test_an_interrupted_training_continues_from_its_checkpoint(images, tmp_path, monkeypatch):
    contestant = methods.build("fdrl", images, settings("fdrl"), seed=0, dtype=jnp.float32)
    file, key = tmp_path / "training.msgpack", rng.root_key(0)
    monkeypatch.setattr(race, "_CHECKPOINT_SECONDS", 0.0)  # After each step.
    budget = contestant.fit_seconds + 0.5
    before, first = race.train(contestant, 1e-3, key, budget, file)
    fresh = methods.build("fdrl", images, settings("fdrl"), seed=0, dtype=jnp.float32)
    # Less than what was used: the state comes back, and there is nothing left to do.
    after, second = race.train(fresh, 1e-3, key, budget, file)
    assert second["steps"] == first["steps"] > 1
    assert second["loss"] == first["loss"]
    assert second["train_cpu_seconds"] == pytest.approx(first["train_cpu_seconds"], abs=0.11)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    _, third = race.train(fresh, 1e-3, key, 2 * budget, file)
    assert third["steps"] > first["steps"]
    assert third["train_cpu_seconds"] == pytest.approx(2 * budget, rel=0.5)


def test_a_loss_that_is_not_finite_ends_the_training(images, capsys):
    contestant = methods.build("fdrl", images, settings("fdrl"), seed=0, dtype=jnp.float32)
    key = rng.root_key(0)
    _, found = race.train(contestant, float("nan"), key, budget=60.0, description="a race")
    assert found["diverged"]
    assert found["steps"] == 2
    bar = capsys.readouterr().err.rpartition("\r")[2]
    assert bar.startswith("a race")
    assert "/60 CPU s" in bar
    assert "loss=nan" in bar


def test_the_parts_of_a_zip_have_no_common_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for i in range(40):
            stream = io.BytesIO()
            Image.fromarray(np.full((4, 6), i, np.uint8)).save(stream, "png")
            archive.writestr(f"set/{'ab'[i % 2]}/{i}.png", stream.getvalue())
    split = data.load(tmp_path / "set.zip")
    assert [part.pixels.shape for part in split] == [(n, 4, 6, 1) for n in (28, 8, 4)]
    found = np.concatenate([part.pixels[:, 0, 0, 0] for part in split])
    assert sorted(found) == [*range(40)]
    for part in split:
        np.testing.assert_array_equal(part.labels, part.pixels[:, 0, 0, 0] % 2)


def test_the_judge_ranks_real_images_before_noise(tmp_path, monkeypatch):
    rs = np.random.default_rng(1)
    labels = np.arange(160, dtype=np.int32) % 2
    pixels = rs.integers(0, 60, (160, *SHAPE)) + 150 * labels[:, None, None, None]
    parts = [data.Images(pixels[i::3].astype(np.uint8), labels[i::3]) for i in range(3)]
    monkeypatch.setattr(judge, "_SPEC", judge.networks.ResNetSpec(8, ((8, 2),)))
    monkeypatch.setattr(judge, "_NUM_EPOCHS", 60)
    monkeypatch.setattr(judge, "_LEARNING_RATE", 1e-2)
    file = tmp_path / "cache" / "judge.npz"
    trained = judge.load_or_train(file, data.Split(*parts), jnp.float32)
    assert trained.accuracy == 1.0
    opened = judge.load_or_train(file, data.Split(*parts), jnp.float32)
    np.testing.assert_array_equal(opened.reference, trained.reference)
    with pytest.raises(UserError, match="is from other images"):
        judge.load_or_train(file, data.Split(parts[1], parts[0], parts[2]), jnp.float32)
    real, noise = (opened.figures(x) for x in (parts[0].pixels, np.zeros_like(parts[0].pixels)))
    assert real["frechet"] < noise["frechet"]
    assert (noise["min_share"], noise["max_share"]) == (0.0, 1.0)
    assert opened.figures(*parts[0])["class_accuracy"] == 1.0
    mixed_up = np.where(np.arange(len(parts[0].labels)) % 2, parts[0].labels, 1 - parts[0].labels)
    assert opened.figures(parts[0].pixels, mixed_up)["class_accuracy"] == pytest.approx(
        0.5, abs=0.02
    )


def test_copies_of_training_images_are_nearest_to_them():
    rs = np.random.default_rng(2)
    pixels = rs.integers(0, 256, (800, *SHAPE), dtype=np.uint8)
    trained_on, new = (data.Images(part, None) for part in np.split(pixels, [700]))
    images = data.Split(trained_on, new, new)
    assert judge.training_share(trained_on.pixels[:300], images) == 1.0
    assert judge.training_share(new.pixels, images) == 0.0
    mirror_images = trained_on.pixels[:300, :, ::-1]
    assert judge.training_share(mirror_images, images) < 0.95
    assert judge.training_share(mirror_images, images, mirrored=True) == 1.0
    others = rs.integers(0, 256, (2_000, *SHAPE), dtype=np.uint8)
    assert judge.training_share(others, images) == pytest.approx(7 / 8, abs=0.05)


def result(method: str, budget: float, frechet: float, **changes) -> dict:
    figures = {"frechet": frechet, "top_probability": 0.9, "min_share": 0.05, "max_share": 0.2}
    chosen = methods.defaults(SHAPE, budget)[method]
    found = race.Run("set", method, chosen, 1, budget, 250, "float32")._asdict() | {
        "steps": 10, "train_cpu_seconds": budget, "loss": 1.0, "diverged": False,
        "parameters": 1_000_000, "peak_megabytes": 500, "shape": SHAPE, "images": 112,
        "jax": "0", "judge_accuracy": 1.0, "real": figures | {"frechet": 0.1},
        "samples": [{"evaluations": 1, "cpu_seconds": 0.001, **figures}],
    }  # fmt: skip
    return found | changes


def test_contestants_are_named_by_the_prior_from_which_they_start():
    def names(method: str, **changes) -> set[str]:
        one, other = result(method, 60.0, 2.0), result(method, 60.0, 3.0, seed=2)
        other["settings"] = other["settings"] | changes
        return {line.split(" | ")[0] for line in page.table([one, other]).splitlines()[3:]}

    ours = "| FDRL, 100 Gaussians"
    assert names("fdrl", prior_rank=20) == {ours, f"{ours} of rank 20"}
    assert names("fdrl", num_components=1) == {ours, "| FDRL, 1 Gaussian"}
    assert names("flow_matching", num_components=30) == {"| flow matching"}


def test_contestants_with_and_without_a_denoiser_have_one_prior():
    prior = {"evaluations": 0, "cpu_seconds": 0.001, **result("fdrl", 60.0, 9.0)["real"]}
    found = [result("fdrl", 60.0, 2.0, seed=seed) for seed in range(2)]
    for one, width, distance in zip(found, (0, 32), (8.0, 10.0), strict=True):
        one["settings"] = one["settings"] | {"denoiser_width": width}
        one["samples"] = [prior | {"frechet": distance}, *one["samples"]]
    rows = [line.split(" | ") for line in page.table(found).splitlines()[2:]]
    assert [cells[0].removeprefix("| ") for cells in rows] == [
        "real images",
        "prior of FDRL, 100 Gaussians",
        "FDRL, 100 Gaussians",
        "FDRL, 100 Gaussians and a denoiser",
    ]
    assert rows[1][12] == "9.00"
    assert page.of_present_settings(found, "set") == found


def test_results_of_different_judges_or_numbers_of_samples_are_not_averaged():
    found = [result("fdrl", 60.0, 2.0, seed=seed) for seed in range(4)]
    found[1]["judge_accuracy"], found[2]["num_samples"] = 0.9, 500
    groups = page.by_judge(found)
    assert [[one["seed"] for one in group] for group in groups.values()] == [[0, 3], [1], [2]]


def test_the_curve_has_a_panel_per_judge_and_means_over_its_seeds_only(tmp_path, monkeypatch):
    found = [result("r3gan", 60.0, distance, seed=i) for i, distance in enumerate((2.0, 4.0, 9.0))]
    found[2]["judge_accuracy"] = 0.9
    drawn = []
    monkeypatch.setattr(page.plt, "close", drawn.append)
    page.draw(found, tmp_path / "curve.png")
    of_panels = [[list(line.get_ydata()) for line in ax.lines[:2]] for ax in drawn[0].axes]
    assert of_panels == [[[3.0], [2.0, 4.0]], [[9.0], [9.0]]]  # The mean, then the seeds.


def test_the_table_has_means_over_seeds_and_no_trials_of_tuning(tmp_path):
    trial = result("r3gan", 60.0, 9.0)
    trial["settings"] = trial["settings"] | {"b1": 0.3}
    longer = result("r3gan", 60.0, 7.0, seed=3)
    longer["settings"] = longer["settings"] | {"evaluations": [1, 2]}
    longer["samples"] = [longer["samples"][0] | {"evaluations": num} for num in (2, 1)]
    found = [
        result("r3gan", 60.0, 3.0),
        result("r3gan", 60.0, 5.0, seed=2),
        result("fdrl", 60.0, 2.0, diverged=True, samples=[]),
        result("fdrl", 60.0, 2.0, data="other"),
        trial,
        longer,
        result("fdrl", 60.0, 8.0),
    ]
    with_labels = {"by_class": True, "num_components": 10}
    narrow = {"blocks": [[16, 2], [32, 2], [64, 1]]}
    of_other_strides = {"blocks": [[16, 2], [32, 1], [64, 1]]}
    changed = [{"num_components": 1}, with_labels, narrow, of_other_strides]
    for seed, changes in enumerate(changed):
        of_other_prior = result("fdrl", 60.0, 6.0, seed=seed)
        of_other_prior["settings"] = of_other_prior["settings"] | changes
        figures = of_other_prior["samples"][0]
        of_other_prior["samples"] += [figures | {"evaluations": 0, "frechet": 25.0 + seed}]
        found.append(of_other_prior)
    found[0]["real"] = found[0]["real"] | {"class_accuracy": 0.75}
    found[0]["samples"] = [found[0]["samples"][0] | {"class_accuracy": 0.77}]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in found))
    kept = page.of_present_settings(page.read(file), "set")
    table = page.table(kept)
    assert "75%" in table.splitlines()[2]  # Of real images; only one run has it.
    assert "77%" not in table  # That of samples of one seed of three.
    assert "| 5.00 (3.00, 5.00, 7.00) |" in table
    assert "| 7.00 |" in table  # Two evaluations, with one seed.
    assert "seed 1 diverged at step 10" in table
    assert "9.00" not in table
    names = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    assert names == [
        "real images",
        "prior of FDRL, 1 Gaussian",
        "prior of FDRL, 100 Gaussians",
        "prior of FDRL with labels, 10 Gaussians per class",
        "FDRL, 1 Gaussian",
        "FDRL, 100 Gaussians",
        "FDRL, 100 Gaussians, channels 16, 32, 64",
        "FDRL, 100 Gaussians, channels 16, 32, 64, strides 2, 1, 1",
        "FDRL with labels, 10 Gaussians per class",
        *["R3GAN, small"] * 2,
        "FDRL, 100 Gaussians",  # It diverged.
    ]
    assert "| 25.00 |" in table
    page.draw(kept, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size[0] > 100


def test_samples_of_the_longest_trainings_are_drawn_next_to_real_images(
    tmp_path, monkeypatch, capsys
):
    pixels = np.full((40, *SHAPE), 200, np.uint8)
    images = data.Images(pixels, np.zeros(40, np.int32))
    monkeypatch.setattr(data, "load", lambda path: data.Split(images, images, images))
    short, longest = result("r3gan", 60.0, 3.0), result("meanflow", 90.0, 3.0)
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(short) + "\n")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(longest) + "\n")
    command = ["--results", str(file), str(other), f"--cache={tmp_path}"]
    command.append(f"--samples={tmp_path / 'samples.png'}")

    with pytest.raises(SystemExit):
        program.main([*command, "--data=set.zip"])
    assert "set-meanflow-90-1-1-" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main([*command, "--name=set"])
    assert "--samples needs --data" in capsys.readouterr().err

    name = race.samples_name(race.run_of(longest), {"evaluations": 1})
    np.savez(tmp_path / name, arr_0=np.zeros_like(pixels))
    program.main([*command, "--data=set.zip"])
    with Image.open(tmp_path / "samples.png") as picture:
        middle = np.asarray(picture.convert("L"))[picture.size[1] // 2]
    assert {0, 200} <= set(middle.tolist())


def mean_pixels(images):
    """Features in place of those of the network."""
    return images.mean(axis=(1, 2))


def test_distances_in_public_features_are_added_to_the_results_whose_samples_are_kept(
    tmp_path, monkeypatch, capsys
):
    rs = np.random.default_rng(2)
    pixels = rs.integers(0, 256, (300, *SHAPE), dtype=np.uint8)
    parts = [data.Images(pixels[i::3], np.zeros(100, np.int32)) for i in range(3)]
    kept, lost = result("r3gan", 60.0, 3.0), result("meanflow", 60.0, 3.0)
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (kept, lost)))
    np.savez(
        tmp_path / race.samples_name(race.run_of(kept), {"evaluations": 1}),
        arr_0=np.zeros_like(pixels),
    )
    monkeypatch.setattr(data, "load", lambda path: data.Split(*parts))
    monkeypatch.setattr(efficientnet, "load", lambda: mean_pixels)
    monkeypatch.setattr(efficientnet, "describe", lambda: {"weights_sha256": "57"})
    # In place of the denoiser: black becomes the colour of real images.
    monkeypatch.setattr(
        denoising, "load_or_train", lambda file, of: lambda pixels: np.where(pixels, pixels, 128)
    )
    command = [f"--results={file}", f"--cache={tmp_path}", "--table"]
    program.main([*command, "--name=set"])
    before = capsys.readouterr().out
    program.main([*command, "--data=set.zip", "--public_features"])
    after = capsys.readouterr().out
    expected = metrics.frechet_distance(
        mean_pixels(to_unit(np.zeros_like(pixels))), mean_pixels(to_unit(parts[2].pixels))
    )
    assert expected > 0.5
    of_grey = metrics.frechet_distance(
        mean_pixels(to_unit(np.full_like(pixels, 128))), mean_pixels(to_unit(parts[2].pixels))
    )
    assert of_grey < 0.1 * expected
    assert f"3.00 | {expected:.1f} | {of_grey:.1f} |  |" in after
    assert f"3.00 | {expected:.1f} |" not in before
    assert "1 sets of samples were not kept" in after
    assert "set-meanflow-60-1-1-" in after
    assert "0.10 | 0.0 | 0.0 |  |" in after  # Real images.
    lines = page.read(tmp_path / "set-efficientnet_lite0.jsonl")
    digest = re.compile(r"[0-9a-f]{8}\.npz$")
    assert [digest.sub("", line["images"]) for line in lines] == [
        "denoised-0.06-real-1-250",
        "real-1-250",
        "denoised-0.06-set-r3gan-60-1-1-",
        "set-r3gan-60-1-1-",
    ]
    assert {line["weights_sha256"] for line in lines} == {"57"}
    program.main([*command, "--data=set.zip", "--public_features"])
    assert page.read(tmp_path / "set-efficientnet_lite0.jsonl") == lines
    with pytest.raises(SystemExit):
        program.main([*command, "--name=set", "--public_features"])
    assert "needs --data" in capsys.readouterr().err


def test_the_denoiser_removes_noise_and_is_trained_once(tmp_path, monkeypatch):
    rs = np.random.default_rng(3)
    # Discs on black: clean images that a small network can distinguish from noise.
    y, x = np.mgrid[:16, :16]
    centres = rs.uniform(4, 12, (64, 2))
    discs = [(y - a) ** 2 + (x - b) ** 2 < 9 for a, b in centres]
    pixels = 255 * np.stack(discs)[..., None].astype(np.uint8)
    noisy = to_uint8(to_unit(pixels) + 0.03 * rs.standard_normal(pixels.shape))
    file = tmp_path / "denoiser.npz"
    monkeypatch.setattr(denoising, "_NUM_STEPS", 250)

    denoised = denoising.load_or_train(file, data.Images(pixels, np.zeros(64, np.int32)))(noisy)

    def error(images):
        return float(np.mean((to_unit(images) - to_unit(pixels)) ** 2))

    assert denoised.shape == noisy.shape
    assert error(denoised) < 0.5 * error(noisy)
    monkeypatch.setattr(denoising, "_train", None)  # A second training would fail.
    again = denoising.load_or_train(file, data.Images(pixels, np.zeros(64, np.int32)))(noisy)
    np.testing.assert_array_equal(again, denoised)


@pytest.mark.parametrize("method", ["r3gan", "fdrl", "flow_matching"])
def test_a_run_keeps_its_samples(method, images, tmp_path, monkeypatch):
    figures, judged = result(method, 1.0, 3.0)["real"], []

    def judge_images(pixels, labels=None):
        judged.append(labels)
        return dict(figures)

    opened = SimpleNamespace(accuracy=1.0, figures=judge_images)
    monkeypatch.setattr(race, "open_judge", lambda *arguments: opened)
    chosen = settings(method)
    with_labels = "by_class" in chosen
    if with_labels:
        chosen |= {"by_class": True, "evaluations": chosen["evaluations"][-1:]}
    run = race.Run("set", method, chosen, 1, 1e-6, 250, "float32")
    found = race.carry_out(run, data.Split(images, images, images), tmp_path)
    assert race.run_of(json.loads(json.dumps(found))) == run
    row, *of_kept = found["samples"]
    assert ["kept" in one for one in of_kept] == [True] * (method == "fdrl")
    np.testing.assert_array_equal(
        judged[0], race.real_images(run, data.Split(*[images] * 3)).labels
    )
    if with_labels:
        np.testing.assert_array_equal(judged[1], np.arange(250) % 2)
    else:
        assert judged[1] is None
    assert row["training_share"] == 0.0  # There, reference images are those of the training.
    with np.load(tmp_path / race.samples_name(run, row)) as kept:
        assert (kept["arr_0"].shape, kept["arr_0"].dtype) == ((250, *SHAPE), np.uint8)


def test_a_denoiser_trains_with_fdrl_and_finishes_its_samples(images, tmp_path, monkeypatch):
    chosen = settings("fdrl") | {"denoiser_width": 4}
    build = methods.build
    contestant = build("fdrl", images, chosen, seed=0, dtype=jnp.float32)
    before = jax.tree.map(np.array, contestant.train_state.variables["params"]["denoiser"])
    state, _ = race.train(contestant, 1e-3, rng.root_key(0), budget=1e-6)
    is_changed = jax.tree.map(
        lambda *of_both: np.any(of_both[0] != of_both[1]),
        before,
        state.variables["params"]["denoiser"],
    )
    assert all(jax.tree.leaves(is_changed))

    def build_with_constant(*arguments, **options):
        built = build(*arguments, **options)
        assert built.denoise is not None
        return built._replace(denoise=lambda variables, x: jnp.full_like(x, 0.5))

    opened = SimpleNamespace(
        accuracy=1.0, figures=lambda *_: dict(result("fdrl", 1.0, 3.0)["real"])
    )
    monkeypatch.setattr(race, "open_judge", lambda *arguments: opened)
    monkeypatch.setattr(methods, "build", build_with_constant)
    run = race.Run("set", "fdrl", chosen, 1, 1e-6, 250, "float32")
    of_prior, *of_flow = race.carry_out(run, data.Split(*[images] * 3), tmp_path)["samples"]
    assert len(of_flow) == 2  # As drawn, and kept by the ratio.
    for row in of_flow:
        with np.load(tmp_path / race.samples_name(run, row)) as kept:
            np.testing.assert_array_equal(kept["arr_0"], to_uint8(np.float32(0.5)))
    with np.load(tmp_path / race.samples_name(run, of_prior)) as kept:
        assert len(np.unique(kept["arr_0"])) > 100


def test_samples_are_kept_in_proportion_to_the_inverse_of_their_ratio():
    def sample(key, variables, constants, positions):  # Every second image is bright.
        return jnp.broadcast_to((positions % 2)[:, None, None, None], (len(positions), *SHAPE))

    def log_ratio(variables, x, positions):  # Bright images are three times too frequent.
        return math.log(3.0) * x[:, 0, 0, 0]

    arguments = (jax.random.key(0), (), ())
    kept, positions, share = race.draw_kept(sample, arguments, log_ratio, 2_000)
    assert kept.shape == (2_000, *SHAPE)
    is_bright = kept[:, 0, 0, 0] == 255
    assert np.mean(is_bright) == pytest.approx(0.25, abs=0.04)
    np.testing.assert_array_equal(is_bright, positions % 2)  # So their classes are known.
    assert share == pytest.approx(2.0 / 3.0, abs=0.04)


def test_settings_change_by_name():
    before = methods.defaults(SHAPE, 600.0)["fdrl"]
    after = program.changed("fdrl", before, ["b1=0.9", "blocks=[[8, 1]]"])
    assert after == before | {"b1": 0.9, "blocks": [[8, 1]]}
    with pytest.raises(ValueError, match="num_latents: fdrl has no such setting; allowed: b1"):
        program.changed("fdrl", before, ["num_latents=3"])
    with pytest.raises(ValueError, match="must be JSON"):
        program.changed("fdrl", before, ["b1=x"])


def test_a_run_that_has_a_line_is_skipped(tmp_path, monkeypatch, capsys):
    split = data.Split(*3 * [data.Images(np.zeros((4, *SHAPE), np.uint8), np.zeros(4, np.int32))])
    carried_out = []

    def in_this_process(function, *arguments):
        if function is race.judge_accuracy:
            return 1.0
        carried_out.append(run := arguments[0])
        race.checkpoint_of(run, tmp_path).touch()
        return result(run.method, run.budget, 1.0) | run._asdict()

    monkeypatch.setattr(data, "load", lambda path: split)
    monkeypatch.setattr(program, "_in_new_process", in_this_process)
    monkeypatch.setenv("XLA_FLAGS", "")
    command = ["--data=set.zip", "--precision=float32", f"--results={tmp_path / 'r.jsonl'}"]
    command.append(f"--cache={tmp_path}")
    program.main([*command, "--methods", "r3gan", "--seeds", "1", "2"])
    program.main([*command, "--methods", "r3gan", "fdrl", "--seeds", "1", "2", "--table"])
    assert [(run.method, run.seed) for run in carried_out] == [
        ("r3gan", 1), ("r3gan", 2), ("fdrl", 1), ("fdrl", 2),
    ]  # fmt: skip
    assert "| R3GAN, small | 600 | 2 |" in capsys.readouterr().out
    assert not [*tmp_path.glob("*.msgpack")]  # The results are written.
    with pytest.raises(SystemExit):
        program.main([f"--results={tmp_path / 'r.jsonl'}", "--name=other", "--table"])
    assert "no results for --name=other" in capsys.readouterr().err


def test_samples_of_another_program_are_judged_like_those_of_a_run(tmp_path, monkeypatch, capsys):
    rs = np.random.default_rng(0)
    pixels = rs.integers(0, 256, (64, *SHAPE), dtype=np.uint8)
    split = data.Split(*3 * [data.Images(pixels, np.arange(64, dtype=np.int32) % 2)])
    monkeypatch.setattr(data, "load", lambda path: split)
    monkeypatch.setattr(program, "_in_new_process", lambda function, *rest: function(*rest))
    monkeypatch.setattr(judge, "_NUM_EPOCHS", 1)
    monkeypatch.setattr(judge, "_SPEC", judge.networks.ResNetSpec(8, ((8, 2),)))
    monkeypatch.setenv("XLA_FLAGS", "")
    command = ["--data=set.zip", "--precision=float32", f"--cache={tmp_path}"]
    np.savez(tmp_path / "same.npz", pixels)
    program.main([*command, "--judge", str(tmp_path / "same.npz")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["samples", "real images"]
    assert float(lines[0].split()[1].rstrip(",")) == pytest.approx(0.0, abs=1e-3)
    np.savez(tmp_path / "floats.npz", pixels.astype(np.float32))
    with pytest.raises(SystemExit):
        program.main([*command, "--judge", str(tmp_path / "floats.npz")])
    assert "uint8 [N, 8, 8, 1], found float32 (64, 8, 8, 1)" in capsys.readouterr().err


def test_short_trainings_on_grey_images_have_small_batches():
    short, long = (methods.defaults(SHAPE, budget)["fdrl"] for budget in (600.0, 1800.0))
    assert (short["batch_size"], long["batch_size"]) == (32, 64)
    assert short | {"batch_size": 64} == long
    colour = [methods.defaults((32, 32, 3), budget)["fdrl"] for budget in (600.0, 1800.0)]
    assert colour[0] == colour[1]
