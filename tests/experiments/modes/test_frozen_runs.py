"""Sampling, evaluation and the dry run of an existing or a future run."""

import json

import numpy as np
import pytest
from experiments.request import Request

from experiments import modes
from experiments.data import to_uint8
from experiments.errors import UserError
from fdrl_jax import parallel


def test_samples_come_from_the_newest_checkpoint_or_the_one_named(trained, tiny, capsys):
    modes.run(Request("sample", tiny(), trained.root, num_samples=10))
    modes.run(Request("sample", tiny(), trained.root, checkpoint="2", num_samples=10))
    newest, named = (np.load(trained.samples / f"step_{s}.npz")["arr_0"] for s in (4, 2))
    assert newest.shape == named.shape == (10, 2)
    assert not np.array_equal(newest, named)
    assert (trained.samples / "step_4.png").exists()
    assert "10 samples of step 4" in capsys.readouterr().out


def test_a_sample_does_not_depend_on_how_many_are_drawn_with_it(trained, tiny):
    drawn = {}
    for num, batch_size in ((5, 5), (21, 8)):
        config = tiny(changes={"evaluate.batch_size": batch_size})
        modes.run(Request("sample", config, trained.root, num_samples=num))
        drawn[num] = np.load(trained.samples / "step_4.npz")["arr_0"]
    np.testing.assert_allclose(drawn[5], drawn[21][:5], rtol=1e-5, atol=1e-6)


def test_sampling_may_flow_longer_than_training_did(trained, tiny):
    drawn = []
    for num_refine_steps in (1, 7):
        changes = {"flow.num_refine_steps": num_refine_steps, "sample.name": "long"}
        modes.run(Request("sample", tiny(changes=changes), trained.root, num_samples=4))
        record = json.loads((trained.samples / "long.json").read_text())
        assert record["settings"]["flow.num_refine_steps"] == num_refine_steps
        drawn.append(np.load(trained.samples / "long.npz")["arr_0"])
    assert not np.allclose(*drawn)


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(trained, tiny):
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .* there are \[2, 4\]"):
        modes.run(Request("sample", tiny(), trained.root, checkpoint="3", num_samples=4))


def test_an_empty_workdir_is_told_to_train_first(tiny, tmp_path):
    with pytest.raises(UserError, match="train first"):
        modes.run(Request("evaluate", tiny(), tmp_path))
    assert not any(tmp_path.iterdir())


def test_evaluation_of_a_checkpoint_is_repeatable(trained, tiny):
    first = json.loads(trained.evaluation.read_text())
    modes.run(Request("evaluate", tiny(), trained.root))
    assert json.loads(trained.evaluation.read_text()) == first


def test_a_finished_run_is_not_trained_again(trained, tiny, capsys):
    before = trained.report.stat().st_mtime_ns
    modes.run(Request("train", tiny(), trained.root, "again"))
    assert "already trained" in capsys.readouterr().out
    assert trained.report.stat().st_mtime_ns == before


def test_a_dry_run_tells_shapes_memory_and_time_and_writes_nothing(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    modes.run(Request("dry_run", tiny("digits")))
    told = capsys.readouterr().out
    for word in ("flow.step_size", "devices:", "parameters", "(8, 8, 1)", "MiB", "about"):
        assert word in told
    assert not any(tmp_path.iterdir())


def test_images_are_stored_as_clipped_grey_levels():
    images = np.array([-1.2, -1.0, 0.0, 1.0, 3.0], np.float32)
    assert to_uint8(images).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("mode", ["prior", "export", "strips", "interpolate"])
def test_of_several_processes_the_first_alone_writes(mode, trained, tiny, monkeypatch):
    before = sorted(trained.root.rglob("*"))
    monkeypatch.setattr(parallel, "is_first_process", lambda: False)
    modes.run(Request(mode, tiny(), trained.root))
    assert sorted(trained.root.rglob("*")) == before
