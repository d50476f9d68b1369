"""A set of images is the same in every format, and sets are compared in one shape."""

import zipfile

import numpy as np
import pytest
from image_files import encoded

from experiments.errors import DataError
from experiments.evaluation import sets


@pytest.fixture(scope="module")
def stored(stripes, tmp_path_factory):
    """The same images as a folder, a zip and arrays."""
    root, pixels = tmp_path_factory.mktemp("sets"), stripes(60, 0)
    (root / "folder").mkdir()
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for i, image in enumerate(pixels):
            (root / "folder" / f"{i:04d}.png").write_bytes(encoded(image))
            archive.writestr(f"{i:04d}.png", encoded(image))
    np.savez(root / "images.npz", arr_0=pixels)
    np.savez(root / "floats.npz", arr_0=pixels / np.float32(127.5) - np.float32(1.0))
    return root


def test_a_folder_a_zip_and_an_npz_of_the_same_images_are_the_same_set(stored):
    folder, archive, array, floats = (
        sets.load(str(stored / name))
        for name in ("folder", "images.zip", "images.npz", "floats.npz")
    )
    prints = [images.describe()["fingerprint"] for images in (folder, archive, array, floats)]
    assert prints[0] == prints[1] == prints[2] != prints[3]
    for other in (archive, array, floats):
        np.testing.assert_array_equal(other.unit, folder.unit)
        np.testing.assert_array_equal(np.concatenate(list(other.batches())), folder.unit)
    assert (array.for_inception().is_rounded, floats.for_inception().is_rounded) == (True, False)


def test_grey_sets_have_one_channel_unless_another_set_is_in_colour(stored, stripes, tmp_path):
    grey = stripes(60, 3)[..., :1]
    (tmp_path / "grey").mkdir()
    for i, image in enumerate(grey):
        (tmp_path / "grey" / f"{i:04d}.png").write_bytes(encoded(image[..., 0]))
    np.savez(tmp_path / "grey.npz", arr_0=grey)
    np.savez(tmp_path / "in_colour.npz", arr_0=np.repeat(grey, 3, axis=-1))
    names = ("grey", "grey.npz", "in_colour.npz")
    loaded = {name: sets.load(str(tmp_path / name)) for name in names}
    for images in sets.alike(loaded).values():
        np.testing.assert_array_equal(images.pixels, grey)
    mixed = sets.alike({**loaded, "colour": sets.load(str(stored / "folder"))})
    assert {images.pixels.shape for images in mixed.values()} == {(60, 16, 16, 3)}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5])
def test_one_number_outside_the_range_of_pixels_is_refused(value, tmp_path):
    images = np.zeros((3, 8, 8, 3), np.float32)
    images[1, 2, 3, 0] = value
    np.savez(tmp_path / "floats.npz", arr_0=images)
    with pytest.raises(
        DataError, match=r"floats\.npz: floating-point images must be .* in \[-1, 1"
    ):
        sets.load(str(tmp_path / "floats.npz"))


def test_sets_of_other_sizes_need_a_common_one(stored, stripes, tmp_path):
    np.savez(tmp_path / "small.npz", arr_0=stripes(60, 0, 8))
    names = [str(tmp_path / "small.npz"), str(stored / "folder")]
    with pytest.raises(DataError, match=r"small\.npz has 8 x 8, .* has 16 x 16; set --image_size"):
        sets.alike({name: sets.load(name) for name in names})
    same = sets.alike({name: sets.load(name, image_size=8) for name in names})
    assert {images.pixels.shape for images in same.values()} == {(60, 8, 8, 3)}
    with pytest.raises(DataError, match="floating-point images cannot be resized"):
        sets.load(str(stored / "floats.npz"), image_size=8)


def test_images_of_several_sizes_in_one_set_are_refused_with_the_flag_of_this_program(tmp_path):
    for size in (8, 9):
        pixels = np.zeros((size, size, 3), np.uint8)
        (tmp_path / f"{size}.png").write_bytes(encoded(pixels))
    with pytest.raises(DataError, match=r"9\.png.*\(8, 8, 3\) in other images; set --image_size"):
        sets.load(str(tmp_path))
    assert sets.load(str(tmp_path), image_size=8).pixels.shape == (2, 8, 8, 3)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_a_set_with_fewer_than_two_images_is_named(kind, tmp_path):
    for num in (0, 1):
        np.savez(tmp_path / "few.npz", arr_0=np.zeros((num, 16, 16, 3), kind))
        with pytest.raises(DataError, match=r"few\.npz.* images"):
            sets.load(str(tmp_path / "few.npz"))


def test_what_is_not_a_set_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.full((4, 8, 8, 3), 1.5))
    with pytest.raises(DataError, match=r"must be \[N, H, W, 1 or 3\] in \[-1, 1\]"):
        sets.load(str(tmp_path / "a.npz"))
    with pytest.raises(DataError, match="the split is missing"):
        sets.load("tfds:cifar10")
    with pytest.raises(DataError, match="nowhere does not exist"):
        sets.load("nowhere")
