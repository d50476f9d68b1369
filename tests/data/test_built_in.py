"""Built-in sets, and where data are searched for."""

import numpy as np
import pytest
from image_files import numbered, write_folder

from experiments.data.load import contains, load, resolve_dir
from experiments.errors import DataError
from experiments.settings import Data


@pytest.mark.parametrize("name", ["swissroll", "8gaussians", "digits"])
@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 32},
        {"center_crop": 4},
        {"resize": 9},
        {"keep_aspect": False},
        {"random_flip": True},
        {"num_held_out": 5},
        {"split": "all"},
    ],
    ids=str,
)
def test_a_setting_that_would_do_nothing_is_an_error(name, changes):
    (key,) = changes
    with pytest.raises(DataError, match=rf"data\.{key}=.* data\.name={name} is a built-in set"):
        load(Data(name=name, **changes))


def test_points_have_no_classes_to_choose_and_no_other_start():
    with pytest.raises(DataError, match="swissroll has no classes"):
        load(Data(name="swissroll", source_class="1", target_class="2"))
    with pytest.raises(DataError, match=r"data\.source_dir=x: .* is a built-in set"):
        load(Data(name="swissroll", source_dir="x"))


def test_the_size_that_a_built_in_set_has_may_be_given():
    assert load(Data(name="digits", image_size=8)).event_shape == (8, 8, 1)


def test_a_pair_of_digits_has_the_labels_of_its_target():
    source = load(Data(name="digits", source_class="3", target_class="8"))
    assert set(source.labels.train) == set(source.labels.held_out) == {8}
    assert len(source.labels.train) == len(source.train())
    assert len(source.labels.held_out) == len(source.held_out(1_000, 0))


def test_the_environment_is_read_whenever_data_are_opened(tmp_path, monkeypatch):
    options = Data(name="folder")
    for num, name in ((4, "a"), (6, "b")):
        where = write_folder(tmp_path / name, numbered(num))
        monkeypatch.setenv("FDRL_DATA_DIR", str(where))
        source = load(options)
        assert len(source.train()) + len(source.held_out(10, 0)) == num
    assert resolve_dir("given") == "given"
    assert resolve_dir("") == str(tmp_path / "b")
    monkeypatch.delenv("FDRL_DATA_DIR")
    assert resolve_dir("") == ""


def test_the_classes_of_digits_are_those_of_the_images():
    source = load(Data(name="digits"))
    means = [source.train()[source.labels.train == i].mean(axis=0) for i in range(10)]
    held_out = source.held_out(360, 0)
    distances = [((held_out - mean) ** 2).sum(axis=(1, 2, 3)) for mean in means]
    assert np.mean(np.argmin(distances, axis=0) == source.labels.held_out) > 0.8


def test_a_path_in_the_folder_of_images_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setenv("FDRL_DATA_DIR", str(tmp_path))
    options = Data(name="folder")
    assert contains(options, tmp_path / "runs" / "x")
    assert contains(options, tmp_path)
    assert not contains(options, tmp_path.parent / "x")
    assert not contains(Data(name="digits"), tmp_path / "x")
    assert contains(Data(name="digits", source_dir=str(tmp_path)), tmp_path / "x")
