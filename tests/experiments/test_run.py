"""A run is frozen when it is created: nothing changes later that its results depend on."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL_RESNET, command, contents, start, train

from experiments import devices, draw, run, settings
from experiments.data import load
from experiments.errors import UserError

VOLATILE = ("lock", "commands.jsonl")  # Written by every command that trains.


def frozen(folder):
    """Returns the contents of a run, apart from the log of commands and the lock."""
    return {k: v for k, v in contents(folder).items() if k not in VOLATILE}


def samples_of(folder, num=6):
    opened = run.open_checkpoint(command("sample", folder))
    return draw.sample_state(opened.experiment, opened.state, num).refined


@pytest.fixture
def own_images(image_folder, tmp_path):
    """A copy of the images that a test may change."""
    return shutil.copytree(image_folder, tmp_path / "images")


@pytest.fixture
def own_run(own_images, tmp_path, monkeypatch):
    """A run on these images, with its prior, that is trained for two steps."""
    monkeypatch.setenv("HOME", str(tmp_path))
    # Under a cosine schedule, the number of steps is a part of every step.
    changes = {"data.dir": own_images, "data.image_size": 8, "optimizer.schedule": "constant"}
    rarely = {"checkpoint.every_steps": 100, "snapshot.every_steps": 100, "train.num_steps": 2}
    train(tmp_path / "run", {**changes, **rarely, **SMALL_RESNET}, "folder:tiny")
    return run.open_run(tmp_path / "run")


def new(root, wanted=None, kind="ratio"):
    """Creates a run on the swiss roll without training it."""
    wanted = wanted or settings.Settings()
    with run.locked_folder(root):
        return run.create(root, kind, wanted, load(wanted.data), None, "a command")


def edit(root, **changes):
    """Changes `run.json` as a program would that knows its digest."""
    record = json.loads((root / "run.json").read_text()) | changes
    record.pop("sha256")
    run.files.write_sealed(root / "run.json", record)


def test_samples_use_the_prior_at_creation_even_if_every_image_is_edited_or_removed(
    own_run, own_images, tmp_path, monkeypatch
):
    before, files = samples_of(own_run.root), frozen(own_run.root)
    for path in own_images.rglob("*.png"):
        Image.new("RGB", (8, 8), (250, 250, 250)).save(path)
    np.testing.assert_array_equal(samples_of(own_run.root), before)
    assert frozen(own_run.root) == files
    with pytest.raises(UserError, match="images or labels were added, removed, renamed"):
        train(own_run.root, {"train.num_steps": 3})
    assert frozen(own_run.root) == files
    # On another machine without the data. Orbax's mark of a complete checkpoint has its path.
    files = contents(own_run.root).items()
    content = b"".join(value for name, value in files if not name.endswith("commit_success.txt"))
    assert str(tmp_path).encode() not in content
    shutil.rmtree(own_images)
    shutil.move(own_run.root, tmp_path / "elsewhere" / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(samples_of(Path("run")), before)
    assert run.open_run(Path("run")).id == own_run.id


def test_resuming_on_an_array_with_other_pixels_or_labels_is_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    stored = {"images": images, "labels": np.arange(20) % 3}
    np.savez(tmp_path / "data.npz", **stored)
    data = {"data.name": "npz", "data.dir": str(tmp_path / "data.npz"), "data.channels": 1}
    created = new(tmp_path / "run", settings.from_config(data))
    created.check_data(load(created.settings.data))
    for edited in stored:
        np.savez(tmp_path / "data.npz", **{**stored, edited: stored[edited][::-1]})
        with pytest.raises(UserError, match=r"images or labels were .* replaced"):
            created.check_data(load(created.settings.data))


def test_settings_that_are_fixed_are_named(tmp_path):
    created = new(tmp_path / "run")
    allowed = {"flow.step_size": 0.5, "seed": 7, "condition.weight": 1.0}
    wanted = settings.replace(created.settings, allowed)
    assert created.changed(wanted, "sample") == wanted
    with pytest.raises(UserError, match=r"flow\.step_size is 0\.5 but was 3\.0; seed is 7"):
        created.changed(wanted, "train")


def test_another_version_or_device_is_only_reported(tmp_path, caplog):
    new(tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "run.json").read_text())["environment"]
    edit(tmp_path / "run", environment=environment | {"jaxlib": "0.1", "cores": 64})
    run.open_run(tmp_path / "run").warn_of_changes(environment["precision"])
    (message,) = (r.getMessage() for r in caplog.records if r.name == "fdrl")
    assert re.search(r"the last digits may differ .*: jaxlib .* \(was 0\.1\), cores", message)


def test_a_folder_that_cannot_hold_a_new_run_is_refused(own_images, tmp_path):
    wanted = settings.from_config({"data.name": "folder", "data.dir": str(own_images)})
    inside = own_images / "ant" / "run"
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    for root, message in (
        (inside, "is in the folder of the data"),
        (tmp_path / "other", r"contains checkpoints but no run\.json"),
        (tmp_path / "a[1]", "Orbax cannot read"),
    ):
        with pytest.raises(UserError, match=message), run.locked_folder(root):
            run.check_free(root, wanted)
    assert not inside.exists()


def test_a_run_that_was_not_created_to_the_end_does_not_open(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run.files, "write_sealed", fail)
        with pytest.raises(KeyboardInterrupt):
            new(tmp_path / "run")
    with pytest.raises(UserError, match="contains no run"):
        run.open_run(tmp_path / "run")
    assert new(tmp_path / "run").id == new(tmp_path / "other").id


def test_the_identity_depends_on_all_stored_settings(tmp_path):
    changes = ({}, {"seed": 3}, {"flow.num_steps": 4}, {"optimizer.learning_rate": 0.01})
    wanted = [settings.from_config(of_run) for of_run in changes]
    ids = {new(tmp_path / str(i), of_run).id for i, of_run in enumerate(wanted)}
    assert len(ids) == len(changes)


def test_what_is_not_a_run_is_named_with_a_similar_one(tmp_path):
    new(tmp_path / "of_images")
    for mode in ("sample", "train"):
        with pytest.raises(UserError, match=r"of_image contains no run; did you mean 'of_images'"):
            start(mode, tmp_path / "of_image")
    assert [path.name for path in tmp_path.iterdir()] == ["of_images"]


def test_a_rejected_command_leaves_nothing_in_a_folder_without_a_run(tmp_path):
    (tmp_path / "images").mkdir()
    for name, kept in (("new", None), ("images", []), ("used", ["lock", "run.json"])):
        folder = tmp_path / name
        with contextlib.suppress(KeyError), run.locked_folder(folder):
            if name == "used":
                (folder / "run.json").touch()
            with pytest.raises(UserError, match="is in use by"), run.locked_folder(folder):
                pass
            raise KeyError
        assert (sorted(p.name for p in folder.iterdir()) if folder.exists() else None) == kept


def test_a_run_of_another_version_or_kind_is_refused(tmp_path):
    new(tmp_path / "run")
    with pytest.raises(UserError, match="is a run of --mode=train"):
        run.open_run(tmp_path / "run", "classifier")
    for number in (2, 4):
        edit(tmp_path / "run", format=number)
        with pytest.raises(UserError, match="was written by another version of fdrl_jax; train it"):
            run.open_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["run.json", "prior.npz", "reference.npz"])
def test_a_part_of_a_run_that_was_changed_is_named(name, of_images):
    path = of_images.root / name
    whole = path.read_bytes()
    for content in (whole[:-9], whole[:-40], whole.replace(b"a", b"b", 1), None):
        path.unlink() if content is None else path.write_bytes(content)
        expected = (
            name.replace(".", r"\.") if content is not None or name != "run.json" else "no run"
        )
        with pytest.raises(UserError, match=expected):
            run.open_checkpoint(command("sample", of_images.root))


def test_a_damaged_snapshot_is_skipped(of_images, tmp_path, caplog):
    copied = run.open_run(shutil.copytree(of_images.root, tmp_path / "run"))
    (_, *whole) = copied.read_snapshots(4)
    first = min(copied.snapshots.iterdir())
    first.write_bytes(first.read_bytes()[:-40])
    assert [step for step, _ in copied.read_snapshots(4)] == [step for step, _ in whole]
    assert f"skipped a snapshot: {first}" in caplog.text


def test_a_record_has_the_name_of_its_step_and_of_everything_that_determines_it(of_images):
    opened = run.open_checkpoint(command("evaluate", of_images.root))
    key, fewer = run.key_of(opened, 9), run.key_of(opened, 5)
    assert key["checkpoint_sha256"] == of_images.digest(opened.state)
    names = {run.name_of(opened, of) for of in (key, fewer, key | {"classifier": "digest"})}
    assert len(names) == 3
    assert all(name.startswith("step_4-") for name in names)
    (file,) = of_images.evaluations.glob("*/record.json")
    assert of_images.newest_evaluation({"step": 4})["key"] == json.loads(file.read_text())["key"]
    file.write_text(file.read_text().replace("2", "1", 1))
    with pytest.raises(UserError, match=r"record\.json is damaged"):
        start("evaluate", of_images.root)


def test_processes_must_agree_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "same_on_all_processes", lambda _: False)
    with pytest.raises(UserError, match="have different settings, data, versions, checkpoints"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
