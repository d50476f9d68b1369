"""Built-in sets."""

import numpy as np
import pytest

from experiments.data import contains, load
from experiments.errors import DataError
from experiments.settings import Data


def test_a_pair_of_digits_has_the_labels_of_its_target():
    source = load(Data(name="digits", source_class="3", target_class="8"))
    assert set(source.labels.train) == set(source.labels.held_out) == {8}
    assert len(source.labels.train) == len(source.train())
    assert len(source.labels.held_out) == len(source.held_out(1_000, 0))
    with pytest.raises(DataError, match="must both be digits, 0, 1"):
        load(Data(name="digits", source_class="3", target_class="x"))


def test_a_path_in_the_folder_of_images_is_recognised(tmp_path):
    options = Data(name="folder", dir=str(tmp_path))
    assert contains(options, tmp_path / "runs" / "x")
    assert not contains(options, tmp_path.parent / "x")
    assert not contains(Data(name="digits"), tmp_path / "x")


def test_the_classes_of_digits_are_those_of_the_images():
    source = load(Data(name="digits"))
    means = [source.train()[source.labels.train == i].mean(axis=0) for i in range(10)]
    held_out = source.held_out(360, 0)
    distances = [((held_out - mean) ** 2).sum(axis=(1, 2, 3)) for mean in means]
    assert np.mean(np.argmin(distances, axis=0) == source.labels.held_out) > 0.8
