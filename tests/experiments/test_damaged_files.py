"""Files that were cut or changed are refused by name, or noticed and made anew; nothing crashes."""

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from experiments.storage import best
from experiments.storage.workdir import Workdir, read_json, replacing
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import saved
from experiments import build, schema
from experiments.build import fitted_prior
from experiments.data import read_arrays
from experiments.data.decode import Transform, decode
from experiments.data.files import ZipArchive
from experiments.data.records import Problems
from experiments.errors import DataError, UserError
from experiments.pictures import report
from experiments.training import metrics_log

ROOT = Path(__file__).parents[2]
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
    """Bytes of a file of each kind."""
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
        for entry in archive.entries(Problems("skip"), []):
            with contextlib.suppress(ValueError):
                archive.read(entry.path)
    except DataError as error:
        told = str(error)
        assert told.startswith(str(path))
    finally:
        if archive._open is not None:
            archive._open.close()


def test_a_zip_entry_without_a_name_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(".", b"")
    problems = Problems("skip")
    archive = ZipArchive(str(tmp_path / "x.zip"))
    assert list(archive.entries(problems, [])) == []
    assert len(problems) == 1
    archive._open.close()


@given(flips=FLIPS, cut=st.integers(0, 60))
@fuzzed()
def test_damaged_settings_of_a_run_are_refused_by_the_name_of_their_file(flips, cut, folder, tiny):
    path = folder / "config.json"
    whole = json.dumps({"command": "x", "settings": schema.flatten(tiny())}).encode()
    path.write_bytes(damaged(whole, flips, cut))
    try:
        config = saved.get_config(str(folder)).to_dict()
    except ValueError as error:
        told = str(error)
    else:
        with contextlib.suppress(UserError):
            build.experiment(config, fit_prior=False)
        return
    assert told.startswith(f"{path} holds no settings of a run: ")


def test_a_damaged_prior_is_told_and_fitted_anew(tiny, tmp_path, caplog):
    source = build.experiment(tiny("digits"), fit_prior=False).source
    file = tmp_path / "prior.npz"
    fitted = fitted_prior.load_or_fit(source, 0, 1e-4, file)
    whole = file.read_bytes()
    for broken in (b"", whole[:-30], whole[:5_000] + bytes(100) + whole[5_100:], b"PK" + bytes(50)):
        file.write_bytes(broken)
        caplog.clear()
        again = fitted_prior.load_or_fit(source, 0, 1e-4, file)
        np.testing.assert_array_equal(again.factor, fitted.factor)
        assert f"{file} is damaged" in caplog.text
        assert file.read_bytes()[:2] == b"PK"


def test_a_prior_that_was_fitted_elsewhere_is_never_replaced(tiny, tmp_path):
    source = build.experiment(tiny("digits"), fit_prior=False).source
    file, size = tmp_path / "prior.npz", 64
    fitted_prior.adopt(source, 1e-4, file, np.zeros(size), np.eye(size))
    whole = file.read_bytes()
    with pytest.raises(UserError, match=r"prior\.npz was fitted elsewhere.*prior\.jitter"):
        fitted_prior.load_or_fit(source, 0, 1e-3, file)
    assert file.read_bytes() == whole
    assert fitted_prior.load_or_fit(source, 0, 1e-4, file).mean.shape == (size,)


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"{}", b'{"step": "1"}', b"\xff\xfe", b"null", b'{"step": 1.5}']
)
def test_a_damaged_line_of_metrics_is_named_by_its_number(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of metrics"):
        metrics_log.read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"metrics": {}}', b"\xff"])
def test_a_damaged_evaluation_is_named(content, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        read_json(path, "step", "metrics")


def test_a_damaged_snapshot_is_named_and_strange_files_are_passed_over(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.create()
    for name in ("00000002.npz", "notes.npz"):
        (workdir.snapshots / name).write_bytes(b"PK")
    ((step, path),) = workdir.snapshot_files(5)
    assert step == 2
    with pytest.raises(UserError, match=r"00000002\.npz is damaged"):
        report._read_snapshot(path)


def test_a_crash_while_a_file_is_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")

    def write(content):
        with replacing(path) as file:
            file.write(content)
            file.write("no bytes")

    with pytest.raises(TypeError):
        write(b"half")
    assert path.read_bytes() == b"before"


def test_a_crash_when_a_run_goes_on_leaves_the_log_of_metrics(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    left = [json.dumps({"step": 1})]  # The first line; then the process ends.
    with monkeypatch.context() as patched:
        patched.setattr(metrics_log.json, "dumps", lambda _: left.pop())
        with pytest.raises(IndexError):
            metrics_log.JsonLines(path, 2)
    assert [line["step"] for line in metrics_log.read(path)] == [1, 2, 3]
    writer = metrics_log.JsonLines(path, 2)
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in metrics_log.read(path)] == [1, 2, 3]


def test_a_record_of_the_best_checkpoint_that_lacks_a_key_is_named(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.best.mkdir()
    (workdir.best / "best.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match=r"best\.json is damaged: it lacks one of folder"):
        best.read(workdir)


def test_text_is_utf8_whatever_the_locale(tmp_path):
    program = (
        "import sys; from pathlib import Path; from experiments.storage.workdir import write_text;"
        "write_text(Path(sys.argv[1]), chr(954))"
    )
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program, str(tmp_path / "x")]
    subprocess.run(command, cwd=ROOT, env=os.environ | ascii_locale, check=True)
    assert (tmp_path / "x").read_bytes() == "κ".encode()
