"""Nothing that a stranger wrote is executed, leads out of its folder or slips into a page."""

import dataclasses
import json
import os
import re
import zipfile

import numpy as np
import pytest
from experiments.request import Request
from experiments.storage.workdir import Workdir, write_json
from PIL import Image

from experiments import build, modes
from experiments.data import DataOptions, load, tfds
from experiments.data.files import Folder
from experiments.data.records import Problems
from experiments.errors import DataError
from experiments.pictures import report
from experiments.training import loop, metrics_log

SECRET = "s3cr3t-0123456789abcdef"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_pickle_in_an_npz_is_not_executed(tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "images.npz"
    np.savez(path, images=np.array([Payload(trace)], dtype=object))
    with pytest.raises(DataError, match=r"images\.npz: no readable \.npz of plain arrays"):
        load(DataOptions("npz", str(path)))
    assert not trace.exists()


def test_a_pickle_in_the_place_of_a_prior_is_not_executed(tiny, tmp_path, caplog):
    trace, workdir = tmp_path / "executed", Workdir(tmp_path)
    np.savez(workdir.prior, fingerprint=np.array(Payload(trace), dtype=object))
    build.experiment(tiny("digits"), workdir.prior)
    assert "is damaged" in caplog.text
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../x", "/etc", "x/../../y", "..", "*", "x/**", "x:../1", "a\nb"])
def test_a_tfds_name_cannot_lead_out_of_its_root(name, tmp_path):
    outside = tmp_path / "x" / "1.0.0"
    outside.mkdir(parents=True)
    (outside / "dataset_info.json").write_text("{}")
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match=r"data\.name=tfds:NAME"):
        tfds.find(name, str(tmp_path / "root"))


def test_an_entry_of_a_zip_cannot_write_anywhere(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "images.zip"
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    one = (tmp_path / "one.png").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name in (
            "a/0.png",
            "a/1.png",
            "b/2.png",
            "../out.png",
            "/tmp/out.png",
            "b/../../3.png",
        ):
            archive.writestr(name, one)
    before = files_below(tmp_path)
    source = load(DataOptions("folder", str(path), on_error="skip"))
    assert len(source.train()) + len(source.held_out(9, 0)) == 3
    assert files_below(tmp_path) == before


@pytest.mark.slow
def test_classes_and_data_with_hostile_names_write_only_into_the_workdir(tiny, tmp_path):
    images = tmp_path / "data" / HOSTILE.replace("/", "∕")
    for kind in ("..a", "%2e%2e%2f", "<b>"):
        (images / kind).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (i, i, i)).save(images / kind / f"{i}.png")
    changes = {"data.dir": str(images), "data.image_size": 8, "prior.name": "uniform"}
    # A network that compiles in a second.
    changes |= {"network.name": "resnet", "network.width": 4, "network.blocks": ((4, 2),)}
    config = tiny("folder", {**changes, "train.num_steps": 2, "evaluate.num_samples": 8})
    run = tmp_path / f"run {HOSTILE.replace('/', '∕')}"
    before = {name for name in files_below(tmp_path) if not name.startswith("run ")}
    modes.run(Request("train", config, run, f"--workdir={run} {HOSTILE}"))
    after = {name for name in files_below(tmp_path) if not name.startswith("run ")}
    assert after == before
    page = Workdir(run).report.read_text()
    assert "<script" not in page
    assert not re.search(r"<img(?! alt=\"[^\"<>]*\" src=\"data:image/)", page)


def test_the_report_escapes_all_that_it_shows(monkeypatch, tiny, tmp_path):
    workdir = Workdir(tmp_path)
    experiment = build.experiment(tiny())
    source = experiment.source._replace(name=HOSTILE)
    experiment = dataclasses.replace(experiment, source=source)
    write_json(workdir.config, {"command": HOSTILE, "settings": {HOSTILE: HOSTILE}})
    picture = tmp_path / "x.png"
    picture.write_bytes(b"x")
    monkeypatch.setattr(report, "_draw", lambda *_: [(HOSTILE, picture)])
    report.write(experiment, workdir, experiment.init_state(), None, {HOSTILE: [1.0]}, {})
    page = workdir.report.read_text()
    assert page.count("&lt;script&gt;") >= 7
    assert "<script" not in page
    assert "onerror=alert(2)>" not in page


def test_links_in_a_folder_are_followed_but_never_out_of_regular_files(tmp_path):
    (tmp_path / "data").mkdir()
    os.symlink("/dev/zero", tmp_path / "data" / "endless.png")
    problems = Problems("skip")
    assert list(Folder(str(tmp_path / "data")).entries(problems, [])) == []
    assert len(problems) == 1


def test_secrets_of_the_environment_are_written_nowhere(tiny, tmp_path, monkeypatch, capfd):
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    told = {}

    class Run:
        def log(self, record, step): ...

        def finish(self): ...

    class Module:
        @staticmethod
        def init(**arguments):
            told.update(arguments)
            return Run()

    monkeypatch.setattr(metrics_log, "_import", lambda name, extra: Module)
    config = tiny(changes={"log.wandb": "online", "train.num_steps": 2})
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    loop.train(build.experiment(config), workdir, "a command")
    assert told["mode"] == "online"
    assert told["name"] == "run"
    assert SECRET not in json.dumps(told, default=str)
    out = capfd.readouterr()
    assert SECRET not in out.out + out.err
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
