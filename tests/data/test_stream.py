"""The pipeline: every image once per epoch, and a resumed run continues with the next image."""

import numpy as np
from image_files import numbered, write_folder

from experiments.data import load
from experiments.data.decode import Transform
from experiments.data.formats import of_pixels
from experiments.data.stream import Images, all_batches, training_batches
from experiments.settings import Data

NUM = 20


def images(num=NUM, first=0):
    """Images of one pixel whose grey level is their number."""
    pixels = np.arange(first, first + num, dtype=np.uint8).reshape(-1, 1, 1)
    return Images(of_pixels("a", pixels), Transform(channels=1), (1, 1, 1))


def read(count, sides=None, **changes):
    """The image numbers of some batches, [count, batch]."""
    options = {"seed": 3, "batch_size": 4, **changes}
    batches = training_batches(sides or {"real": images()}, **options)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return {side: np.stack([b[side].ravel() for b in taken]) for side in taken[0]}


def test_every_epoch_has_every_image_once_and_its_own_order_also_resumed_or_in_two_processes():
    whole = read(20, batch_size=3)["real"]  # Batches cross the ends of epochs.
    epochs = whole.reshape(3, NUM)
    assert all(sorted(epoch) == list(range(NUM)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    np.testing.assert_array_equal(read(6, batch_size=3, start=3)["real"], whole[3:9])
    assert (read(5)["real"] != read(5, seed=4)["real"]).any()
    two = [read(7, batch_size=2, process=(i, 2))["real"] for i in range(2)]
    np.testing.assert_array_equal(read(7)["real"], np.concatenate(two, axis=1))


def test_the_domains_of_a_pair_are_shuffled_separately_and_the_smaller_repeats():
    taken = read(5, {"real": images(20), "source": images(10, first=100)})
    assert sorted(taken["real"].ravel()) == list(range(20))
    source = taken["source"].ravel()
    assert sorted(source[:10]) == sorted(source[10:]) == list(range(100, 110))
    assert (taken["real"].ravel()[:10] != source[:10] - 100).any()


def test_a_pass_over_all_images_keeps_the_ragged_last_batch_and_the_order(monkeypatch):
    monkeypatch.setattr("experiments.data.stream._BATCH_BYTES", 8 * 4)
    batches = list(all_batches(images()))
    assert [len(pixels) for pixels in batches] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(batches).ravel(), np.arange(NUM))


def test_a_feed_stacks_the_steps_of_a_dispatch_for_each_device(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.data.stored.MAX_IN_MEMORY_BYTES", 0)
    source = load(Data(name="folder", dir=str(write_folder(tmp_path, numbered(20)))))
    with source.open_feed(0, 8, 0, 3) as take:
        first, second = take(2)["real"], take(3)["real"]
    devices = first.shape[0]
    assert first.shape == second.shape == (devices, 3, 8 // devices, 8, 8, 3)
    assert first[:, :2].any() > first[:, 2:].any()
    with source.open_feed(0, 8, 2, 3) as take:
        np.testing.assert_array_equal(take(3)["real"], second)
