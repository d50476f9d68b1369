"""Stored images: in memory or streamed, with their classes, and read only where needed."""

from pathlib import Path

import jax
import numpy as np
from image_files import encoded, numbered, open_folder, picture, write_folder

from experiments.data import stored


def test_a_part_of_a_set_is_spread_over_it_and_nothing_else_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MAX_IN_MEMORY_BYTES", 0)
    reads, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read(path))
    write_folder(tmp_path, [*numbered(50, "train/a/"), *numbered(50, "train/b/")])
    write_folder(tmp_path, numbered(30, "test/a/"))
    source = open_folder(tmp_path)
    whole = source.train()
    reads.clear()
    np.testing.assert_array_equal(source.train(10), whole[::10])
    assert len(reads) == 10
    reads.clear()
    assert len(source.held_out(3, 0)) == len(reads) == 3


def test_streamed_images_come_with_their_classes(tmp_path, monkeypatch):
    write_folder(tmp_path, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(20)])
    kept = open_folder(tmp_path)
    monkeypatch.setattr(stored, "MAX_IN_MEMORY_BYTES", 0)
    source = open_folder(tmp_path)
    assert source.arrays == ()
    dogs = {picture(8, 8, i).tobytes() for i in range(20, 40)}
    assert [x.tobytes() in dogs for x in kept.arrays["real"]] == (source.labels.train == 1).tolist()
    with source.open_feed(0, 16, 0, 1) as take:
        batch = {name: array[:, 0] for name, array in take(1).items()}
    assert batch["label"].dtype == np.int32
    for pixels, labels in zip(batch["real"], batch["label"], strict=True):
        assert [x.tobytes() in dogs for x in pixels] == (labels == 1).tolist()
        drawn = source.draw((), {"real": pixels, "label": labels}, jax.random.key(0), None)
        np.testing.assert_array_equal(drawn["label"], labels)


def test_half_of_the_images_are_mirrored_by_their_positions(tmp_path):
    write_folder(tmp_path, numbered(40))
    plain, flipped = (open_folder(tmp_path, random_flip=flip) for flip in (False, True))
    key, positions = jax.random.key(0), np.arange(32)
    one, two = (s.draw(s.arrays, None, key, positions)["real"] for s in (plain, flipped))
    is_mirrored = [np.array_equal(x[:, ::-1], y) for x, y in zip(one, two, strict=True)]
    assert all(is_mirrored[i] or np.array_equal(one[i], two[i]) for i in range(32))
    assert 6 <= sum(is_mirrored) <= 26


def test_with_channels_0_grey_images_among_coloured_ones_get_equal_channels(tmp_path):
    for part, num in (("train", 10), ("test", 2)):
        (tmp_path / part).mkdir()
        for i in range(num):  # One has colours.
            pixels = picture(6, 6, i) if i == 9 else picture(6, 6, i)[..., 0]
            (tmp_path / part / f"{i}.png").write_bytes(encoded(pixels))
    source = open_folder(tmp_path, channels=0)
    assert source.event_shape == (6, 6, 3)
    assert np.ptp(source.arrays["real"][:9], axis=-1).max() == 0
