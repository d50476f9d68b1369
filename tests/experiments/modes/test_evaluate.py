"""What an evaluation says of a run, and how it was taken."""

import numpy as np
import pytest
from experiments.request import Request
from experiments.storage.workdir import Workdir, read_json

from experiments import modes
from experiments.errors import UserError
from experiments.evaluation import compare
from experiments.evaluation.inception import Judged
from experiments.pictures import report


@pytest.fixture(scope="module")
def digits(tiny, tmp_path_factory) -> Workdir:
    workdir = Workdir(tmp_path_factory.mktemp("digits"))
    modes.run(Request("train", tiny("digits"), workdir.root, "a command"))
    return workdir


def test_an_evaluation_of_images_tells_of_memorisation_and_shows_the_nearest(digits):
    found = read_json(digits.evaluation)
    for space in ("pixels", "random_conv"):
        assert 0 <= found["metrics"][f"memorisation_auc_{space}"] <= 1
    assert (digits.pictures / "neighbours.png").exists()
    assert "Nearest training images" in digits.report.read_text()
    run = found["run"]
    assert (run["checkpoint_step"], run["seed"], run["weights"]) == (4, 0, "ema")
    assert (run["num_steps"], run["num_refine_steps"]) == (3, 1)


def test_an_evaluation_of_points_compares_the_estimated_log_ratio_with_the_true_one(trained):
    metrics = read_json(trained.evaluation)["metrics"]
    assert metrics["log_ratio_kl"] > 0  # After four steps the estimate is of no use yet.
    assert metrics["kl_to_data"] > 0
    assert metrics["sinkhorn_divergence_64"] > 0


def test_weights_of_an_inception_network_judge_unrounded_samples_by_the_training_set(
    digits, tiny, tmp_path, monkeypatch
):
    (tmp_path / "weights.pth").write_text("weights")
    calls = []

    def judge(samples, reference, protocol, weights, metrics, *, cache):
        calls.append((samples, reference, protocol.name, metrics))
        return Judged({f"fid_of_{protocol.name}": 1.0}, {"protocol": protocol.name}, np.zeros(1))

    monkeypatch.setattr(compare.inception, "judge", judge)
    keys = ("evaluate.inception_weights", "evaluate.legacy_weights")
    config = tiny("digits", dict.fromkeys(keys, str(tmp_path / "weights.pth")))
    modes.run(Request("evaluate", config, digits.root))
    found = read_json(digits.evaluation)
    names = ["standard", "fid_legacy_fdrl"]
    assert [call[2] for call in calls] == names
    assert [p["protocol"] for p in found["protocols"]] == names
    assert {f"fid_of_{name}" for name in names} < found["metrics"].keys()
    samples, reference, _, metrics = calls[1]
    assert samples.pixels.dtype == np.float32
    assert reference.pixels.dtype == np.uint8
    assert (len(samples.pixels), len(reference.pixels)) == (64, 1_437)
    assert metrics == ["fid"]
    assert found["reference"]["where"] == "training set of digits"


def test_missing_weights_are_told_before_training_begins(tiny, tmp_path):
    config = tiny(changes={"evaluate.inception_weights": "nowhere.pth"})
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist.*6726825d"):
        modes.run(Request("train", config, tmp_path / "run", "a command"))
    assert not (tmp_path / "run").exists()


def test_a_report_never_stands_beside_metrics_of_another_evaluation(tiny, tmp_path, monkeypatch):
    run = Request("train", tiny(), tmp_path / "run", "a command")
    workdir = Workdir(run.workdir)
    modes.run(run)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(report, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            modes.run(run._replace(mode="evaluate", checkpoint="2"))
    assert read_json(workdir.evaluation)["step"] == 2
    assert not workdir.report.exists()
    modes.run(run)
    assert read_json(workdir.evaluation)["step"] == 4
    assert "step 4" in workdir.report.read_text()
