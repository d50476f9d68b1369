"""A dry run prints the time and memory of the whole run first, and writes nothing."""

import pytest
from small_runs import SMALL_RESNET, start

from experiments.errors import DataError, UserError


def test_a_dry_run_begins_with_its_estimate_and_ends_with_the_settings_that_differ(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    changes = {"flow.step_size": 0.25, "evaluate.num_samples": 50_000}
    start("dry_run", None, "digits:tiny", changes)
    printed = capsys.readouterr()
    assert "compiling and timing one step" in printed.err
    lines = printed.out.splitlines()
    assert lines[0].startswith("whole run: about ")
    assert lines[2].startswith("  evaluation of 5,000 samples and report: "), "as many are drawn"
    answer = "\n".join(lines[: lines.index("settings that differ from the defaults:")])
    for words in (
        *("4 training steps of", "not included: fitting", "MiB", " par"),
        *("1,437 training images, 10 classes", "data: digits, grey images of 8 x 8"),
    ):
        assert words in answer
    shown = [line.split()[0] for line in lines if line.startswith("  ") and "." in line.split()[0]]
    assert "flow.step_size" in shown
    assert "data.num_held_out" not in shown  # As by default.
    assert not any(tmp_path.iterdir())


def test_a_dry_run_refuses_what_training_would_refuse(image_folder, tmp_path):
    (tmp_path / "images" / "test").mkdir(parents=True)
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))):
        where = tmp_path / "images" / ("test" if i < 10 else "")
        (where / f"{i}.png").write_bytes(path.read_bytes()[: 60 if i == 7 else None])
    changes = {"data.dir": tmp_path / "images", "data.image_size": 8, **SMALL_RESNET}
    with pytest.raises(DataError, match=r"7\.png"):  # It is held out.
        start("dry_run", None, "folder:tiny", changes)
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        start("dry_run", None, "digits:tiny", {"evaluate.inception_weights": "nowhere.pth"})
