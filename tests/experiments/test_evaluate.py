"""Evaluations are records that describe their inputs; the command compares any two sets."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import contents, start

from experiments import draw, evaluate, report
from experiments.data.source import Source
from experiments.errors import DataError, UserError
from experiments.evaluation import Samples, inception, translation
from experiments.evaluation.metrics import Estimate, Metric
from experiments.evaluation.references import ImageReference

# Neither the number of the run nor a multiple of a batch. Tests use the same one, because metrics
# compile for each.
NUM = 50


@pytest.fixture
def no_pictures(monkeypatch):
    """Draws no pictures, for tests that evaluate often and look at numbers only."""
    monkeypatch.setattr(report, "draw_pictures", lambda *_: {})
    monkeypatch.setattr(report, "write", lambda run, record, folder: folder / "report.html")


@pytest.fixture
def no_samples(monkeypatch):
    """Makes a test fail that draws samples."""
    monkeypatch.setattr(draw, "sample_state", lambda *_, **__: pytest.fail("samples were drawn"))


def evaluated(run, changes=None, **flags):
    start("evaluate", run.root, None, changes, **flags)


def read(run, name="step_4"):
    return json.loads((run.evaluations / name / "record.json").read_text())


def keys(run):
    return [read(run, path.parent.name)["key"] for path in run.evaluations.glob("*/record.json")]


def test_a_finished_run_has_a_record_with_its_settings_and_is_not_evaluated_again(trained, capsys):
    found = read(trained)
    assert found["key"]["num_samples"] == found["details"]["num_samples"] == 64
    assert found["key"]["settings"]["flow.num_steps"] == 3
    assert found["key"]["run"] == trained.id
    # After four steps, the estimate is still useless.
    assert found["metrics"]["log_ratio_kl"]["value"] > 0
    before = contents(trained.evaluations)
    start("train", trained.root)
    assert "already evaluated: step 4" in capsys.readouterr().out
    assert contents(trained.evaluations) == before


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_of_other_settings_or_samples_is_added(trained):
    before = contents(trained.evaluations)
    evaluated(trained, {"flow.num_steps": 5})
    evaluated(trained, num_samples=NUM)
    evaluated(trained, checkpoint=2)
    assert contents(trained.evaluations).items() >= before.items()
    described = [
        (k["step"], k["num_samples"], k["settings"]["flow.num_steps"]) for k in keys(trained)
    ]
    assert sorted(described) == [(2, 64, 3), (4, NUM, 3), (4, 64, 3), (4, 64, 5)]
    with pytest.raises(UserError, match=r"at least 2 samples, got --num_samples=1"):
        evaluated(trained, num_samples=1)


def test_an_interrupted_evaluation_leaves_no_record(trained, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    before = contents(trained.evaluations)
    monkeypatch.setattr(report, "draw_pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(trained, num_samples=NUM + 1)
    assert contents(trained.evaluations) == before


def test_what_is_missing_is_an_error_before_samples_are_drawn(of_images, tmp_path, no_samples):
    nowhere = tmp_path / "nowhere"
    for changes, flags in (
        ({"data.dir": nowhere}, {}),
        ({}, {"data_dir": nowhere}),
        ({"evaluate.inception_weights": nowhere}, {}),
        ({}, {"classifier": nowhere}),
    ):
        with pytest.raises(UserError, match="nowhere"):
            evaluated(of_images, changes, num_samples=16, **flags)


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_without_the_training_data_is_completed_once_they_are_there(
    of_images, image_folder, monkeypatch, capsys
):
    load = evaluate.load

    def load_if_given(options):
        if not given:
            raise DataError("the disk is not there")
        return load(options)

    def outcome(**flags):
        evaluated(of_images, num_samples=16, **flags)
        shown = capsys.readouterr().out
        is_done, is_missing = "already evaluated" in shown, "the disk is not there" in shown
        return is_done, is_missing, len(keys(of_images))

    given = False
    monkeypatch.setattr(evaluate.load, "load", load_if_given)
    assert outcome() == (False, True, 2)
    assert outcome() == (True, True, 2)
    given = True
    assert outcome(data_dir=image_folder) == (False, False, 3)
    given = False
    assert outcome() == (True, False, 3)


def test_samples_that_are_not_finite_have_no_metrics():
    samples = Samples(*np.full((3, 4, 8, 8, 1), np.nan))
    opened = SimpleNamespace(run=SimpleNamespace(metric_reference=ImageReference("x", samples[0])))
    found = evaluate._score(opened, samples, None, None, None, {})
    assert found.metrics == {}
    assert found.record["skipped"] == ["all metrics: some samples are not finite numbers"]
    assert translation.caption(found.metrics) == ""


@pytest.mark.usefixtures("no_pictures")
def test_inception_metrics_see_unrounded_samples_and_the_training_set(
    of_digits, tmp_path, monkeypatch
):
    weights, calls = tmp_path / "weights.pth", []

    def by_inception(samples, reference, networks):
        calls.append(networks)
        assert not samples.is_rounded
        ours, real = (np.concatenate(list(x.batches())) for x in (samples, reference))
        assert (ours.shape, real.shape) == ((64, 8, 8, 1), (1_437, 8, 8, 1))
        if weights.read_text() == "bad weights":
            raise RuntimeError("the network failed")
        return [Metric("fid_64", "fid", Estimate(1.0))], [{"protocol": "standard"}]

    monkeypatch.setattr(evaluate.inception, "check_ready", lambda protocol, file: None)
    monkeypatch.setattr("experiments.evaluation.inception.by_inception", by_inception)

    def outcome(**more):
        both = ("evaluate.inception_weights", "evaluate.legacy_weights")
        evaluated(of_digits, {**dict.fromkeys(both, weights), **more})
        return len(calls)

    weights.write_text("weights")
    assert (outcome(), outcome()) == (1, 1)  # The second one is not computed again.
    assert calls[0].weights == {name: str(weights) for name in inception.PROTOCOLS}
    assert outcome(**{"evaluate.inception_score": True}) == 2  # Other metrics, or weights.
    assert calls[1].metrics[-1] == "inception_score"
    weights.write_text("bad weights")
    assert (outcome(), outcome()) == (3, 4)  # Metrics that failed are tried again.
    skipped = [
        read(of_digits, p.name)["details"]["skipped"] for p in of_digits.evaluations.iterdir()
    ]
    assert ["Inception metrics: the network failed"] in skipped


@pytest.mark.usefixtures("no_pictures")
def test_features_of_a_public_network_are_computed_if_a_setting_asks_for_them(
    of_digits, monkeypatch
):
    described = {"network": "efficientnet_lite0", "weights_sha256": "57"}
    monkeypatch.setattr(evaluate.efficientnet, "check_ready", lambda: None)
    monkeypatch.setattr(
        evaluate.efficientnet, "load", lambda: lambda x: x.reshape(len(x), -1)[:, :9]
    )
    monkeypatch.setattr(evaluate.efficientnet, "describe", lambda: described)
    evaluated(of_digits, {"evaluate.public_features": True}, num_samples=NUM)
    evaluated(of_digits, num_samples=NUM)
    name = f"frechet_efficientnet_lite0_{NUM}"
    with_it, without = sorted(
        (read(of_digits, path.parent.name) for path in of_digits.evaluations.glob("*/record.json")),
        key=lambda record: name not in record["metrics"],
    )[:2]
    assert with_it["key"]["public_features"] == with_it["details"]["public_features"] == described
    assert with_it["metrics"][name]["real"] is not None
    assert with_it["metrics"][name]["prior"] is not None
    assert name not in without["metrics"]
    assert "public_features" not in without["details"]


def test_an_evaluation_draws_of_each_stage_only_the_samples_that_it_reads(monkeypatch):
    monkeypatch.setattr(draw, "sample_state", lambda *arguments, **keep: (arguments[2], keep))
    images = np.zeros((1_500, 2, 2, 3), np.float32)
    points = Source("points", (2,), held_out=lambda num, seed: np.zeros((num, 2)))
    of_images = ImageReference("x", images)
    pair = of_images._replace(starts=images, num_held_out=5, is_translation=True)
    fewer = pair._replace(starts=images[:400])
    generated = fewer._replace(is_translation=False)

    def drawn(reference, kind, *, of_inception=False):
        model = SimpleNamespace(source=SimpleNamespace(kind=kind))
        run = SimpleNamespace(metric_reference=reference)
        opened = SimpleNamespace(run=run, experiment=model, state=None)
        return evaluate._draw(opened, 50_000, of_inception=of_inception)

    assert drawn(points, "points") == (10_000, {"num_prior": 10_000, "num_bridged": 10_000})
    assert drawn(of_images, "images") == (5_000, {"num_prior": 5_000})
    assert drawn(of_images, "images", of_inception=True) == (50_000, {"num_prior": 5_000})
    assert drawn(pair, "images") == (1_000, {"num_prior": 100})
    assert drawn(fewer, "images") == (400, {"num_prior": 100})
    assert drawn(generated, "images", of_inception=True) == (400, {"num_prior": 400})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Waves, as `a.npz` and `b.npz`, and the noisier `noisy.npz`."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    angles = np.linspace(0, 6, 8)[:, None] + np.linspace(0, 3, 8)
    phases = rng.uniform(0, 6, (2, 60, 1, 1, 3))
    for name, phase, noise in (("a", phases[0], 0), ("b", phases[1], 0), ("noisy", phases[0], 60)):
        waves = 127.5 + 127 * np.sin(angles[..., None] + phase)
        noisy = waves + noise * rng.normal(size=waves.shape)
        np.savez(root / f"{name}.npz", arr_0=np.clip(noisy, 0, 255).astype(np.uint8))
    return root


def compared(capsys, *arguments):
    """Returns the table that the command prints."""
    evaluate.main(list(map(str, arguments)))
    return capsys.readouterr().out


def test_a_set_is_compared_with_another_and_the_distance_grows_with_noise(stored, tmp_path, capsys):
    values = []
    for name in ("b", "a", "noisy"):
        out = tmp_path / f"{name}.json"
        sides = (stored / f"{name}.npz", stored / "b.npz")
        table = compared(capsys, *sides, "--features=random_conv", f"--out={out}")
        assert table.splitlines()[0].split() == ["metric", "samples", "better"]
        result = json.loads(out.read_text())
        assert result["reference"]["num_images"] == 60
        values.append(result["metrics"]["frechet_random_conv_60"]["value"])
    assert values[0] == pytest.approx(0.0, abs=1e-9)
    assert values[0] < values[1] < values[2]


def test_copies_are_found_and_shown_also_in_a_feature_space_of_a_module(
    stored, tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_space.py").write_text("def means(images):\n    return images.mean((1, 2))\n")
    sides = (stored / "a.npz", stored / "a.npz", f"--held_out={stored / 'b.npz'}")
    picture = tmp_path / "x.png"
    table = compared(capsys, *sides, "--features=my_space:means", f"--picture={picture}")
    values = {row.split()[0]: row.split()[1] for row in table.splitlines() if row}
    assert values["memorisation_auc_pixels"] == values["memorisation_auc_means"] == "1"
    assert abs(float(values["frechet_means_60"])) < 1e-9
    assert picture.stat().st_size > 1_000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "weights-inception-2015-12-05-6726825d.pth (SHA-256 begins with 6726825d)"),
        ([], "--features=random_conv compares two sets"),
        (["--weights=nowhere.pth"], "nowhere.pth does not exist"),
        (["--protocol=fid_legacy_fdrl"], "inception_v3_google-0cc3c7bd.pth"),
        (["--protocol=standart"], "invalid choice: 'standart'"),
        (["--metrics=fid,kidd"], "kidd: must be of fid, kid"),
        (["--picture=x.png"], "needs --held_out"),
        (["--picture=x.pngg", "--held_out=x"], "must be a .png file"),
        (["--features=random_con"], "allowed: random_conv, efficientnet_lite0 or MODULE:FUNCTION"),
        (["--features=random_conv", "--held_out=nowhere"], "nowhere does not exist"),
        (["--features=random_conv", "--image=8"], "unrecognized arguments: --image=8"),
        (["--out=nowhere/x.json"], "--out=nowhere/x.json cannot be written"),
        (["--out=."], "--out=. cannot be written"),
        (["--features=random_conv", "--mirrored"], "--mirrored is for the search for copies"),
        (
            ["--features=random_conv", "--metrics=fid"],
            "are for an Inception network",
        ),
        (["--features=random_conv,random_conv"], "two of these have the same name"),
        (["--features=:f"], "allowed: random_conv, efficientnet_lite0 or MODULE:FUNCTION"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(stored, arguments, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        evaluate.main([str(stored / "a.npz"), str(stored / "b.npz"), *arguments])


def test_the_command_runs_as_a_program_and_names_missing_images():
    command = [sys.executable, "-m", "experiments.evaluate", "nowhere", "nothing"]
    done = subprocess.run(
        [*command, "--features=random_conv"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    expected = "error: nowhere does not exist; it must be a folder or a zip of images"
    assert done.stderr.strip() == expected
