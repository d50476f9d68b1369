"""Truncated or changed files are errors that name the file; nothing crashes."""

import contextlib
import functools
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_runs import start

from experiments import run
from experiments.data.decode import Transform, decode
from experiments.data.files import ZipArchive
from experiments.data.records import Problems
from experiments.errors import DataError, UserError
from experiments.files import read_arrays
from experiments.training import metrics_log

FLIPS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4
)
fuzzed = functools.partial(settings, derandomize=True, max_examples=120, deadline=None)


def damaged(content, flips, cut):
    changed = bytearray(content)
    for place, value in flips:
        changed[int(place * len(changed))] ^= value
    return bytes(changed[: len(changed) - cut])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def content(folder):
    """The bytes of one file of each kind."""
    np.savez(folder / "x.npz", arr_0=np.arange(6.0), text=np.array("abc"))
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    kinds = {"npz": (folder / "x.npz").read_bytes()}
    for kind in ("png", "jpeg", "webp"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        kinds[kind] = stream.getvalue()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", kinds["png"])
        archive.writestr("1.png", kinds["png"])
    return {**kinds, "zip": stream.getvalue()}


@given(flips=FLIPS, cut=st.integers(0, 200))
@fuzzed()
def test_a_damaged_npz_gives_arrays_or_the_reason(flips, cut, folder, content):
    path = folder / "fuzzed.npz"
    path.write_bytes(damaged(content["npz"], flips, cut))
    with contextlib.suppress(ValueError):
        read_arrays(path, ["a"])


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@given(flips=FLIPS, cut=st.integers(0, 60))
@fuzzed()
def test_a_damaged_image_gives_pixels_or_the_reason(kind, flips, cut, content):
    with contextlib.suppress(ValueError):
        decode(damaged(content[kind], flips, cut), Transform())


@given(flips=FLIPS, cut=st.integers(0, 60))
@fuzzed()
def test_a_damaged_zip_is_named_or_its_entries_are(flips, cut, folder, content):
    path = folder / "fuzzed.zip"
    path.write_bytes(damaged(content["zip"], flips, cut))
    archive = ZipArchive(str(path))
    try:
        for _, entry in archive.entries(Problems("skip"), []):
            with contextlib.suppress(ValueError):
                archive.read(entry.path)
    except DataError as error:
        message = str(error)
        assert message.startswith(str(path))
    finally:
        if archive._opened is not None:
            archive._opened.close()


def test_a_zip_entry_without_a_name_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(".", b"")
    problems = Problems("skip")
    archive = ZipArchive(str(tmp_path / "x.zip"))
    assert list(archive.entries(problems, [])) == []
    assert len(problems) == 1
    archive._opened.close()


@given(flips=FLIPS, cut=st.integers(0, 60))
@fuzzed()
def test_a_damaged_record_of_a_run_is_refused_by_the_name_of_its_file(flips, cut, folder, trained):
    path = folder / "run.json"
    path.write_bytes(damaged((trained.root / "run.json").read_bytes(), flips, cut))
    try:
        found = run.open_run(folder)
    except UserError as error:
        message = str(error)
    else:  # The changed part is not read, or the change is allowed.
        assert found.settings.keys() == trained.settings.keys()
        return
    assert str(folder) in message or message.startswith("config: ")
    assert message.isprintable()


def test_a_damaged_snapshot_is_named_and_strange_files_are_skipped(of_images):
    (of_images.snapshots / "notes.npz").write_bytes(b"PK")
    assert [step for step, _ in of_images.read_snapshots(9)] == [2, 4]
    assert [step for step, _ in of_images.read_snapshots(3)] == [2]
    damaged = of_images.snapshots / "00000003.npz"
    for samples in (None, np.float32(1.0), np.zeros((2, 3)), np.zeros((0, 8, 8, 3))):
        damaged.write_bytes(b"PK") if samples is None else np.savez(damaged, arr_0=samples)
        with pytest.raises(UserError, match=r"00000003\.npz is damaged"):
            of_images.read_snapshots(9)


@pytest.mark.parametrize("key", ["kind", "settings", "data", "command", "prior_sha256", "format"])
@pytest.mark.parametrize("value", [3.5, ["x"]])
def test_a_record_of_a_run_that_was_edited_by_hand_is_named(key, value, of_images):
    path = of_images.root / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"run\.json is damaged: '{key}' holds"):
        run.open_run(of_images.root)


@pytest.mark.parametrize("change", [{"flow.step_size": -1.0}, {"loss.name": "x"}, {"seed": "1"}])
def test_a_setting_that_was_edited_by_hand_is_named(change, of_images):
    path = of_images.root / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"settings": record["settings"] | change}))
    with pytest.raises(UserError, match=rf"run\.json.*{next(iter(change))} must be"):
        run.open_run(of_images.root)


@pytest.mark.parametrize("name", ["prior.npz", "reference.npz"])
def test_a_part_of_a_run_that_was_changed_is_named(name, of_images):
    path = of_images.root / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:-40], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            start("strips", of_images.root)


@pytest.mark.parametrize("content", ["text", "null", "[1, 2]", "3", "{}", '{"key": null}', "\xff"])
@pytest.mark.parametrize("name", ["record.json", "pictures.json"])
def test_a_record_of_an_evaluation_that_was_edited_by_hand_is_named(name, content, of_images):
    if (name, content) == ("pictures.json", "{}"):
        return  # A report without pictures.
    (of_images.evaluations / "step_4" / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        start("report", of_images.root)


@pytest.mark.parametrize(
    "change",
    [
        {"key": {"step": "4"}},
        {"key": {"step": 4, "num_samples": None, "settings": {}}},
        {"key": {"step": 4, "num_samples": 16, "settings": [1]}},
        {"metrics": {"frechet": 3.0}},
        {"metrics": {"frechet": {"value": [1.0]}}},
        {"metrics": {"frechet": {"definition": "unknown"}}},
        {"details": {"start": 3}},
        {"details": []},
    ],
)
def test_values_of_an_evaluation_of_the_wrong_shape_are_named(change, of_images):
    path = of_images.evaluations / "step_4" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"record\.json is damaged") as caught:
        start("report", of_images.root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["text", None, [1.0]])
def test_a_metric_whose_value_was_edited_by_hand_is_named(value, of_images):
    path = of_images.evaluations / "step_4" / "record.json"
    record = json.loads(path.read_text())
    next(iter(record["metrics"].values()))["value"] = value
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"record\.json is damaged: its metrics .*'value'"):
        start("report", of_images.root)


def test_a_picture_that_was_removed_by_hand_is_named(of_images):
    (of_images.evaluations / "step_4" / "samples.png").unlink()
    with pytest.raises(UserError, match=r"pictures\.json names .samples\.png.; .* exists"):
        start("report", of_images.root)


@pytest.mark.parametrize(
    "line", ["text", "null", "[1]", '{"step": "1"}', '{"step": 1, "loss": [2]}']
)
def test_a_line_of_metrics_that_was_edited_by_hand_is_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0, "other": null}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of metrics"):
        metrics_log.read(path)


@pytest.mark.parametrize("content", ["text", "null", "[4]", '{"step": "../4"}', '{"step": [4]}'])
def test_a_record_of_the_best_checkpoint_that_was_edited_by_hand_is_named(content, of_images):
    (of_images.root / "checkpoints" / "best.json").write_text(content)
    with pytest.raises(UserError, match=r"best\.json is damaged"):
        start("strips", of_images.root, checkpoint="best")
