"""Reading a file needs no more memory than its content, whatever the file claims."""

import io
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
from image_files import picture

from experiments.data import DataOptions, load
from experiments.data.files import ZipArchive
from experiments.errors import DataError

FINE = 12


@contextmanager
def at_most(num_bytes):
    """Checks the peak memory of Python and NumPy in the block."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < num_bytes, f"{peak:,} bytes"


def test_an_entry_of_a_zip_is_unpacked_into_one_buffer(tmp_path):
    size, path = 2**25, tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(size))
    archive = ZipArchive(str(path))
    with at_most(1.5 * size):
        content = archive.read("0.png")
    assert content == bytes(size)


def test_an_array_that_is_not_needed_is_not_read(tmp_path):
    size = 2**26
    images = np.stack([picture(8, 8, i) for i in range(FINE)])
    np.savez_compressed(tmp_path / "a.npz", images=images, unused=np.zeros(size, np.uint8))
    with at_most(size // 8):
        source = load(DataOptions("npz", str(tmp_path / "a.npz")))
    assert len(source.train()) + len(source.held_out(FINE, 0)) == FINE


def test_an_array_is_checked_by_its_header_before_it_is_read(tmp_path):
    size = 2**26
    for name, array, message in (
        ("floats", np.zeros(size // 4, np.float32), "must be uint8"),
        ("flat", np.zeros(size, np.uint8), "must be uint8"),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez_compressed(path, images=array)
        with at_most(size // 8), pytest.raises(DataError, match=message):
            load(DataOptions("npz", str(path)))


def test_labels_are_not_read_if_their_number_differs_from_the_images(tmp_path):
    size = 2**26
    arrays = {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(size, np.uint8)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with at_most(size // 8), pytest.raises(DataError, match="4 images but labels of shape"):
        load(DataOptions("npz", str(tmp_path / "a.npz")))


def test_an_array_whose_header_claims_more_than_the_file_contains_is_refused(tmp_path):
    path, stream = tmp_path / "a.npz", io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 64, 64)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", stream.getvalue() + bytes(100))
    with at_most(2**24), pytest.raises(DataError, match=r"images.* expected 4,096,000,128 bytes"):
        load(DataOptions("npz", str(path)))


@pytest.mark.parametrize("shape", [(4, 0, 8), (4, 8, 0, 3)])
def test_images_without_pixels_are_refused(shape, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="have no pixels"):
        load(DataOptions("npz", str(tmp_path / "a.npz"), image_size=8))
