"""Evaluations are sealed records that describe their inputs."""

import json
import shutil

import pytest
from small_runs import contents, start

from experiments import draw, evaluate, report
from experiments.errors import DataError, UserError
from experiments.evaluation import inception

NUM = 50  # Neither the number of the run nor a multiple of a batch.


@pytest.fixture
def no_pictures(monkeypatch):
    """Draws no pictures, for tests that evaluate often and look at numbers only."""
    monkeypatch.setattr(report, "draw_pictures", lambda *_: {})
    monkeypatch.setattr(report, "write", lambda run, record, folder: folder / "report.html")


def evaluated(run, changes=None, **flags):
    start("evaluate", run.root, None, changes, **flags)


def records(run):
    """The records of a run, that of its training first."""
    paths = run.evaluations.glob("*/record.json")
    paths = sorted(paths, key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def test_a_finished_run_has_a_record_with_its_settings_and_is_not_evaluated_again(trained, capsys):
    found, *_ = records(trained)
    assert found["key"]["num_samples"] == found["details"]["num_samples"] == 64
    assert found["key"]["settings"]["flow.num_steps"] == 3
    assert found["key"]["run"] == trained.id
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
    keys = [record["key"] for record in records(trained)]
    described = [(k["step"], k["num_samples"], k["settings"]["flow.num_steps"]) for k in keys]
    assert sorted(described) == [(2, 64, 3), (4, NUM, 3), (4, 64, 3), (4, 64, 5)]
    with pytest.raises(UserError, match=r"at least 2 samples, got --num_samples=1"):
        evaluated(trained, num_samples=1)


def test_a_changed_digit_in_a_record_is_refused_and_not_reported(trained, tmp_path):
    folder = shutil.copytree(trained.root, tmp_path / "run")
    for file in folder.glob("evaluations/*/record.json"):  # Other tests evaluate this run as well.
        record = json.loads(file.read_text())
        next(iter(record["metrics"].values()))["value"] += 0.1
        file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"record\.json is damaged: it is not what was written"):
        start("evaluate", folder)


def test_an_interrupted_evaluation_leaves_no_record(trained, monkeypatch):
    before = contents(trained.evaluations)
    monkeypatch.setattr(report, "draw_pictures", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluated(trained, num_samples=NUM + 1)
    assert contents(trained.evaluations) == before


def test_what_is_missing_is_an_error_before_samples_are_drawn(of_images, tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "sample_state", lambda *_, **__: pytest.fail("samples were drawn"))
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

    def missing(options):
        raise DataError("the disk is not there: /home/me")

    def outcome(**flags):
        evaluated(of_images, num_samples=16, **flags)
        shown = capsys.readouterr().out
        assert "/home/me" not in shown
        is_done, is_missing = "already evaluated" in shown, "images are not available" in shown
        return is_done, is_missing, len(records(of_images))

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "load", missing)
        assert outcome() == (False, True, 2)
        assert outcome() == (True, True, 2)
    assert outcome(data_dir=image_folder) == (False, False, 3)


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_by_a_classifier_has_its_metrics(of_digits, classifier_of_digits):
    evaluated(of_digits, num_samples=64, classifier=classifier_of_digits)
    (found,) = [r for r in records(of_digits) if r["key"]["classifier"]]
    names = {name for name in found["metrics"] if "classifier" in name}
    of_draws = {"frechet", "top_probability", "smallest_class_share"}
    assert names == {f"{n}_classifier_64" for n in of_draws} | {"memorisation_auc_classifier"}
    assert found["details"]["classifier"]["digest"] == found["key"]["classifier"]


def test_the_evaluation_of_a_ratio_per_class_has_the_accuracy_of_classes(by_class):
    metric = by_class.newest_evaluation({})["metrics"]["class_accuracy_svc"]
    # The prior is a Gaussian for each class, so its samples are recognised before any training.
    assert min(metric["real"], metric["prior"], metric["value"]) > 0.8


@pytest.mark.usefixtures("no_pictures")
def test_the_fid_compares_all_samples_with_the_training_set(of_digits, monkeypatch, tmp_path):
    seen = []

    def features(images):
        seen.append(len(images))
        return images.reshape(len(images), -1)[:, :4]

    monkeypatch.setattr(inception, "describe", lambda weights: {"sha256": "6726825d"})
    monkeypatch.setattr(inception, "load", lambda weights: features)
    evaluated(of_digits, {"evaluate.inception_weights": tmp_path / "file.pth"}, num_samples=NUM)
    (found,) = [r for r in records(of_digits) if r["key"]["inception"]]
    assert found["metrics"][f"fid_{NUM}"]["value"] > 0
    assert (seen[0], sum(seen[1:])) == (NUM, 1_437)
    assert str(tmp_path) not in json.dumps(found)
