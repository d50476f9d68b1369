"""Untrusted names cannot leave their folder, and nothing private is written."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from image_files import Payload
from PIL import Image
from small_runs import SMALL_RESNET, start

from experiments.errors import UserError

SECRET = "s3cr3t-0123456789abcdef"
# Without a slash, so that files can have this name.
HOSTILE = (
    "\"'><img src=x onerror=document.title='executed'>\n<svg onload=document.title='executed'>"
)
BROWSER = shutil.which("chromium")


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["prior.npz", "reference.npz"])
def test_a_pickle_in_place_of_a_part_of_a_run_is_not_executed(name, of_images, tmp_path):
    trace = tmp_path / "executed"
    np.savez(of_images.root / name, mean=np.array(Payload(trace), dtype=object))
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        start("sample", of_images.root, num_samples=2)
    assert not trace.exists()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run whose folder, data and classes have hostile names, and all that was there before."""
    root = tmp_path_factory.mktemp("hostile")
    images = root / "data" / HOSTILE.replace("\n", "")  # Settings are printable.
    for kind in ("..a", "$x_{$", "<b>", "a\nb", HOSTILE, os.fsdecode(b"\xff"), "y" * 250):
        (images / kind).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (i, i, i)).save(images / kind / f"{HOSTILE}{i}.png")
    before = files_below(root)
    small = {"data.dir": images, "data.image_size": 8, "prior.name": "uniform", **SMALL_RESNET}
    folder = root / f"run {HOSTILE}"
    start(
        "train", folder, "folder:tiny", {"train.num_steps": 2, "evaluate.num_samples": 8, **small}
    )
    return folder, before


@pytest.mark.slow
def test_classes_and_data_with_hostile_names_write_only_into_the_workdir(hostile):
    folder, before = hostile
    assert [name for name in files_below(folder.parent) if not name.startswith("run ")] == before
    page = (folder / "report.html").read_text()
    assert not re.search("<(script|svg)", page)
    assert not re.search(r"<img(?! alt=\"[^\"<>]*\" src=\"data:image/)", page)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_executes_nothing_in_a_report_with_hostile_names(hostile, tmp_path):
    def title(page):
        command = [BROWSER, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}/profile"]
        shown = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True)
        return re.search("<title>(.*?)</title>", shown.stdout.decode(), re.DOTALL)[1]

    report, injected = hostile[0] / "report.html", tmp_path / "injected.html"
    injected.write_text(report.read_text() + HOSTILE)
    assert title(injected) == "executed", "the payload does nothing"
    assert title(report) not in ("", "executed")


def test_shared_files_of_a_run_contain_no_path_of_this_machine(of_images, image_folder):
    start("sample", of_images.root, num_samples=3)
    start("curve", of_images.root, num_samples=8)
    start("export", of_images.root)
    shared = (of_images.samples, of_images.evaluations, of_images.curves, of_images.exports)
    files = [path for place in shared for path in place.rglob("*") if path.is_file()]
    assert {"model.safetensors", "README.md", "record.json"} <= {path.name for path in files}
    private = {Path.home(), Path.cwd(), of_images.root, image_folder, Path(__file__).parents[2]}
    content = b"".join(path.read_bytes() for path in [of_images.report, *files])
    assert not [p for p in private if len(p.parts) > 1 and str(p).encode() in content]
