"""Sources read only the requested examples, and return the class of each."""

import jax
import numpy as np
import pytest
from image_files import numbered, picture, write_folder

from experiments.data import DataOptions, load
from experiments.data.files import Folder


@pytest.fixture
def reads(monkeypatch):
    """The files that are read from folders."""
    paths, whole = [], Folder.read

    def read(self, path):
        paths.append(path)
        return whole(self, path)

    monkeypatch.setattr(Folder, "read", read)
    return paths


@pytest.mark.parametrize("megabytes", [0, 256])
def test_a_part_of_a_set_is_spread_over_it_and_nothing_else_is_read(megabytes, tmp_path, reads):
    write_folder(tmp_path, [*numbered(50, "train/a/"), *numbered(50, "train/b/")])
    write_folder(tmp_path, numbered(30, "test/a/"))
    source = load(DataOptions("folder", str(tmp_path), in_memory_megabytes=megabytes))
    whole = source.train()
    reads.clear()
    np.testing.assert_array_equal(source.train(10), whole[::10])
    assert len(reads) == (0 if megabytes else 10)
    reads.clear()
    assert len(source.held_out(3, 0)) == len(reads) == 3


def test_streamed_images_come_with_their_classes(tmp_path):
    write_folder(tmp_path, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(20)])
    source = load(DataOptions("folder", str(tmp_path), in_memory_megabytes=0))
    kept = load(DataOptions("folder", str(tmp_path)))
    for ours, theirs in zip(source.labels, kept.labels, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    dogs = {picture(8, 8, i).tobytes() for i in range(20, 40)}
    assert [x.tobytes() in dogs for x in kept.arrays["real"]] == (source.labels.train == 1).tolist()
    with source.open_feed(0, 16, 0, 1) as take:
        batch = {name: array[:, 0] for name, array in take(1).items()}
    assert batch["label"].dtype == np.int32
    for pixels, labels in zip(batch["real"], batch["label"], strict=True):
        assert [x.tobytes() in dogs for x in pixels] == (labels == 1).tolist()
        drawn = source.draw((), {"real": pixels, "label": labels}, jax.random.key(0), None)
        np.testing.assert_array_equal(drawn["label"], labels)


def test_an_image_that_replaces_an_unreadable_one_has_its_own_class(tmp_path):
    write_folder(tmp_path, [f"train/{c}/{i}.png" for c in ("cat", "dog") for i in range(4)])
    write_folder(tmp_path, numbered(2, "test/cat/"))
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"")
    options = DataOptions("folder", str(tmp_path), on_error="skip", in_memory_megabytes=0)
    source = load(options)
    assert source.labels is None
    dogs = {picture(8, 8, i).tobytes() for i in range(4, 8)}
    with source.open_feed(0, 8, 0, 1) as take:
        batch = take(1)
    pixels = batch["real"].reshape(8, -1)
    assert [x.tobytes() in dogs for x in pixels] == (batch["label"].ravel() == 1).tolist()
