"""A run is frozen when it is created: nothing changes later that its results depend on."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL_RESNET, command, contents, start, train

from experiments import draw, run, settings
from experiments.data import load
from experiments.errors import UserError
from fdrl_jax.training import parallel

VOLATILE = ("lock", "commands.jsonl")  # Written by every command that trains.


def frozen(folder):
    """Returns the contents of a run, apart from the log of commands and the lock."""
    return {k: v for k, v in contents(folder).items() if k not in VOLATILE}


def samples_of(folder, num=6):
    opened = run.open_checkpoint(command("sample", folder))
    return draw.sample_state(opened.experiment, opened.state, num).refined


def repaint(folder):
    for path in folder.rglob("*.png"):
        Image.new("RGB", (8, 8), (250, 250, 250)).save(path)


@pytest.fixture
def own_images(image_folder, tmp_path):
    """A copy of the images that a test may change."""
    return shutil.copytree(image_folder, tmp_path / "images")


@pytest.fixture
def own_run(own_images, tmp_path):
    """A run on these images, with its prior, that is created but not trained."""
    # Under a cosine schedule, the number of steps is a part of every step.
    changes = {"data.dir": own_images, "data.image_size": 8, "optimizer.schedule": "constant"}
    rarely = {"checkpoint.every_steps": 100, "snapshot.every_steps": 100, "train.num_steps": 2}
    train(tmp_path / "run", {**changes, **rarely, **SMALL_RESNET}, "folder:tiny")
    return run.open_run(tmp_path / "run")


def test_samples_use_the_prior_at_creation_even_if_every_image_is_edited(
    own_run, own_images, caplog
):
    before, files = samples_of(own_run.root), frozen(own_run.root)
    repaint(own_images)
    np.testing.assert_array_equal(samples_of(own_run.root), before)
    assert frozen(own_run.root) == files
    train(own_run.root, {"train.num_steps": 3})
    assert "other sizes or modification times" in caplog.text
    assert (own_run.root / "prior.npz").read_bytes() == files["prior.npz"]


def test_resuming_on_images_that_were_removed_is_refused(own_run, own_images):
    files = frozen(own_run.root)
    next(own_images.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="images or labels were added, removed, renamed"):
        train(own_run.root, {"train.num_steps": 3})
    assert frozen(own_run.root) == files


def test_a_run_works_on_another_machine_without_its_data(
    own_run, own_images, tmp_path, monkeypatch
):
    expected = samples_of(own_run.root)
    shutil.rmtree(own_images)
    shutil.move(own_run.root, tmp_path / "elsewhere" / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(samples_of(Path("run")), expected)
    assert run.open_run(Path("run")).id == own_run.id


@pytest.mark.parametrize("edited", ["images", "labels", ""])
def test_resuming_on_an_array_with_other_pixels_or_labels_is_refused(edited, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    stored = {"images": images, "labels": np.arange(20) % 3}
    np.savez(tmp_path / "data.npz", **stored)
    data = {"data.name": "npz", "data.dir": str(tmp_path / "data.npz"), "data.channels": 1}
    created = new(tmp_path / "run", settings.from_config(data))
    if edited:
        stored[edited] = stored[edited][::-1]
    np.savez(tmp_path / "data.npz", **stored)
    changed = load(created.settings.data)
    if not edited:
        created.check_data(changed)
        return
    with pytest.raises(UserError, match=r"images or labels were .* replaced"):
        created.check_data(changed)


def test_samples_may_have_other_flows_but_not_other_networks(trained):
    changes = {"flow.step_size": 0.5, "seed": 7, "condition.weight": 1.0}
    assert settings.changed(trained.overridden(changes)).items() >= changes.items()
    for key in ("prior.jitter", "train.ema_rate"):
        with pytest.raises(UserError, match=rf"{key} is 0\.5 but was"):
            trained.overridden({key: 0.5})


def test_free_settings_may_change_on_resume_and_others_may_not(trained):
    free = settings.replace(trained.settings, {"log.every_steps": 1, "snapshot.every_steps": 3})
    assert trained.resumed(free) == free
    for changes in ({"flow.step_size": 0.5}, {"train.batch_size": 8}, {"loss.divergence": "js"}):
        with pytest.raises(UserError, match=rf"{next(iter(changes))} is .* but was"):
            trained.resumed(settings.replace(trained.settings, changes))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_training_may_be_longer_unless_its_schedule_depends_on_it(schedule, tmp_path):
    wanted = settings.from_config({"optimizer.schedule": schedule, "train.num_steps": 4})
    created = new(tmp_path / "run", wanted)
    longer = settings.replace(wanted, {"train.num_steps": 6})
    if schedule == "constant":
        assert created.resumed(longer).train.num_steps == 6
        return
    with pytest.raises(UserError, match=r"train.num_steps is 6 but was 4\."):
        created.resumed(longer)


def new(root, wanted=None, kind="ratio", data_dir=""):
    """Creates a run on the swiss roll without training it."""
    wanted = wanted or settings.Settings()
    with run.locked_folder(root):
        source = load(wanted.data)
        return run.create(root, kind, wanted, source, None, "a command", data_dir)


def edit(root, **changes):
    """Changes `run.json` as a program would that knows its digest."""
    record = json.loads((root / "run.json").read_text()) | changes
    record.pop("sha256")
    run.files.write_sealed(root / "run.json", record)


@pytest.mark.parametrize("name", ["jax_threefry_partitionable", "jax_random_seed_offset"])
def test_other_random_numbers_are_refused_when_a_run_resumes(name, tmp_path):
    created, before = new(tmp_path / "run"), getattr(jax.config, name)
    jax.config.update(name, not before)
    try:
        with pytest.raises(UserError, match=rf"random numbers would not be .*: {name} .* \(was "):
            created.resumed(created.settings)
        with pytest.raises(UserError, match="random numbers would not be"):
            run.open_checkpoint(command("sample", created.root))
    finally:
        jax.config.update(name, before)
    assert created.resumed(created.settings) == created.settings


def test_another_version_or_device_is_only_reported(tmp_path, caplog):
    new(tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "run.json").read_text())["environment"]
    edit(tmp_path / "run", environment=environment | {"jaxlib": "0.1", "XLA_FLAGS": "--x"})
    created = run.open_run(tmp_path / "run")
    assert created.resumed(created.settings) == created.settings
    (message,) = (r.getMessage() for r in caplog.records if r.name == "fdrl")
    assert "the last digits of results may differ" in message
    assert "(was 0.1)" in message
    assert "(was --x)" in message


def test_every_command_is_logged_and_the_first_one_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    created = new(tmp_path / "run")
    created.log_command(f"train --config={tmp_path}/c.py")
    created.log_command("train again")
    lines = (tmp_path / "run" / "commands.jsonl").read_text().splitlines()
    commands = [json.loads(line)["command"] for line in lines]
    assert commands == ["train --config=~/c.py", "train again"]
    assert run.open_run(tmp_path / "run").command == "a command"


def test_later_commands_find_the_data_where_the_first_one_did(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    created = new(tmp_path / "run", data_dir="images")
    monkeypatch.chdir(tmp_path / "run")
    assert created.remembered_dir("") == str(tmp_path / "images")
    assert created.remembered_dir("elsewhere") == ""


def test_a_run_inside_the_folder_of_its_images_is_refused(own_images):
    wanted = settings.from_config({"data.name": "folder", "data.dir": str(own_images)})
    root = own_images / "ant" / "run"
    with (
        pytest.raises(UserError, match="is in the folder of the data"),
        run.locked_folder(root),
    ):
        run.check_free(root, wanted.data)
    assert not root.exists()


def test_checkpoints_without_their_run_are_not_mixed_with_a_new_one(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"contains checkpoints but no run\.json"):
        new(tmp_path / "run")


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


def test_the_identity_depends_on_what_is_fixed_and_not_on_the_seed(tmp_path):
    changes = ({}, {"seed": 3, "log.every_steps": 7}, {"network.hidden_sizes": (8,)})
    wanted = [settings.from_config(of_run) for of_run in changes]
    first, same, other = (new(tmp_path / str(i), of_run).id for i, of_run in enumerate(wanted))
    assert first == same != other


@pytest.mark.parametrize("mode", ["sample", "train"])
def test_the_error_for_a_missing_run_suggests_a_similar_one(mode, tmp_path):
    new(tmp_path / "of_images")
    with pytest.raises(UserError, match=r"of_image contains no run; did you mean 'of_images'"):
        start(mode, tmp_path / "of_image")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["of_images"]


@pytest.mark.parametrize("creates", [False, True])
def test_a_file_in_place_of_a_run_is_named(creates, tmp_path):
    (tmp_path / "README.md").write_text("# A project")
    with (
        pytest.raises(UserError, match=r"README\.md contains no run"),
        run.locked_folder(tmp_path / "README.md", creates=creates),
    ):
        pass
    assert (tmp_path / "README.md").read_text() == "# A project"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        *((name, UserError, "Orbax cannot read") for name in ("a[1]", "what?", "a\\b")),
        (os.fsdecode(b"\xff"), UserError, "Orbax cannot read"),
        ("x" * 300, OSError, "too long"),
    ],
)
def test_a_folder_that_cannot_contain_a_run_is_refused(name, error, message, tmp_path):
    with pytest.raises(error, match=message), run.locked_folder(tmp_path / name):
        pass
    assert not any(tmp_path.iterdir())


def test_two_programs_do_not_train_in_one_folder(tmp_path):
    with (
        run.locked_folder(tmp_path),
        pytest.raises(UserError, match=r"--workdir=.* is in use by .* train in another --workdir"),
        run.locked_folder(tmp_path),
    ):
        pass


def test_a_rejected_command_leaves_nothing_in_a_folder_without_a_run(tmp_path):
    (tmp_path / "images").mkdir()
    for name, kept in (("new", None), ("images", []), ("used", ["lock", "run.json"])):
        folder = tmp_path / name
        with contextlib.suppress(KeyError), run.locked_folder(folder):
            if name == "used":
                (folder / "run.json").touch()
            raise KeyError
        assert (sorted(p.name for p in folder.iterdir()) if folder.exists() else None) == kept


def test_a_run_of_a_newer_version_is_refused(tmp_path):
    new(tmp_path / "run")
    edit(tmp_path / "run", format=99)
    with pytest.raises(UserError, match="newer version of fdrl_jax"):
        run.open_run(tmp_path / "run")


def test_a_run_of_a_program_without_a_new_setting_still_opens(tmp_path, monkeypatch):
    def older(wanted, *, to_flat=settings.to_flat):
        return {k: v for k, v in to_flat(wanted).items() if k != "network.denoiser_width"}

    with monkeypatch.context() as patched:
        patched.setattr(settings, "to_flat", older)
        train(tmp_path / "run")
        expected = samples_of(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "network.denoiser_width" not in record["settings"]

    np.testing.assert_array_equal(samples_of(tmp_path / "run"), expected)
    train(tmp_path / "run")  # Resumes.


def test_whatever_is_changed_in_the_record_of_a_run_is_noticed(tmp_path):
    new(tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        changed = bytearray(whole)
        changed[place] ^= 0x01
        path.write_bytes(changed)
        if json_of(changed) != json_of(whole):
            with pytest.raises(UserError, match=r"run\.json is damaged"):
                run.open_run(tmp_path / "run")


def json_of(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("name", ["prior.npz", "reference.npz"])
def test_a_part_of_a_run_that_was_changed_is_named(name, of_images):
    path = of_images.root / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:-40], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            run.open_checkpoint(command("sample", of_images.root))


def test_a_run_of_another_kind_is_refused(tmp_path):
    new(tmp_path / "run")
    with pytest.raises(UserError, match="is a run of --mode=train"):
        run.open_run(tmp_path / "run", "classifier")


def test_a_damaged_snapshot_is_named_and_strange_files_are_skipped(of_images):
    (of_images.snapshots / "notes.npz").write_bytes(b"PK")
    assert [step for step, _ in of_images.read_snapshots(9)] == [0, 2, 4]
    assert [step for step, _ in of_images.read_snapshots(3)] == [0, 2]
    (of_images.snapshots / "00000003.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"00000003\.npz: not a readable"):
        of_images.read_snapshots(9)


def test_a_record_has_the_name_of_its_step_and_the_digest_of_its_key(of_images):
    opened = run.open_checkpoint(command("evaluate", of_images.root))
    key = run.key_of(opened, of_images.settings.evaluate.num_samples)
    fewer = run.key_of(opened, 5)
    assert key["checkpoint_sha256"] == of_images.digest(opened.state)
    names = {run.name_of(opened, of) for of in (key, fewer, key | {"classifier": "digest"})}
    assert len(names) == 3
    assert all(re.fullmatch("step_4-[0-9a-f]{8}", name) for name in names)
    assert of_images.newest_evaluation(fewer)["key"]["num_samples"] == key["num_samples"]
    assert of_images.newest_evaluation(fewer | {"new": 3}) is None


def test_processes_must_share_a_folder_settings_and_data(tmp_path, monkeypatch):
    created = new(tmp_path / "run")
    monkeypatch.setattr(parallel, "same_on_all_processes", lambda _: False)
    for action in (
        lambda: run.open_run(tmp_path / "run"),
        lambda: created.resumed(created.settings),
        lambda: run.create(
            tmp_path / "x", "ratio", created.settings, load(created.settings.data), None, ""
        ),
    ):
        with pytest.raises(UserError, match="have different settings, data, versions"):
            action()
    assert not (tmp_path / "x").exists()


def test_processes_compare_versions_and_options(tmp_path, monkeypatch):
    created, seen = new(tmp_path / "run"), []
    monkeypatch.setattr(parallel, "same_on_all_processes", lambda digest: not seen.append(digest))
    for flags in ("", "", "--xla_cpu_enable_fast_math=true"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        created.resumed(created.settings)
    assert seen[0] == seen[1] != seen[2]
