"""Untrusted content is never executed, cannot escape its folder, and is escaped in pages."""

import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from experiments.data.files import Folder
from experiments.data.records import Problems
from experiments.training import metrics_log
from PIL import Image
from small_runs import SMALL_RESNET, start, train

from experiments import pictures, report, run
from experiments.data import DataOptions, load, tfds
from experiments.errors import DataError, UserError
from experiments.files import write_json
from experiments.pictures.images import by_class

SECRET = "s3cr3t-0123456789abcdef"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_pickle_in_an_npz_is_not_executed(tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "images.npz"
    np.savez(path, images=np.array([Payload(trace)], dtype=object))
    with pytest.raises(DataError, match=r"images\.npz: not a readable \.npz of plain arrays"):
        load(DataOptions("npz", str(path)))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["prior.npz", "reference.npz"])
def test_a_pickle_in_place_of_a_part_of_a_run_is_not_executed(name, of_images, tmp_path):
    trace = tmp_path / "executed"
    np.savez(of_images.root / name, mean=np.array(Payload(trace), dtype=object))
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        start("strips", of_images.root)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../x", "/etc", "x/../../y", "..", "*", "x/**", "x:../1", "a\nb"])
def test_a_tfds_name_cannot_lead_out_of_its_root(name, tmp_path):
    outside = tmp_path / "x" / "1.0.0"
    outside.mkdir(parents=True)
    (outside / "dataset_info.json").write_text("{}")
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match=r"data\.name must be tfds:NAME"):
        tfds.find(name, str(tmp_path / "root"))


IMAGE = "tensorflow_datasets.core.features.image_feature.Image"
FEATURES = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
HOSTILE_FEATURE = {"pythonClassName": "hostile.Image", "image": {"shape": {}}}
OLD_FEATURE = {"type": "hostile.Image", "content": {}}


def nested(**features):
    return {"pythonClassName": FEATURES, "featuresDict": {"features": features}}


@pytest.mark.parametrize(
    "features",
    [
        HOSTILE_FEATURE,
        {"python_class_name": "hostile.Image", "image": {"shape": {}}},
        OLD_FEATURE,
        nested(image={"pythonClassName": IMAGE, "image": {"shape": {}}}, other=HOSTILE_FEATURE),
        {"type": FEATURES, "content": {"image": OLD_FEATURE}},
        {"pythonClassName": FEATURES, "jsonFeature": {"json": json.dumps({"image": OLD_FEATURE})}},
    ],
)
def test_a_class_that_a_tfds_set_names_is_not_imported(features, tmp_path, monkeypatch):
    trace, prepared = tmp_path / "executed", tmp_path / "root" / "made_up" / "1.0.0"
    (tmp_path / "hostile.py").write_text(f"import pathlib; pathlib.Path({str(trace)!r}).touch()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hostile", raising=False)
    info = {"name": "made_up", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    prepared.mkdir(parents=True)
    write_json(prepared / "dataset_info.json", info)
    write_json(prepared / "features.json", features)
    with pytest.raises(DataError) as caught:
        load(DataOptions("tfds:made_up", str(tmp_path / "root")))
    assert not trace.exists()
    assert "'hostile.Image'" in str(caught.value)


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
def test_classes_and_data_with_hostile_names_write_only_into_the_workdir(tmp_path):
    images = tmp_path / "data" / HOSTILE.replace("/", "∕")
    for kind in ("..a", "$x_{$", "<b>", os.fsdecode(b"\xff"), "y" * 250):
        (images / kind).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (i, i, i)).save(images / kind / f"{i}.png")
    changes = {"data.dir": images, "data.image_size": 8, "prior.name": "uniform", **SMALL_RESNET}
    folder = tmp_path / f"run {HOSTILE.replace('/', '∕')}"
    before = {name for name in files_below(tmp_path) if not name.startswith("run ")}
    small = {"train.num_steps": 2, "evaluate.num_samples": 8}
    start("train", folder, "folder:tiny", {**changes, **small})
    after = {name for name in files_below(tmp_path) if not name.startswith("run ")}
    assert after == before
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r"<img(?! alt=\"[^\"<>]*\" src=\"data:image/)", page)


def test_a_picture_shows_names_of_classes_unchanged(tmp_path):
    samples, labels = np.zeros((4, 8, 8, 3), np.float32), np.array([0, 1, 0, 1])
    figure = by_class(samples, labels, ("$x_{$", "y" * 250))
    pictures.save(figure, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        width, height = picture.size
    assert max(width, height) < 5_000


def test_the_report_escapes_everything_that_it_shows(of_images):
    record = json.loads((of_images.root / "run.json").read_text())
    record |= {"command": HOSTILE, "data": record["data"] | {"name": HOSTILE}}
    record["settings"]["data.split"] = HOSTILE
    write_json(of_images.root / "run.json", record)
    folder = of_images.evaluations / "step_4"
    details = {HOSTILE: HOSTILE}
    write_json(
        folder / "record.json",
        json.loads((folder / "record.json").read_text()) | {"details": details},
    )
    write_json(folder / "pictures.json", {"samples.png": HOSTILE})
    page = report.write(run.open_run(of_images.root), folder).read_text()
    assert page.count("&lt;script&gt;") >= 6
    assert "<script" not in page
    assert "onerror=alert(2)>" not in page


@pytest.mark.parametrize("ending", ["png", "txt"])
@pytest.mark.parametrize("way", ["relative", "absolute", "link", "link to a folder"])
def test_a_report_shows_no_file_outside_of_its_record(way, ending, of_images):
    secret, folder = of_images.root / f"private.{ending}", of_images.evaluations / "step_4"
    secret.write_text(SECRET)
    name = {
        "relative": f"../../private.{ending}",
        "absolute": str(secret),
        "link": f"link.{ending}",
        "link to a folder": f"folder/private.{ending}",
    }[way]
    (folder / f"link.{ending}").symlink_to(secret)
    (folder / "folder").symlink_to(of_images.root)
    before = of_images.report.read_bytes()
    write_json(folder / "pictures.json", {name: "A picture."})
    with pytest.raises(UserError, match=r"pictures\.json"):
        start("report", of_images.root)
    assert of_images.report.read_bytes() == before


def test_the_name_of_a_picture_cannot_bring_a_script_into_the_report(of_images):
    folder = of_images.evaluations / "step_4"
    for suffix in ('"><script>alert(1)<∕script>', 'png" onerror="alert(2)', "svg", "svg+xml"):
        name = f"picture.{suffix}"
        (folder / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        write_json(folder / "pictures.json", {name: "A picture."})
        with pytest.raises(UserError, match=r"pictures\.json"):
            start("report", of_images.root)
    hostile = 'a" onerror="alert(3)<script>.png'
    shutil.copy(folder / "samples.png", folder / hostile)
    write_json(folder / "pictures.json", {hostile: HOSTILE})
    start("report", of_images.root)
    page = of_images.report.read_text()
    assert page.count("<img ") == 1
    assert "<script" not in page
    assert not re.search(r"<img(?! alt=\"[^\"<>]*\" src=\"data:image/png;base64,[\w+/=]*\">)", page)


def test_shared_files_of_a_run_contain_no_path_of_this_machine(of_images, image_folder):
    """The report, samples, curves, evaluations, pictures and the exported sampler."""
    start("sample", of_images.root, num_samples=3)
    start("evaluate", of_images.root, num_samples=16)
    start("curve", of_images.root, None, {"curve.lengths": (0, 3)}, num_samples=8)
    start("export", of_images.root, platforms="cpu")
    places = ("samples", "evaluations", "curves", "pictures", "export")
    files = [path for place in places for path in (of_images.root / place).rglob("*")]
    files = [of_images.report, *(path for path in files if path.is_file())]
    assert len(files) > 15
    private = {Path.home(), Path.cwd(), of_images.root, image_folder, Path(__file__).parents[2]}
    found = [
        (path.name, str(place))
        for path in files
        for place in private
        if str(place).encode() in path.read_bytes() and len(place.parts) > 1
    ]
    assert not found
    sampler = next((of_images.root / "export").rglob("sampler.stablehlo")).read_bytes()
    assert b".py" not in sampler
    names = {path.name for path in files}
    assert {"model.safetensors", "config.json", "README.md", "record.json"} <= names


@pytest.mark.slow
def test_a_copied_run_contains_no_home_and_no_working_folder(image_folder, tmp_path, monkeypatch):
    home, work = tmp_path / "home", tmp_path / "work"
    shutil.copytree(image_folder, home / "images")
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    changes = {"data.dir": home / "images", "data.image_size": 8, **SMALL_RESNET}
    start("train", work / "run", "folder:tiny", changes)
    files = [path for path in (work / "run").rglob("*") if path.is_file()]
    assert {"run.json", "commands.jsonl", "reference.npz"} <= {path.name for path in files}
    # Orbax's mark of a complete checkpoint contains the path of its folder.
    content = {p.name: p.read_bytes() for p in files if p.name != "commit_success.txt"}
    private = (home, work, Path(__file__).parents[2])
    found = [
        (name, p) for name, held in content.items() for p in private if str(p).encode() in held
    ]
    assert not found
    assert b"--workdir=run " in content["run.json"]
    assert b"config.data.dir=~/images" in content["commands.jsonl"]
    # The run resumes in its place, and on a machine with another home folder.
    start("train", work / "run", None, {"log.every_steps": 1})
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    assert run.open_run(work / "run").settings["data.dir"] == str(tmp_path / "other" / "images")


def test_links_in_a_folder_are_followed_but_never_out_of_regular_files(tmp_path):
    (tmp_path / "data").mkdir()
    os.symlink("/dev/zero", tmp_path / "data" / "endless.png")
    problems = Problems("skip")
    assert list(Folder(str(tmp_path / "data")).entries(problems, [])) == []
    assert len(problems) == 1


def test_secrets_of_the_environment_are_written_nowhere(tmp_path, monkeypatch, capfd):
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    logged = {}

    class Run:
        def log(self, record, step): ...

        def finish(self): ...

    class Module:
        @staticmethod
        def init(**arguments):
            logged.update(arguments)
            return Run()

    monkeypatch.setattr(metrics_log, "_import", lambda name, extra: Module)
    train(tmp_path / "run", {"log.wandb": "online"})
    assert logged["mode"] == "online"
    assert logged["name"] == "run"
    assert SECRET not in json.dumps(logged, default=str)
    out = capfd.readouterr()
    assert SECRET not in out.out + out.err
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
