"""Mode sample: files that other programs read, and a kill in the middle that costs nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from experiments.request import Request
from PIL import Image

from experiments import modes
from experiments.errors import UserError
from experiments.modes.sample import default_name
from experiments.sampling import sample_files
from experiments.sampling.shards import Shards, lock

ROOT = Path(__file__).parents[2]


def sample(workdir, config, num_samples=20):
    modes.run(Request("sample", config, workdir.root, num_samples=num_samples))


def files(workdir, name):
    return {path.suffix: path.read_bytes() for path in workdir.samples.glob(f"{name}.*")}


@pytest.mark.parametrize("channels", [1, 3])
def test_all_formats_hold_the_same_pixels_and_equal_samples_make_equal_bytes(channels, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, channels), np.uint8)
    for name in ("one", "other"):
        for file_format in ("npz", "zip", "folder"):
            path = sample_files.target(tmp_path, name, file_format, "images")
            parts = [images[:2], images[2:]] if name == "one" else [images]
            for _ in range(2):  # The second time it takes the place of the first.
                sample_files.write(path, file_format, parts, 5)

    (tmp_path / "unpacked").mkdir()
    zipfile.ZipFile(tmp_path / "one.zip").extractall(tmp_path / "unpacked")
    for folder in (tmp_path / "one", tmp_path / "unpacked"):
        pngs = sorted(folder.iterdir())
        assert [png.name for png in pngs] == [f"00000{i}.png" for i in range(5)]
        read = np.stack([np.asarray(Image.open(png)) for png in pngs])
        np.testing.assert_array_equal(read.reshape(images.shape), images)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npz")["arr_0"], images)
    for suffix in (".npz", ".zip"):
        one, other = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "other"))
        assert one == other


def test_points_are_not_written_as_pictures(trained, tiny):
    with pytest.raises(UserError, match="'zip' is for images; points go to 'npz'"):
        sample(trained, tiny(changes={"sample.format": "zip"}))


def test_options_of_sampling_change_the_samples_and_are_recorded_beside_them(trained, tiny):
    flow = {"num_steps": 5, "num_refine_steps": 4, "step_size": 0.2, "noise_scale": 0.3}
    changes = {
        "plain": {},
        "raw": {"sample.weights": "raw"},
        "other": {"seed": 7} | {f"flow.{key}": value for key, value in flow.items()},
    }
    drawn, records = {}, {}
    for name, change in changes.items():
        sample(trained, tiny(changes={**change, "sample.name": name}))
        drawn[name] = np.load(trained.samples / f"{name}.npz")["arr_0"]
        records[name] = json.loads((trained.samples / f"{name}.json").read_text())
        for key, value in change.items():
            found = {**records[name]["settings"], "sample.weights": records[name]["weights"]}
            assert found[key] == value
    assert len({samples.tobytes() for samples in drawn.values()}) == len(changes)
    assert len({record["variables_sha256"] for record in records.values()}) == 2
    assert records["plain"]["checkpoint_step"] == 4
    assert records["plain"]["num_samples"] == 20


def test_sampling_that_was_cut_goes_on_and_makes_the_same_files(trained, tiny, monkeypatch):
    config = tiny(changes={"evaluate.batch_size": 8, "sample.name": "cut"})
    sample(trained, config, num_samples=30)
    whole = files(trained, "cut")
    (trained.samples / "cut.json").unlink()
    write, written = Shards.write, []

    def failing(shards, first, samples):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(first)
        write(shards, first, samples)

    monkeypatch.setattr(Shards, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        sample(trained, config, num_samples=30)
    other = tiny(changes={"sample.name": "cut", "flow.step_size": 0.7})
    with pytest.raises(UserError, match=r"flow.step_size is 0.7 but was 0.1.*sample\.name"):
        sample(trained, other, num_samples=30)
    monkeypatch.setattr(Shards, "write", lambda *part: (written.append(part[1]), write(*part)))
    sample(trained, config, num_samples=30)

    assert written == [0, 8, 16, 24]
    assert files(trained, "cut") == whole
    sample(trained, config, num_samples=30)
    assert len(written) == 4  # What is done is not drawn again.


def test_two_programs_do_not_draw_the_same_samples_at_the_same_time(trained, tiny):
    config = tiny(changes={"sample.name": "shared"})
    parts = trained.samples / "shared.parts"
    with lock(parts), pytest.raises(UserError) as caught:
        sample(trained, config)

    told = str(caught.value)
    assert told.startswith(f"{parts} is in use by process {os.getpid()} on ")
    assert told.endswith("or name these otherwise, with --config.sample.name")
    assert not parts.exists()
    with lock(trained.samples / "other.parts"):
        sample(trained, config)  # Other samples are nobody's concern.
    assert (trained.samples / "shared.npz").exists()


def test_a_class_with_a_slash_in_its_name_is_no_folder():
    assert default_name(4, "") == "step_4"
    assert default_name(4, "a/abbey") == "step_4_class_a_abbey"


def test_a_name_with_a_dot_is_no_format(trained, tiny, tmp_path):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    for file_format, suffix in (("npz", ".npz"), ("zip", ".zip"), ("folder", "")):
        path = sample_files.target(tmp_path, "v1.npz", file_format, "images")
        sample_files.write(path, file_format, [images], 2)
        assert path.name == f"v1.npz{suffix}"
    assert len(list((tmp_path / "v1.npz").iterdir())) == 2


@pytest.mark.slow
def test_a_kill_in_the_middle_of_sampling_neither_repeats_nor_loses_a_sample(trained):
    def start(name):
        command = [sys.executable, "-m", "experiments.main", "--mode=sample", "--num_samples=4000"]
        options = [f"--config.sample.name={name}", "--config.evaluate.batch_size=8"]
        return subprocess.Popen(
            [*command, f"--workdir={trained.root}", *options],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    killed, whole = start("killed"), start("whole")
    parts = trained.samples / "killed.parts"
    while len(list(parts.glob("*.npy"))) < 3 and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 3 <= len(list(parts.glob("*.npy"))) < 500
    resumed = start("killed")

    assert resumed.wait() == whole.wait() == 0
    assert not parts.exists()
    one, other = files(trained, "killed"), files(trained, "whole")
    assert one[".npz"] == other[".npz"]
    assert one[".png"] == other[".png"]
    assert len(np.unique(np.load(trained.samples / "killed.npz")["arr_0"], axis=0)) == 4000


def test_it_tells_once_how_soon_after_the_start_the_first_samples_were_there(trained, tiny, capsys):
    config = tiny(changes={"sample.name": "soon", "evaluate.batch_size": 8})
    request = Request("sample", config, trained.root, num_samples=20, started=time.perf_counter())
    modes.run(request)

    (told,) = re.findall(r"first samples (\d+\.\d) s after the start", capsys.readouterr().out)
    assert 0.0 <= float(told) < 600.0
