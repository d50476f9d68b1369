"""A run is frozen when it is created: nothing changes later that its results depend on.

Tests of commands that are refused, or of data that change, compare the whole folder.
"""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL_RESNET, command, contents, start, train

from experiments import run
from experiments.data import DataOptions, load
from experiments.errors import UserError
from experiments.sampling.draw import sample_state
from experiments.sampling.opened import open_checkpoint
from fdrl_jax.training import parallel

# Written by every command, or by libraries when a folder is opened.
VOLATILE = ("lock", "commands.jsonl")


def frozen(folder):
    """Returns the contents of a run, apart from the log of commands and the lock."""
    return {k: v for k, v in contents(folder).items() if k not in VOLATILE}


def samples_of(folder, num=6):
    opened = open_checkpoint(command("sample", folder))
    return sample_state(opened.experiment, opened.checkpoint.state, num).refined


def repaint(folder):
    for path in folder.rglob("*.png"):
        Image.new("RGB", (8, 8), (250, 250, 250)).save(path)


# Under a cosine schedule, the number of steps is a part of every step.
EXTENSIBLE = {"optimizer.schedule": "constant"}


@pytest.fixture
def own_images(image_folder, tmp_path):
    """A copy of the images that a test may change."""
    shutil.copytree(image_folder, tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def own_run(own_images, tmp_path):
    """A run on these images, created with its prior and trained for two steps."""
    changes = {"data.dir": own_images, "data.image_size": 8, "train.num_steps": 2, **SMALL_RESNET}
    rarely = {"checkpoint.every_steps": 100, "snapshot.every_steps": 100}
    train(tmp_path / "run", {**changes, **rarely, **EXTENSIBLE}, "folder:tiny")
    return run.open_run(tmp_path / "run")


def test_samples_use_the_prior_at_creation_even_if_every_image_is_edited(own_run, own_images):
    before, files = samples_of(own_run.root), frozen(own_run.root)
    repaint(own_images)
    np.testing.assert_array_equal(samples_of(own_run.root), before)
    assert frozen(own_run.root) == files


def test_resuming_on_edited_images_warns_and_keeps_the_prior(own_run, own_images, caplog):
    before = (own_run.root / "prior.npz").read_bytes()
    repaint(own_images)
    train(own_run.root, {"train.num_steps": 3})
    assert "other sizes or modification times" in caplog.text
    assert (own_run.root / "prior.npz").read_bytes() == before


def test_resuming_on_images_that_were_added_or_removed_is_refused(own_run, own_images):
    files = frozen(own_run.root)
    next(own_images.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="images were added, removed or renamed"):
        train(own_run.root, {"train.num_steps": 3})
    assert frozen(own_run.root) == files


def test_streamed_images_with_classes_may_be_skipped_when_a_run_resumes(image_folder, tmp_path):
    options = DataOptions("folder", str(image_folder), in_memory_megabytes=0)
    one, other = (load(options._replace(on_error=value)) for value in ("stop", "skip"))
    assert one.classes != other.classes
    record = {"kind": "ratio", "settings": {}, "command": "", "prior_sha256": None}
    for then, now in ((one, other), (other, one)):
        data = run.describe_data(then)
        created = run.Run(tmp_path, {**record, "reference_sha256": None, "data": data})
        created.check_data(now)
        with pytest.raises(UserError, match="identity"):
            created.check_data(now._replace(identity="other"))


def test_a_run_works_on_another_machine_without_its_data(
    own_run, own_images, tmp_path, monkeypatch
):
    shutil.rmtree(own_images)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(own_run.root, elsewhere / "run")
    shutil.rmtree(own_run.root)
    monkeypatch.chdir(elsewhere)
    folder = Path("run")
    start("sample", folder, num_samples=5)
    start("strips", folder, num_samples=2)
    start("interpolate", folder)
    start("curve", folder, None, {"curve.lengths": (0, 3)}, num_samples=8)
    start("export", folder, platforms="cpu")
    start("evaluate", folder, num_samples=16)
    (file,) = folder.glob("evaluations/*/record.json")
    skipped = json.loads(file.read_text())["details"]["skipped"]
    assert any("training data" in str(reason) for reason in skipped)
    start("report", folder)
    assert (elsewhere / "run" / "samples" / "step_2.npz").is_file()
    for name in ("strips.png", "interpolation.png"):
        assert (elsewhere / "run" / "pictures" / name).is_file()


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("sample", {"prior.jitter": 0.5}),
        ("sample", {"data.image_size": 30}),
        ("evaluate", {"network.width": 5}),
        ("interpolate", {"loss.divergence": "js"}),
        ("export", {"train.ema_rate": 0.5}),
        ("train", {"prior.jitter": 0.5}),
        ("prior", {"prior.jitter": 0.5}),
        ("train", {"train.batch_size": 8}),
    ],
)
def test_a_rejected_command_changes_nothing(mode, changes, of_images):
    before = frozen(of_images.root)
    with pytest.raises(UserError, match=next(iter(changes))):
        start(mode, of_images.root, None, changes)
    assert frozen(of_images.root) == before


@pytest.mark.parametrize("key", ["evaluate.inception_weights", "evaluate.legacy_weights"])
def test_a_missing_file_that_is_read_after_training_is_named_before_it(key, tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        start("train", tmp_path / "run", "swissroll:tiny", {key: "nowhere"})
    assert not any(tmp_path.iterdir())


def test_a_free_setting_may_change_on_resume_and_every_command_is_logged(of_images):
    before = (of_images.root / "run.json").read_bytes()
    start("train", of_images.root, None, {"log.every_steps": 1})
    assert (of_images.root / "run.json").read_bytes() == before
    log = (of_images.root / "commands.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["command"] for line in log)
    assert "--config=folder:tiny" in first
    assert second.endswith(f"--workdir={of_images.root} --config.log.every_steps=1")
    assert run.open_run(of_images.root).command == first


def test_where_the_data_are_is_not_stored_unless_it_was_given(own_images, tmp_path, monkeypatch):
    monkeypatch.setenv("FDRL_DATA_DIR", str(own_images))
    changes = {"data.image_size": 8, "train.num_steps": 1, **SMALL_RESNET, **EXTENSIBLE}
    train(tmp_path / "run", changes, "folder:tiny")
    record = (tmp_path / "run" / "run.json").read_text()
    assert str(own_images) not in record
    moved = own_images.rename(tmp_path / "moved")
    monkeypatch.setenv("FDRL_DATA_DIR", str(moved))
    train(tmp_path / "run", {"train.num_steps": 2})


def test_an_error_says_why_a_cosine_schedule_cannot_be_longer(of_images):
    wanted = of_images.settings | {"train.num_steps": 6, "optimizer.schedule": "cosine"}
    with pytest.raises(UserError, match=r"is 6 but was 4\..* a longer training is a new run\. Use"):
        of_images.resumed(wanted)


def test_later_commands_find_the_data_where_the_first_one_did(
    own_images, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("FDRL_DATA_DIR", raising=False)
    monkeypatch.chdir(own_images.parent)
    folder, changes = tmp_path / "run", {"data.image_size": 8, **SMALL_RESNET}
    start("prior", folder, "folder:tiny", changes, data_dir=own_images.name)
    recipe = f"recipe for colour images of 8 x 8 pixels on a {jax.default_backend().upper()}"
    assert recipe in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "run")
    start("prior", folder)
    created = run.open_run(folder)
    assert created.remembered_dir("") == str(own_images)
    assert created.remembered_dir("elsewhere") == ""
    monkeypatch.setenv("FDRL_DATA_DIR", "/of/this/machine")
    assert created.remembered_dir("") == ""
    monkeypatch.delenv("FDRL_DATA_DIR")
    record = json.loads((folder / "run.json").read_text())
    del record["data_dir"]  # Runs that were created without it can still be opened.
    (folder / "run.json").write_text(json.dumps(record))
    assert run.open_run(folder).id == created.id
    with pytest.raises(UserError, match="needs the path of the data"):
        start("prior", folder)


def test_the_error_for_a_missing_run_suggests_a_similar_one(of_images):
    wrong = of_images.root.with_name("of_image")
    for mode in ("sample", "evaluate", "report", "export"):
        with pytest.raises(UserError, match=rf"contains no run; did you mean '{of_images.root}'"):
            start(mode, wrong)
    assert not wrong.exists()


def test_training_without_a_config_names_the_runs_nearby(of_images):
    wrong = of_images.root.with_name("of_image")
    with pytest.raises(UserError, match=rf"no run; did you mean '{of_images.root}'\? Train one"):
        start("train", wrong)
    with pytest.raises(UserError, match=r"no run; runs there: of_images\. Train one"):
        start("train", of_images.root.with_name("nope"))
    assert not wrong.exists()


def test_a_file_in_place_of_a_run_is_named(tmp_path):
    (tmp_path / "README.md").write_text("# A project")
    with pytest.raises(UserError, match=r"README\.md is a file, not the folder of a run"):
        start("sample", tmp_path / "README.md")
    with pytest.raises(UserError, match=r"README\.md cannot be written"):
        start("train", tmp_path / "README.md", "swissroll:tiny")
    assert (tmp_path / "README.md").read_text() == "# A project"


@pytest.mark.parametrize("name", ["a[1]", "what?", "x" * 300, "a\\b"])
def test_a_folder_that_cannot_contain_a_run_is_refused_before_the_first_step(name, tmp_path):
    with pytest.raises((UserError, OSError)) as caught:
        start("train", tmp_path / name, "swissroll:tiny")
    if isinstance(caught.value, OSError):  # `main` reports it in one line.
        assert "File name too long" in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_the_error_for_a_run_of_an_old_version_shows_the_command_that_converts_it(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for mode in ("sample", "train"):
        with pytest.raises(
            UserError, match=rf"version 0\.1; .*--mode=migrate --workdir={tmp_path}"
        ):
            start(mode, tmp_path)


def test_a_run_of_a_newer_version_is_refused(of_images):
    record = json.loads((of_images.root / "run.json").read_text())
    (of_images.root / "run.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(UserError, match="newer version of fdrl_jax"):
        run.open_run(of_images.root)


def test_a_run_of_another_kind_is_refused_and_not_changed(of_images):
    before = contents(of_images.root)
    with pytest.raises(UserError, match=r"not a classifier; to resume .* use --mode=train"):
        start("train_classifier", of_images.root)
    assert {k: v for k, v in contents(of_images.root).items() if k != "lock"} == {
        k: v for k, v in before.items() if k != "lock"
    }
    start("sample", of_images.root, num_samples=2)


def test_two_programs_do_not_train_in_one_folder(tmp_path):
    with run.locked_folder(tmp_path), pytest.raises(UserError) as caught:
        start("train", tmp_path, "swissroll:tiny")
    message = str(caught.value)
    assert message.startswith(f"--workdir={tmp_path} is in use by process {os.getpid()} on ")
    assert message.endswith("or train in another --workdir")


def test_processes_with_different_folders_must_share_one(of_images, monkeypatch):
    monkeypatch.setattr(parallel, "same_on_all_processes", lambda _: False)
    with pytest.raises(UserError, match="is not the same folder on all processes"):
        run.open_run(of_images.root)


@pytest.mark.parametrize("mode", ["prior", "export", "strips", "interpolate"])
def test_of_several_processes_only_the_first_writes(mode, of_images, monkeypatch):
    before = sorted(of_images.root.rglob("*"))
    monkeypatch.setattr(parallel, "is_first_process", lambda: False)
    start(mode, of_images.root)
    assert sorted(of_images.root.rglob("*")) == before
