"""TFDS data sets are read without their builder and without TensorFlow, and prepared if missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets
from image_files import all_images, pictures

from experiments.data import load, tfds
from experiments.errors import DataError
from experiments.settings import Data


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A root with the data set `glyphs`, prepared as a user would."""
    from glyphs_builder import Glyphs

    root = tmp_path_factory.mktemp("prepared")
    Glyphs(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_a_custom_set_is_read_without_its_builder(prepared):
    source = load(Data(name="tfds:glyphs", dir=str(prepared)))
    assert all_images(source) == pictures(16)
    assert (len(source.train()), source.classes) == (12, ("a", "b"))
    np.testing.assert_array_equal(source.labels.train.sum(), 6)


def test_a_damaged_set_is_named_and_code_of_a_foreign_one_not_run(prepared, tmp_path, monkeypatch):
    options = Data(name="tfds:glyphs", dir=str(tmp_path / "copy"))
    shutil.copytree(prepared, tmp_path / "copy")
    (path,) = (tmp_path / "copy").rglob("*-train.*")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"glyphs/1\.0\.0"):
        load(options)
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    file = next((tmp_path / "copy").rglob("features.json"))
    features = json.loads(file.read_text())
    features["featuresDict"]["features"]["label"]["pythonClassName"] = "evil.Label"
    file.write_text(json.dumps(features).replace("pythonClassName", "pythonClass\\u004eame"))
    with pytest.raises(DataError, match=r"'evil\.Label'.* only classes of tensorflow_datasets"):
        load(options)


@pytest.mark.parametrize("name", ["../x", "/etc", "x/../../y", "..", "*", "x/**", "x:../1", "a\nb"])
def test_a_name_cannot_lead_out_of_the_root(name, tmp_path):
    with pytest.raises(DataError, match=r"data\.name must be tfds:NAME"):
        tfds.find(name, str(tmp_path))


def test_a_set_that_cannot_be_prepared_says_how_to(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tensorflow_datasets, "builder", lambda *_, **__: Path("/no/route").read_text()
    )
    with pytest.raises(DataError, match=r"no/route.*tfds build mnist .*=array_record"):
        load(Data(name="tfds:mnist", dir=str(tmp_path)))


def test_a_set_is_downloaded_and_prepared_on_first_use(tmp_path, monkeypatch, capsys):
    from glyphs_builder import Glyphs

    monkeypatch.setattr(tensorflow_datasets, "builder", lambda name, **options: Glyphs(**options))
    source = load(Data(name="tfds:mnist", dir=str(tmp_path)))
    assert len(source.train()) == 12
    assert "downloading and preparing it" in capsys.readouterr().out
