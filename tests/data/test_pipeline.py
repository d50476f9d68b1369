"""The pipeline: every image once per epoch, and a resumed run continues with the next image."""

import os

import numpy as np
import pytest
from image_files import encoded, numbered, picture, write_folder

from experiments.data import DataOptions, load
from experiments.data.arrays import Pixels
from experiments.data.decode import Transform
from experiments.data.decoded import Images
from experiments.data.records import Problems, Records
from experiments.data.stream import Reading, all_batches, training_batches
from experiments.errors import DataError

NUM = 20


def images(num=NUM, first=0):
    """Images of one pixel whose grey level is their number."""
    pixels = np.arange(first, first + num, dtype=np.uint8).reshape(-1, 1, 1)
    return Images(Pixels("a", pixels).records(), Transform(channels=1), (1, 1, 1))


def read(count, sides=None, workers=0, **options):
    """The image numbers of some batches, [count, batch]."""
    batches = training_batches(
        sides or {"real": images()},
        Reading(Problems("stop"), num_workers=workers),
        **{"seed": 3, "batch_size": 4, **options},
    )
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return {side: np.stack([b[side].ravel() for b in taken]) for side in taken[0]}


def test_every_epoch_has_every_image_once_and_its_own_order():
    epochs = read(15)["real"].reshape(3, NUM)
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_cross_the_end_of_an_epoch_and_drop_nothing():
    taken = read(20, batch_size=3)["real"].ravel()
    assert sorted(taken[:NUM]) == list(range(NUM))
    assert sorted(taken[NUM : 2 * NUM]) == list(range(NUM))


def test_the_order_depends_only_on_the_seed():
    np.testing.assert_array_equal(read(5)["real"], read(5)["real"])
    assert (read(5)["real"] != read(5, seed=4)["real"]).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_an_epoch_sees_what_the_uninterrupted_one_would(workers):
    whole = read(9)["real"]
    np.testing.assert_array_equal(read(6, start=3, workers=workers)["real"], whole[3:])


def test_two_processes_share_each_epoch_without_overlap():
    parts = [read(5, batch_size=2, process=(i, 2))["real"].ravel() for i in range(2)]
    assert not set(parts[0]) & set(parts[1])
    assert set(parts[0]) | set(parts[1]) == set(range(NUM))


def test_the_images_of_a_step_and_their_order_do_not_depend_on_the_number_of_processes():
    one = read(7)["real"]
    two = [read(7, batch_size=2, process=(i, 2))["real"] for i in range(2)]
    np.testing.assert_array_equal(one, np.concatenate(two, axis=1))


def test_the_domains_of_a_pair_are_shuffled_separately_and_the_smaller_repeats():
    taken = read(5, {"real": images(20), "source": images(10, first=100)})
    assert sorted(taken["real"].ravel()) == list(range(20))
    source = taken["source"].ravel()
    assert sorted(source[:10]) == sorted(source[10:]) == list(range(100, 110))
    assert (taken["real"].ravel()[:10] != source[:10] - 100).any()


def test_a_batch_may_be_larger_than_the_set():
    taken = read(3, {"real": images(3)}, batch_size=8)["real"].ravel()
    assert all(sorted(taken[i : i + 3]) == [0, 1, 2] for i in range(0, 24, 3))


def test_a_pass_over_all_images_keeps_the_ragged_last_batch_and_the_order():
    batches = list(all_batches(images(), Reading(Problems("stop")), 8))
    assert [len(pixels) for pixels, _ in batches] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([p.ravel() for p, _ in batches]), np.arange(NUM))


def test_a_feed_stacks_the_steps_of_a_dispatch_for_each_device(tmp_path):
    options = DataOptions("folder", str(write_folder(tmp_path, numbered(20))))
    source = load(options._replace(in_memory_megabytes=0))
    assert source.arrays == ()
    with source.open_feed(0, 8, 0, 3) as take:
        first, second = take(2)["real"], take(3)["real"]
    devices = first.shape[0]
    assert first.shape == second.shape == (devices, 3, 8 // devices, 8, 8, 3)
    assert first[:, :2].any()
    assert not first[:, 2:].any()
    with source.open_feed(0, 8, 2, 3) as take:
        np.testing.assert_array_equal(take(3)["real"], second)


class Fatal:
    """A container whose third image kills the process that reads it."""

    def records(self):
        return Records(self, range(NUM), "", "")

    def name(self, index):
        return f"image {index}"

    def read(self, index):
        if index == 3:
            os._exit(9)  # As the system does to a process that uses too much memory.
        return encoded(picture(4, 4, index))


def test_a_worker_that_dies_ends_the_run_with_its_reason():
    sides = {"real": Images(Fatal().records(), Transform(), (4, 4, 3))}
    with pytest.raises(DataError, match=r"reading the data stopped: .*exit code 9"):
        read(NUM, sides, workers=1)


class Broken(Fatal):
    """A container of which two cannot be read."""

    def read(self, index):
        if index in (3, 4):
            raise ValueError("torn in two")
        return np.full((1, 1), index, np.uint8)


def broken():
    return Images(Broken().records(), Transform(channels=1), (1, 1, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_the_run_by_name(workers):
    with pytest.raises(DataError, match=r"image [34]: torn in two.*data.on_error=skip"):
        read(5, {"real": broken()}, workers=workers)


def test_skipped_images_are_replaced_counted_and_reported_once_and_move_no_others(caplog):
    problems = Problems("skip")
    batches = training_batches({"real": broken()}, Reading(problems), seed=3, batch_size=4)
    taken = np.stack([next(batches)["real"].ravel() for _ in range(10)])
    batches.close()
    whole = read(10)["real"]
    np.testing.assert_array_equal(taken, np.where(np.isin(whole, (3, 4)), 5, whole))
    assert len(problems) == 2
    assert len(caplog.records) == 1
    problems.summarise()
    assert "skipped 2 file(s)" in caplog.text


def test_a_pass_over_all_images_skips_the_unreadable():
    batches = list(all_batches(broken(), Reading(Problems("skip")), 8))
    assert np.concatenate([n for _, n in batches]).tolist() == [0, 1, 2, *range(5, NUM)]


class Hopeless(Fatal):
    """A container of which none can be read."""

    def read(self, index):
        raise ValueError("torn in two")


def test_skipping_all_images_is_an_error():
    sides = {"real": Images(Hopeless().records(), Transform(), (1, 1, 3))}
    batches = training_batches(sides, Reading(Problems("skip")), seed=0, batch_size=2)
    with pytest.raises(DataError, match=rf"all {NUM} images from image \d+ on are unreadable"):
        next(batches)
