"""Images are held out, or chosen as domains; errors name what is missing."""

import numpy as np
import pytest
from image_files import numbered, open_folder, picture, write_folder

from experiments.data import contains, load
from experiments.data.decode import to_uint8
from experiments.errors import DataError
from experiments.settings import Data


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_folders_of_splits_are_not_classes(held_out, tmp_path):
    names = [f"{split}/{label}/" for split in ("train", held_out) for label in ("cat", "dog")]
    write_folder(tmp_path, [name for prefix in names for name in numbered(4, prefix)])
    source = open_folder(tmp_path)
    assert source.classes == ("cat", "dog")
    assert len(source.train()) == len(source.held_out(99, 0)) == 8


def test_the_domains_of_a_pair_are_the_folders_a_and_b(tmp_path):
    names = [*numbered(4, "trainA/"), *numbered(6, "trainB/"), *numbered(2, "testA/")]
    write_folder(tmp_path, [*names, *numbered(2, "testB/")])
    for sides, sizes in (({}, (4, 6)), ({"source_class": "B", "target_class": "A"}, (6, 4))):
        arrays = load(Data(name="pair", dir=str(tmp_path), **sides)).arrays
        assert (len(arrays["source"]), len(arrays["real"])) == sizes


def test_two_classes_of_a_labelled_set_make_a_pair_and_the_held_out_side_starts_first(tmp_path):
    sizes = {"all/cat/": 20, "all/dog/": 30, "all/fox/": 9}  # Below one common folder.
    write_folder(tmp_path, [name for c, num in sizes.items() for name in numbered(num, c)])
    labels = open_folder(tmp_path).labels
    assert (labels.classes, {*labels.train}) == (("cat", "dog", "fox"), {0, 1, 2})
    source = open_folder(tmp_path, source_class="cat", target_class="dog")
    assert (len(source.arrays["source"]), len(source.arrays["real"])) == (18, 27)
    starts = to_uint8(source.starts(np.arange(22)))
    trained_on = {image.tobytes() for image in source.arrays["source"]}
    assert [image.tobytes() in trained_on for image in starts[:20]] == [False] * 2 + [True] * 18
    np.testing.assert_array_equal(starts[20:], starts[:2])


@pytest.mark.parametrize(("folder", "num_sources"), [("test/cat/", 20), ("test/", 18)])
def test_a_tenth_of_a_class_without_held_out_images_is_held_out(folder, num_sources, tmp_path):
    write_folder(tmp_path, [*numbered(20, "train/cat/"), *numbered(30, "train/dog/")])
    write_folder(tmp_path, numbered(3, folder))
    source = open_folder(tmp_path, source_class="cat", target_class="dog")
    assert (len(source.arrays["source"]), len(source.arrays["real"])) == (num_sources, 27)
    assert len(source.held_out(10, 0)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dir": "missing"}, r"missing does not exist"),
        ({"dir": ""}, "needs the path of the data: set --data_dir"),
        ({"name": "folders"}, r"'folders'; did you mean 'folder'"),
        ({"name": "tfds:"}, r"data.name must be one of"),
        ({"source_class": "cat"}, r"go together"),
        ({"keep_aspect": False}, r"data.resize or data.image_size: set one of them"),
        ({"source_class": "cat", "target_class": "dgo"}, r"did you mean 'dog'.* cat, dog"),
        ({"name": "pair"}, r"needs a folder 'trainB'"),
        ({"dir": "one"}, r"has 1 image\(s\); training needs at least 2"),
        ({"name": "pair", "dir": "sizes"}, "differ in height, width or channels"),
        ({"name": "digits", "source_class": "3", "target_class": "x"}, "must both be digits, 0, 1"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data", [*numbered(3, "cat/"), *numbered(3, "dog/")])
    write_folder(tmp_path / "one", numbered(1))
    for side, size in (("A", 8), ("B", 9)):
        write_folder(tmp_path / "sizes", numbered(4, f"train{side}/"), size)
    with pytest.raises(DataError, match=message):
        load(Data(**{"name": "folder", "dir": "data", **changes}))


def test_held_out_images_are_in_a_random_order(tmp_path):
    write_folder(tmp_path, [*numbered(4, "train/"), *numbered(20, "test/")])
    numbers = {picture(8, 8, 4 + i).tobytes(): i for i in range(20)}
    order = [numbers[to_uint8(x).tobytes()] for x in open_folder(tmp_path).held_out(20, 0)]
    assert order != sorted(order) == list(range(20))


def test_a_path_in_the_folder_of_images_is_recognised(tmp_path):
    options = Data(name="folder", dir=str(tmp_path))
    found = [contains(options, tmp_path / "x"), contains(options, tmp_path.parent / "x")]
    assert [*found, contains(Data(name="digits"), tmp_path / "x")] == [True, False, False]


def test_the_classes_of_digits_are_those_of_the_images():
    source = load(Data(name="digits"))
    means = [source.train()[source.labels.train == i].mean(axis=0) for i in range(10)]
    held_out = source.held_out(360, 0)
    distances = [((held_out - mean) ** 2).sum(axis=(1, 2, 3)) for mean in means]
    assert np.mean(np.argmin(distances, axis=0) == source.labels.held_out) > 0.8
