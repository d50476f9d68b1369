"""Mode sample: files for other programs, records that distinguish them, and kills without loss."""

import json
import os
import re
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from small_runs import contents, start

from benchmarks.faults import program
from experiments.errors import UserError
from experiments.modes.sample import _default_name
from experiments.sampling import sample_files
from experiments.sampling.shards import Shards, lock


def sample(run, num_samples=20, **changes):
    start("sample", run.root, None, changes, num_samples=num_samples)


def named(name, **changes):
    return {"sample.name": name, **changes}


def drawn(run, name):
    return np.load(run.samples / f"{name}.npz")["arr_0"]


def record(run, name):
    return json.loads((run.samples / f"{name}.npz.json").read_text())


def test_samples_are_from_the_newest_checkpoint_or_the_named_one(trained, capsys):
    start("sample", trained.root, num_samples=10)
    assert "10 samples of step 4" in capsys.readouterr().out
    start("sample", trained.root, num_samples=10, checkpoint=2)
    newest, older = drawn(trained, "step_4"), drawn(trained, "step_2")
    assert newest.shape == older.shape == (10, 2)
    assert not np.array_equal(newest, older)
    assert (trained.samples / "step_4.npz.picture.png").exists()


def test_samples_of_other_settings_are_added_and_none_is_replaced(trained):
    start("sample", trained.root, num_samples=10)
    before = contents(trained.samples)
    start("sample", trained.root, num_samples=12)
    start("sample", trained.root, None, {"flow.num_steps": 5}, num_samples=10)
    after = contents(trained.samples)
    assert after.items() >= before.items()
    records = [
        json.loads(v) for k, v in after.items() if k.startswith("step_4") and k.endswith(".json")
    ]
    found = {(r["key"]["num_samples"], r["key"]["settings"]["flow.num_steps"]) for r in records}
    assert found == {(10, 3), (12, 3), (10, 5)}
    start("sample", trained.root, num_samples=10)
    assert contents(trained.samples) == after  # These exist already.


def test_a_sample_does_not_depend_on_how_many_are_drawn_with_it(trained):
    sample(trained, 5, **named("five", **{"evaluate.batch_size": 5}))
    sample(trained, 21, **named("more", **{"evaluate.batch_size": 8}))
    np.testing.assert_allclose(
        drawn(trained, "five"), drawn(trained, "more")[:5], rtol=1e-5, atol=1e-6
    )


def test_settings_of_sampling_change_the_samples_and_are_recorded_next_to_them(trained):
    flow = {"num_steps": 5, "num_refine_steps": 4, "step_size": 0.2, "noise_scale": 0.3}
    changes = {
        "plain": {},
        "raw": {"sample.weights": "raw"},
        "other": {"seed": 7} | {f"flow.{key}": value for key, value in flow.items()},
    }
    for name, change in changes.items():
        sample(trained, **named(name, **change))
        found = record(trained, name)["key"]
        assert found["settings"].items() >= change.items()
        assert (found["step"], found["num_samples"], found["run"]) == (4, 20, trained.id)
    assert len({drawn(trained, name).tobytes() for name in changes}) == len(changes)


def test_a_name_with_other_samples_or_a_users_files_is_refused(trained):
    sample(trained, **named("chosen"))
    before = contents(trained.samples)
    with pytest.raises(UserError, match=r"chosen\.npz exists and contains other samples"):
        sample(trained, 21, **named("chosen"))
    assert contents(trained.samples) == before


@pytest.mark.slow
def test_a_folder_with_a_users_files_is_never_removed(of_digits):
    (of_digits.samples / "mine").mkdir(parents=True)
    (of_digits.samples / "mine" / "thesis.txt").write_text("years of work")
    changes = named("mine", **{"sample.format": "folder"})
    with pytest.raises(UserError, match="mine exists and contains other samples"):
        sample(of_digits, **changes)
    assert (of_digits.samples / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("channels", [1, 3])
def test_all_formats_have_the_same_pixels_and_equal_samples_give_equal_bytes(channels, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, channels), np.uint8)
    for name in ("one", "other"):
        for file_format in ("npz", "zip", "folder"):
            path = sample_files.target(tmp_path, name, file_format, "images")
            parts = [images[:2], images[2:]] if name == "one" else [images]
            with sample_files.writing(path, file_format, parts, 5):
                assert not path.exists()

    (tmp_path / "unpacked").mkdir()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    for folder in (tmp_path / "one", tmp_path / "unpacked"):
        pngs = sorted(folder.iterdir())
        assert [png.name for png in pngs] == [f"00000{i}.png" for i in range(5)]
        read = np.stack([np.asarray(Image.open(png)) for png in pngs])
        np.testing.assert_array_equal(read.reshape(images.shape), images)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npz")["arr_0"], images)
    for suffix in (".npz", ".zip"):
        one, other = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "other"))
        assert one == other


def test_samples_that_cannot_be_finished_do_not_get_their_name(tmp_path):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    for file_format, suffix in (("npz", ".npz"), ("zip", ".zip"), ("folder", "")):
        path = sample_files.target(tmp_path, "v1.npz", file_format, "images")
        assert path.name == f"v1.npz{suffix}"  # A name with a dot is not a format.
        with (
            pytest.raises(KeyboardInterrupt),
            sample_files.writing(path, file_format, [images], 2),
        ):
            raise KeyboardInterrupt
        assert not path.exists()
        with sample_files.writing(path, file_format, [images], 2):
            pass
        assert path.exists()


def test_points_are_not_written_as_pictures(trained):
    with pytest.raises(UserError, match="'zip' is only for images; use 'npz' for points"):
        sample(trained, **{"sample.format": "zip"})


def test_interrupted_sampling_resumes_and_writes_the_same_files(trained, monkeypatch):
    small = {"evaluate.batch_size": 8}
    sample(trained, 30, **named("whole", **small))
    write, written = Shards.write, []

    def failing(shards, first, samples):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(first)
        write(shards, first, samples)

    monkeypatch.setattr(Shards, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        sample(trained, 30, **named("cut", **small))
    with pytest.raises(UserError, match=r"cut\.npz exists and contains other samples"):
        sample(trained, 30, **named("cut", **{"flow.step_size": 0.7}))
    monkeypatch.setattr(Shards, "write", lambda *part: (written.append(part[1]), write(*part)))
    sample(trained, 30, **named("cut", **small))

    assert written == [0, 8, 16, 24]
    for suffix in (".npz", ".npz.json", ".npz.picture.png"):
        one, other = ((trained.samples / f"{n}{suffix}").read_bytes() for n in ("whole", "cut"))
        assert one == other
    (trained.samples / "cut.npz.parts").mkdir()  # As after a kill right before its removal.
    sample(trained, 30, **named("cut", **small))
    assert len(written) == 4  # Finished parts are not drawn again.
    assert not (trained.samples / "cut.npz.parts").exists()


def test_two_programs_do_not_draw_the_same_samples_at_the_same_time(trained):
    parts = trained.samples / "shared.npz.parts"
    with lock(parts), pytest.raises(UserError) as caught:
        sample(trained, **named("shared"))

    message = str(caught.value)
    assert message.startswith(f"{parts} is in use by process {os.getpid()} on ")
    assert message.endswith("or choose another name with --config.sample.name")
    assert not parts.exists()
    with lock(trained.samples / "other.npz.parts"):
        sample(trained, **named("shared"))  # Other samples do not matter.
    assert (trained.samples / "shared.npz").exists()


def test_a_class_with_a_slash_in_its_name_does_not_become_a_folder():
    assert _default_name(4, "") == "step_4"
    assert _default_name(4, "a/abbey") == "step_4_class_a_abbey"


def test_the_time_until_the_first_samples_is_printed_once(trained, capsys):
    sample(trained, **named("soon", **{"evaluate.batch_size": 8}))
    out = capsys.readouterr()
    (seconds,) = re.findall(r"first samples after (\d+\.\d) s", out.out + out.err)
    assert float(seconds) >= 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_a_kill_in_the_middle_of_sampling_neither_repeats_nor_loses_a_sample(trained, tmp_path):
    def begin(name):
        flags = ("--num_samples=4000", f"--config.sample.name={name}")
        flags = (*flags, "--config.evaluate.batch_size=8")
        command = program.command_of_mode("sample", trained.root, *flags)
        return program.start(command, tmp_path / name)

    killed, whole = begin("killed"), begin("unkilled")
    parts = trained.samples / "killed.npz.parts"
    while len(list(parts.glob("*.npy"))) < 3 and killed.poll() is None:
        time.sleep(0.005)
    program.kill(killed)
    assert 3 <= len(list(parts.glob("*.npy"))) < 500
    resumed = begin("killed")

    assert resumed.wait() == whole.wait() == 0
    assert not parts.exists()
    for suffix in (".npz", ".npz.picture.png"):
        one, other = (
            (trained.samples / f"{n}{suffix}").read_bytes() for n in ("killed", "unkilled")
        )
        assert one == other
    assert len(np.unique(drawn(trained, "killed"), axis=0)) == 4000
