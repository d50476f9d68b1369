"""Evaluations are records that describe their inputs, and none replaces another."""

import html
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import contents, start

from experiments import pictures, records, report
from experiments.data import Source
from experiments.errors import DataError, UserError
from experiments.evaluation import Samples, inception, metrics, translation
from experiments.evaluation.metrics import Estimate, Metric
from experiments.evaluation.references import ImageReference
from experiments.files import sha256_of_file, write_json
from experiments.modes import evaluate as evaluating

# Neither the number of the run nor a multiple of a batch. Tests use the same one, because metrics
# compile for each.
NUM = 50


@pytest.fixture
def no_pictures(monkeypatch):
    """Draws no pictures, for tests that evaluate often and look at numbers only."""

    def draw(opened, samples, found, folder):
        write_json(folder / "pictures.json", {})

    monkeypatch.setattr(report, "draw", draw)


def evaluate(run, changes=None, **flags):
    start("evaluate", run.root, None, changes, **flags)


def read(run, name):
    return json.loads((run.evaluations / name / "record.json").read_text())


def test_a_finished_run_has_a_record_with_its_settings_and_is_not_evaluated_again(trained, capsys):
    found = read(trained, "step_4")
    assert found["key"]["num_samples"] == 64
    assert found["key"]["settings"]["flow.num_steps"] == 3
    assert found["key"]["run"] == trained.id
    before = contents(trained.evaluations)
    start("train", trained.root)
    assert "already evaluated: step 4, 64 samples" in capsys.readouterr().out
    assert contents(trained.evaluations) == before


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_of_other_settings_or_samples_is_added_and_says_so(trained, capsys):
    before, page = contents(trained.evaluations), trained.report.read_bytes()
    evaluate(trained, {"flow.num_steps": 5})
    evaluate(trained, num_samples=NUM)
    newest = read(trained, records.newest(trained.evaluations).name)
    assert newest["key"]["num_samples"] == newest["details"]["num_samples"] == NUM
    evaluate(trained, checkpoint=2)
    after = contents(trained.evaluations)
    assert after.items() >= before.items()
    assert trained.report.read_bytes() == page, "the run's report is of its own settings"
    found = [
        read(trained, path.parent.name)["key"] for path in trained.evaluations.glob("*/record.json")
    ]
    described = [(k["step"], k["num_samples"], k["settings"]["flow.num_steps"]) for k in found]
    assert sorted(described) == [(2, 64, 3), (4, NUM, 3), (4, 64, 3), (4, 64, 5)]
    pages = {p.parent.name: p.read_text() for p in trained.evaluations.glob("*/report.html")}
    (changed,) = [name for name, text in pages.items() if "flow.num_steps is 5 but was 3" in text]
    assert read(trained, changed)["key"]["settings"]["flow.num_steps"] == 5
    capsys.readouterr()
    start("train", trained.root)
    shown = capsys.readouterr().out
    assert metrics.table(report.metrics_of(trained.evaluations / "step_4")) in shown


def test_the_number_of_samples_is_that_of_the_metrics(trained, monkeypatch, capsys):
    monkeypatch.setattr(evaluating, "MAX_POINTS", NUM)
    for _ in range(2):
        evaluate(trained, num_samples=NUM + 1)
    assert f"already evaluated: step 4, {NUM} samples" in capsys.readouterr().out
    page = (records.newest(trained.evaluations) / "report.html").read_text()
    assert f"evaluated on {NUM} samples" in page
    with pytest.raises(UserError, match=r"at least 2 samples, got --num_samples=1"):
        evaluate(trained, num_samples=1)


def test_the_same_evaluation_again_gives_the_same_numbers(trained, tmp_path):
    before = read(trained, "step_4")["metrics"]
    for path in trained.evaluations.iterdir():
        path.rename(tmp_path / path.name)
    evaluate(trained)
    again = read(trained, "step_4")["metrics"]
    assert again.keys() == before.keys()
    for name, metric in again.items():
        np.testing.assert_allclose(metric["value"], before[name]["value"], rtol=1e-6)


def test_an_interrupted_evaluation_leaves_no_record(trained, monkeypatch):
    before = contents(trained.evaluations)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, num_samples=NUM, checkpoint=2)
    assert contents(trained.evaluations) == before


def test_of_two_evaluations_at_once_one_record_stays(trained, monkeypatch):
    draw, running = report.draw, []

    def draw_after_another_program(*arguments):
        if not running:
            running.append(True)
            evaluate(trained, num_samples=NUM, checkpoint=2)
        draw(*arguments)

    monkeypatch.setattr(report, "draw", draw_after_another_program)
    evaluate(trained, num_samples=NUM, checkpoint=2)
    keys = [read(trained, p.parent.name)["key"] for p in trained.evaluations.glob("*/record.json")]
    assert [(key["step"], key["num_samples"]) for key in keys].count((2, NUM)) == 1
    assert not list(trained.evaluations.glob(".part_*"))


def test_the_report_is_written_again_from_the_record_only(trained, capsys):
    page = trained.evaluations / "step_4" / "report.html"
    text = page.read_text()
    assert metrics.verdict(report.metrics_of(page.parent)) in html.unescape(text)
    assert "Checkpoint of train step 4 of 4, evaluated on" in text
    before = page.read_bytes()
    page.unlink()
    trained.report.unlink()
    start("report", trained.root, name="step_4")
    assert page.read_bytes() == trained.report.read_bytes() == before
    assert f"report: {trained.report}" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"no evaluation step_5 .*did you mean 'step_4'.*available: "
    ):
        start("report", trained.root, name="step_5")
    # The newest evaluation is of other settings: its report is written, and the run's own as well.
    evaluate(trained, {"flow.num_steps": 5}, num_samples=NUM)
    newest = records.newest(trained.evaluations) / "report.html"
    for path in (newest, trained.report):
        path.unlink()
    capsys.readouterr()
    start("report", trained.root)
    assert trained.report.read_bytes() == before
    assert f"report: {newest}" in capsys.readouterr().out
    start("train", trained.root)
    assert trained.report.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "modes"),
    [
        ("text", ("report", "evaluate")),
        ("null", ("report", "evaluate")),
        ("[]", ("report", "evaluate")),
        ('{"metrics": {}}', ("report", "evaluate")),
        ('{"key": {}, "metrics": null}', ("report",)),
    ],
)
def test_a_record_that_was_edited_by_hand_is_named(content, modes, of_images):
    file = of_images.evaluations / "step_4" / "record.json"
    file.write_text(content)
    for mode in modes:
        with pytest.raises(UserError, match=r"record\.json is damaged") as caught:
            start(mode, of_images.root)
        assert "\n" not in str(caught.value)


def test_without_an_evaluation_the_report_says_how_to_get_one(of_images):
    (of_images.evaluations / "step_4").rename(of_images.root / "elsewhere")
    with pytest.raises(UserError, match="run --mode=evaluate first"):
        start("report", of_images.root)


def test_an_evaluation_of_a_run_on_images_reports_memorisation_and_shows_the_nearest(of_digits):
    metrics = read(of_digits, "step_4")["metrics"]
    for space in ("pixels", "random_conv"):
        assert 0 <= metrics[f"memorisation_auc_{space}"]["value"] <= 1
    assert (of_digits.evaluations / "step_4" / "neighbours.png").exists()
    assert of_digits.report.read_text().count("data:image/png;base64,") >= 4


def test_training_data_that_are_not_where_the_command_says_are_an_error_before_samples_are_drawn(
    of_images, tmp_path, no_samples
):
    nowhere = tmp_path / "nowhere"
    for changes, flags in (({"data.dir": nowhere}, {}), ({}, {"data_dir": nowhere})):
        with pytest.raises(UserError, match="nowhere"):
            evaluate(of_images, changes, num_samples=16, **flags)


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_without_the_training_data_is_completed_once_they_are_there(
    of_images, image_folder, monkeypatch, capsys
):
    load = evaluating.load_data

    def load_if_given(settings, data_dir):
        if not data_dir:
            raise DataError("the disk is not there")
        return load(settings, data_dir)

    def evaluated(**flags):
        evaluate(of_images, num_samples=16, **flags)
        shown, paths = capsys.readouterr().out, of_images.evaluations.glob("*/record.json")
        return "already evaluated" in shown, "the disk is not there" in shown, len(list(paths))

    monkeypatch.setattr(evaluating, "load_data", load_if_given)
    assert evaluated() == (False, True, 2)
    assert evaluated() == (True, True, 2)
    assert evaluated(data_dir=image_folder) == (False, False, 3)
    assert evaluated() == (True, False, 3)
    newest = read(of_images, records.newest(of_images.evaluations).name)
    assert "memorisation_auc_pixels" in newest["metrics"]


def test_a_classifier_that_guides_the_samples_of_a_run_does_not_evaluate_them(of_images, capsys):
    record = json.loads((of_images.root / "run.json").read_text())
    record["settings"]["condition.classifier"] = "nowhere.pt"
    write_json(of_images.root / "run.json", record)
    evaluate(of_images)
    assert "already evaluated: step 4" in capsys.readouterr().out


def test_samples_that_are_not_finite_have_no_metrics():
    samples = Samples(*np.full((3, 4, 8, 8, 1), np.nan))
    opened = SimpleNamespace(run=SimpleNamespace(metric_reference=ImageReference("x", samples[0])))
    found = evaluating._score(opened, samples, None, None, None)
    assert found.metrics == {}
    assert found.record["skipped"] == ["all metrics: some samples are not finite numbers"]
    assert translation.caption(found.metrics) == ""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("main --workdir=/data/runs/x --seed=1", "main --workdir=x --seed=1"),
        ("main '--workdir=/data/Jane Doe/my run' -x", "main '--workdir=my run' -x"),
        ("main --data_dir '/mnt/other dir/x'", "main --data_dir x"),
        ("main --workdir=/data/a=b/x", "main --workdir=x"),
        ("main '--workdir=~/my runs/x' a/b", "main '--workdir=~/my runs/x' a/b"),
    ],
)
def test_a_report_shows_of_an_absolute_path_only_the_last_part(command, expected):
    assert report._without_paths(command) == expected


def test_an_evaluation_of_points_compares_the_estimated_log_ratio_with_the_true_one(trained):
    metrics = read(trained, "step_4")["metrics"]
    assert metrics["log_ratio_kl"]["value"] > 0  # After four steps the estimate is still useless.
    assert metrics["kl_to_data"]["value"] > 0
    assert metrics["sinkhorn_divergence_64"]["value"] > 0


@pytest.mark.usefixtures("no_pictures")
def test_inception_metrics_see_unrounded_samples_and_the_training_set(
    of_digits, tmp_path, monkeypatch
):
    weights = tmp_path / "weights.pth"
    weights.write_text("weights")
    calls = []

    def compute(samples, reference, protocol, weights, metrics, *, cache):
        calls.append((samples, reference, protocol.name, metrics))
        metric = Metric(f"fid_of_{protocol.name}", "fid", Estimate(1.0))
        return [metric], {"protocol": protocol.name}

    monkeypatch.setattr(inception, "compute", compute)
    monkeypatch.setattr(inception, "check_ready", lambda protocol, file: sha256_of_file(Path(file)))
    of_protocols = ("evaluate.inception_weights", "evaluate.legacy_weights")
    for _ in range(2):  # The second one is not computed again.
        evaluate(of_digits, dict.fromkeys(of_protocols, weights))
    found = read(of_digits, records.newest(of_digits.evaluations).name)
    names = ["standard", "fid_legacy_fdrl"]
    assert [call[2] for call in calls] == names
    assert {f"fid_of_{name}" for name in names} < found["metrics"].keys()
    samples, reference, _, metrics = calls[1]
    assert samples.pixels == "float32"
    assert (len(samples.unit), reference.summary[0]) == (64, (1_437, 8, 8, 1))
    assert metrics == ["fid"]
    assert reference.where == "training set of digits"
    # Other metrics, and other weights, are another evaluation.
    evaluate(of_digits, {of_protocols[0]: weights, "evaluate.inception_score": True})
    assert calls[-1][3][-1] == "inception_score"
    weights.write_text("other weights")
    evaluate(of_digits, {of_protocols[0]: weights, "evaluate.inception_score": True})
    assert len(calls) == 4

    # Metrics that failed are skipped, and the same command tries again.
    def fail(*_, **__):
        raise UserError("the process ended")

    weights.write_text("new weights")
    monkeypatch.setattr(inception, "compute", fail)
    evaluate(of_digits, {of_protocols[0]: weights})
    found = read(of_digits, records.newest(of_digits.evaluations).name)
    assert found["details"]["skipped"] == ["Inception metrics: the process ended"]
    assert "memorisation_auc_pixels" in found["metrics"]
    monkeypatch.setattr(inception, "compute", compute)
    evaluate(of_digits, {of_protocols[0]: weights})
    assert len(calls) == 5


@pytest.fixture
def no_samples(monkeypatch):
    """Makes a test fail that draws samples."""
    monkeypatch.setattr(
        evaluating, "sample_state", lambda *_, **__: pytest.fail("samples were drawn")
    )


def drawn_for(reference, kind, monkeypatch, *, of_inception=False):
    """Returns the numbers of samples that an evaluation of 50,000 draws: refined, and others."""
    monkeypatch.setattr(evaluating, "sample_state", lambda *arguments, **keep: (arguments[2], keep))
    source = SimpleNamespace(kind=kind)
    opened = SimpleNamespace(
        run=SimpleNamespace(metric_reference=reference),
        experiment=SimpleNamespace(source=source),
        checkpoint=SimpleNamespace(state=None),
    )
    return evaluating._draw(opened, 50_000, of_inception=of_inception)


def test_an_evaluation_keeps_of_each_stage_only_the_samples_that_it_reads(monkeypatch):
    images = np.zeros((1_500, 2, 2, 3), np.float32)
    points = Source("points", (2,), held_out=lambda num, seed: np.zeros((num, 2)))
    of_images = ImageReference("x", images)
    pair = of_images._replace(starts=images, num_held_out=5)
    fewer = of_images._replace(starts=images[:400], num_held_out=5)
    for reference, kind, expected in (
        (points, "points", (10_000, {"num_prior": 10_000, "num_bridged": 10_000})),
        (of_images, "images", (5_000, {"num_prior": 5_000})),
        (pair, "images", (1_000, {"num_prior": 100})),
        (fewer, "images", (400, {"num_prior": 100})),
    ):
        assert drawn_for(reference, kind, monkeypatch) == expected
    drawn = drawn_for(of_images, "images", monkeypatch, of_inception=True)
    assert drawn == (50_000, {"num_prior": 5_000})


def test_missing_weights_or_packages_are_named_before_any_sample_is_drawn(
    trained, tmp_path, monkeypatch, no_samples
):
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist"):
        evaluate(trained, {"evaluate.inception_weights": "nowhere.pth"})
    (tmp_path / "weights.pth").write_text("weights")
    monkeypatch.setattr(inception.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="torch, torchvision, torch_fidelity is not installed"):
        evaluate(trained, {"evaluate.inception_weights": tmp_path / "weights.pth"})


def test_the_picture_of_a_translation_names_its_domains_and_says_how_it_went(tmp_path, monkeypatch):
    drawn, draw = [], pictures.samples_and_data
    monkeypatch.setattr(
        pictures, "samples_and_data", lambda *args: drawn.append(args) or draw(*args)
    )

    start("train", tmp_path / "run", "digits_pair:tiny")

    ((*_, domains, caption),) = drawn
    assert domains == ("3", "8")
    assert "classified as the target" in caption
    assert "nearest to their own source" in caption
