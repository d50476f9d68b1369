"""A set of images is the same in every format, and the command accepts all formats."""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded

from experiments import evaluate
from experiments.data.decode import to_unit
from experiments.errors import DataError
from experiments.evaluation import image_sets
from experiments.evaluation.protocols import LEGACY, STANDARD, prefixed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stored(stripes, tmp_path_factory):
    """The same images as a folder, a zip and an .npz, and other images as `reference.npz`."""
    root, pixels = tmp_path_factory.mktemp("sets"), stripes(60, 0)
    (root / "folder").mkdir()
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for i, image in enumerate(pixels):
            (root / "folder" / f"{i:04d}.png").write_bytes(encoded(image))
            archive.writestr(f"{i:04d}.png", encoded(image))
    np.savez(root / "images.npz", arr_0=pixels)
    np.savez(root / "reference.npz", arr_0=stripes(80, 1))
    np.savez(root / "small.npz", arr_0=pixels[:, :8, :8])
    np.savez(root / "grey.npz", arr_0=pixels[..., :1])
    np.savez(root / "floats.npz", arr_0=pixels / np.float32(127.5) - np.float32(1.0))
    return root


def run(capsys, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        code = evaluate.main([f"--out={file}", *map(str, arguments)])
        out, err = capsys.readouterr()
        if code:
            return code, err.strip().splitlines()[-1]
        result = json.loads(file.read_text())
    head, *rows = out.partition("\n\n")[0].splitlines()[: len(result["metrics"]) + 1]
    assert head.split() == ["metric", "samples", "better"]
    assert {row.split()[0] for row in rows} == set(result["metrics"])
    return code, result


def test_a_folder_a_zip_and_an_npz_of_the_same_images_give_the_same_numbers(stored, capsys):
    results = []
    for name in ("folder", "images.zip", "images.npz", "floats.npz"):
        arguments = (stored / name, stored / "reference.npz", "--features=random_conv")
        results.append(run(capsys, *arguments)[1])
    metrics = [result["metrics"] for result in results]
    assert metrics[0] == metrics[1] == metrics[2] == metrics[3]
    assert len({result["samples"]["fingerprint"] for result in results[:3]}) == 1
    assert metrics[0].keys() == {
        f"{m}_random_conv_60" for m in ("frechet", "precision", "recall", "density", "coverage")
    }
    assert results[0]["reference"]["num_images"] == 80


def test_the_metric_is_zero_for_equal_sets_small_for_halves_and_grows_with_noise(
    stripes, tmp_path, capsys
):
    halves, rng = stripes(600, 2), np.random.default_rng(0)
    np.savez(tmp_path / "reference.npz", arr_0=halves[:300])
    values = []
    for scale in (None, 0, 10, 30, 90):
        samples = halves[:300] if scale is None else halves[300:]
        noisy = np.clip(samples + (scale or 0) * rng.normal(size=samples.shape), 0, 255)
        np.savez(tmp_path / "samples.npz", arr_0=np.round(noisy).astype(np.uint8))
        arguments = (tmp_path / "samples.npz", tmp_path / "reference.npz", "--features=random_conv")
        values.append(run(capsys, *arguments)[1]["metrics"]["frechet_random_conv_300"]["value"])
    assert values[0] == pytest.approx(0.0, abs=1e-9)
    assert values == sorted(values)
    assert values[-1] > 20 * values[1]


def test_grey_arrays_stay_grey_and_other_sizes_need_a_common_one(stored, capsys):
    assert image_sets.load(str(stored / "grey.npz")).unit.shape == (60, 16, 16, 1)
    arguments = (stored / "small.npz", stored / "images.npz", "--features=random_conv")
    code, message = run(capsys, *arguments)
    assert code == 2
    assert "8 x 8 pixels" in message
    assert "--image_size" in message
    code, result = run(capsys, *arguments, "--image_size=8")
    assert code == 0
    assert result["reference"]["resized_by"] == "Pillow, bilinear, antialiased"
    assert result["samples"]["resized_by"] is None


def test_grey_files_are_the_same_set_as_a_grey_array_and_fit_images_in_colour(
    stored, stripes, tmp_path, capsys
):
    grey = stripes(60, 3)[..., :1]
    (tmp_path / "grey").mkdir()
    for i, image in enumerate(grey):
        (tmp_path / "grey" / f"{i:04d}.png").write_bytes(encoded(image[..., 0]))
    np.savez(tmp_path / "grey.npz", arr_0=grey)
    np.savez(tmp_path / "in_colour.npz", arr_0=np.repeat(grey, 3, axis=-1))

    def distance(*names):
        code, result = run(capsys, *(tmp_path / name for name in names), "--features=random_conv")
        return result["metrics"]["frechet_random_conv_60"]["value"] if code == 0 else result

    np.savez(tmp_path / "samples.npz", arr_0=stripes(60, 4)[..., :1])
    assert distance("samples.npz", "grey") == distance("samples.npz", "grey.npz") > 0
    assert distance("in_colour.npz", "grey") == pytest.approx(0.0, abs=1e-6)
    assert "numbers of channels differ" in distance("grey.npz", stored / "folder")


def test_a_set_was_resized_if_any_of_its_images_was(stripes, tmp_path):
    for i, size in enumerate((8, 8, 16)):
        (tmp_path / f"{i}.png").write_bytes(encoded(stripes(1, i, size)[0]))
    assert image_sets.load(str(tmp_path), image_size=8).resized
    (tmp_path / "2.png").unlink()
    assert not image_sets.load(str(tmp_path), image_size=8).resized


def test_held_out_images_that_do_not_fit_are_reported_before_anything_is_computed(
    stored, capsys, monkeypatch
):
    monkeypatch.delattr("experiments.evaluation.inception.by_inception")
    arguments = (stored / "folder", stored / "reference.npz", "--features=random_conv")
    for name, expected in (("grey", "numbers of channels differ"), ("small", "8 x 8 pixels")):
        code, message = run(capsys, *arguments, f"--held_out={stored / name}.npz")
        assert code == 2
        assert expected in message


def test_a_custom_feature_space_is_a_function_in_a_module(stored, capsys, monkeypatch):
    monkeypatch.syspath_prepend(stored)
    (stored / "my_space.py").write_text("def means(images):\n    return images.mean((1, 2))\n")
    arguments = (stored / "folder", stored / "reference.npz")
    code, result = run(capsys, *arguments, "--features=my_space:means")
    assert code == 0
    assert result["metrics"]["frechet_means_60"]["value"] > 0
    (stored / "other_space.py").write_text("from my_space import means\npixels = means\n")
    for names in ("my_space:means,other_space:means", "other_space:pixels"):
        code, message = run(capsys, *arguments, f"--features={names}")
        assert code == 2
        assert "there are two feature spaces" in message
    code, message = run(capsys, *arguments, "--features=random_con")
    assert code == 2
    assert "did you mean 'random_conv'" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "weights-inception-2015-12-05-6726825d.pth (SHA-256 begins with 6726825d)"),
        (["--weights=nowhere.pth"], "nowhere.pth does not exist"),
        (["--protocol=fid_legacy_fdrl"], "inception_v3_google-0cc3c7bd.pth"),
        (["--protocol=standart"], "did you mean 'standard'"),
        (["--metrics=fid,kidd"], "did you mean 'kid'"),
        (["--protocol=fid_legacy_fdrl", "--metrics=kid"], "unknown 'kid'; did you mean 'fid'"),
        (["--protocol=standard,fid_legacy_fdrl"], "unknown 'standard,fid_legacy_fdrl'"),
        (["--picture=x.png"], "needs --held_out"),
        (["--picture=x.pngg", "--held_out=x"], "--picture: unknown 'pngg'; did you mean 'png'"),
        (["--picture=x", "--held_out=x"], "--picture: unknown ''; allowed: "),
        ([], "or --features=random_conv, which needs no weights"),
        (["--features=random_conv", "--image=8"], "unrecognized arguments: --image=8"),
        (["--features=random_conv", "--held_out=nowhere"], "--held_out=nowhere does not exist"),
        (["--speed=high"], "unrecognized arguments: --speed=high"),
        (["--out=nowhere/x.json"], "the folder nowhere does not exist"),
        (["--out=."], "--out=. cannot be written"),
        (["--features=random_conv,random_conv"], "two feature spaces 'random_conv'"),
    ],
)
def test_a_mistake_ends_with_one_line_that_says_what_to_do(stored, capsys, arguments, expected):
    code, message = run(capsys, stored / "folder", stored / "reference.npz", *arguments)
    assert code == 2
    assert message.startswith("error: ")
    assert expected in message


def test_the_command_runs_as_a_program_and_reports_missing_images():
    command = [sys.executable, "-m", "experiments.evaluate", "nowhere", "nothing"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*command, "--features=random_conv"], **options)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: SAMPLES=nowhere does not exist or cannot be opened; it must be a folder or a zip "
        "of images"
    )
    with pytest.raises(DataError, match="the split is missing"):
        image_sets.load("tfds:cifar10")


def test_metrics_of_other_protocols_or_weights_have_other_names():
    assert prefixed(STANDARD, f"{STANDARD.sha256}5e", "fid") == "fid"
    assert prefixed(LEGACY, f"{LEGACY.sha256}5e", "fid") == "fid_legacy_fdrl"
    assert prefixed(STANDARD, "1a2b3c4d5e", "fid") == "fid_weights_1a2b3c4d"


def test_an_empty_set_is_named(stored, tmp_path, capsys):
    for name, kind in (("floats", np.float32), ("levels", np.uint8)):
        path = tmp_path / f"{name}.npz"
        np.savez(path, arr_0=np.zeros((0, 16, 16, 3), kind))
        code, message = run(capsys, path, stored / "reference.npz", "--features=random_conv")
        assert code == 2
        assert message.startswith(f"error: {path}: ")


def test_the_record_of_samples_is_found_whatever_their_name(tmp_path, monkeypatch):
    for name in ("v1.5", "v1", "v1.npz"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"file": name}))
    (tmp_path / "v1.5").mkdir()
    assert evaluate._record_of(tmp_path / "v1.5") == {"file": "v1.5"}
    assert evaluate._record_of(tmp_path / "v1.npz") == {"file": "v1.npz"}
    assert evaluate._record_of(tmp_path / "v1.zip") is None
    monkeypatch.chdir(tmp_path / "v1.5")
    assert evaluate._record_of(Path()) == {"file": "v1.5"}


def test_a_mistyped_flag_does_not_wait_for_slow_imports():
    program = (
        "import sys; from experiments import evaluate; evaluate.main(['a', 'b', '--x']);"
        "print(*sorted(name.partition('.')[0] for name in sys.modules))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "unrecognized arguments: --x" in done.stderr
    assert not {"sklearn", "grain", "matplotlib", "orbax"} & set(done.stdout.split())


def test_a_stream_of_images_is_the_same_set_as_the_images_in_memory(stripes):
    pixels = stripes(50, 0)
    whole = image_sets.in_memory("x", pixels)
    for size in (7, 50):
        parts = [to_unit(pixels[i : i + size]) for i in range(0, 50, size)]
        stream = image_sets.ImageSet("x", lambda parts=parts: iter(parts))
        assert stream.summary == whole.summary
