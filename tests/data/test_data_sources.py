"""All formats give the same kind of source; errors name missing data and how to get them."""

import copy
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
from image_files import encoded, numbered, picture, write_folder

from experiments.data import DataOptions, load, load_if_given
from experiments.data.lmdb import open_database
from experiments.errors import DataError


def stored(source):
    """The training images as uint8, in a fixed order."""
    return np.asarray(source.arrays["real"])


def all_images(source, num=1_000):
    pixels = np.concatenate([source.train(), source.held_out(num, 0)])
    levels = np.round((pixels + 1.0) * 127.5).astype(np.uint8)
    return {image.tobytes() for image in levels}


def expected(num, first=0, size=8):
    return {picture(size, size, i).tobytes() for i in range(first, first + num)}


def make_zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_folders_and_zips_hold_out_a_tenth_and_use_every_image(form, tmp_path):
    where = write_folder(tmp_path / "images", numbered(20))
    if form == "zip":
        where = make_zip(where, tmp_path / "images.zip")
    source = load(DataOptions("folder", str(where)))
    assert source.event_shape == (8, 8, 3)
    assert len(stored(source)) == 18
    assert len(source.held_out(100, 0)) == 2
    assert all_images(source) == expected(20)
    assert source.labels is None


def test_sub_folders_are_classes_also_below_one_common_folder(tmp_path):
    names = [f"all/{c}/{i}.png" for c in ("cat", "dog") for i in range(10)]
    source = load(DataOptions("folder", str(write_folder(tmp_path, names))))
    labels = source.labels
    assert set(labels.train) == {0, 1}
    assert (len(labels.train), len(labels.held_out)) == (18, 2)
    assert labels.classes == source.classes == ("cat", "dog")


def test_a_split_of_the_folder_is_held_out_where_there_is_one(tmp_path):
    write_folder(tmp_path, [*numbered(6, "train/a/"), *numbered(3, "test/a/")])
    source = load(DataOptions("folder", str(tmp_path)))
    assert len(stored(source)) == 6
    assert len(source.held_out(100, 0)) == 3


def test_a_class_with_one_image_keeps_it_for_training(tmp_path):
    write_folder(tmp_path, ["rare/0.png", *numbered(10, "many/")])
    source = load(DataOptions("folder", str(tmp_path)))
    assert sorted(source.labels.train) == [0] * 9 + [1]


def test_npz_arrays_have_labels_and_a_held_out_part(tmp_path):
    path = tmp_path / "a.npz"
    pixels = np.stack([picture(8, 8, i) for i in range(9)])
    np.savez(
        path, x_train=pixels[:6], y_train=np.arange(6) % 2, x_test=pixels[6:], y_test=[0, 1, 1]
    )
    source = load(DataOptions("npz", str(path)))
    np.testing.assert_array_equal(stored(source), pixels[:6])
    np.testing.assert_array_equal(source.labels.train, np.arange(6) % 2)
    assert all_images(source) == expected(9)


def test_lsun_databases_are_found_by_split_and_read(tmp_path):
    for split, numbers in (("train", range(6)), ("val", range(6, 8))):
        path = str(tmp_path / f"church_outdoor_{split}_lmdb")
        with lmdb.open(path) as database, database.begin(write=True) as transaction:
            for i in numbers:
                content = encoded(picture(8, 8, i), "WEBP", lossless=True)
                transaction.put(b"key%d" % i, content)
    source = load(DataOptions("lsun", str(tmp_path), held_out_split="val"))
    assert len(stored(source)) == 6
    assert all_images(source) == expected(8)
    for split in ("train", "val"):  # A database may be named itself, whatever its split is called.
        root = str(tmp_path / "church_outdoor_val_lmdb")
        assert all_images(load(DataOptions("lsun", root, split=split))) == expected(2, first=6)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A root with the data set `glyphs`, prepared as a user would."""
    from glyphs_builder import Glyphs

    root = tmp_path_factory.mktemp("tfds")
    Glyphs(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_a_custom_tfds_set_is_read_without_its_builder_and_without_tensorflow(prepared):
    source = load(DataOptions("tfds:glyphs", str(prepared)))
    assert len(stored(source)) == 12
    assert all_images(source) == expected(16)
    np.testing.assert_array_equal(source.labels.train.sum(), 6)
    assert source.classes == ("a", "b")


def test_a_tfds_split_without_labels_has_no_class(prepared):
    source = load(DataOptions("tfds:glyphs", str(prepared), held_out_split="unlabelled"))
    assert source.labels is None
    assert len(source.held_out(10, 0)) == 2


def test_a_plan_finds_a_tfds_set_where_training_would(prepared, monkeypatch):
    options = DataOptions("tfds:glyphs", image_size=4)
    monkeypatch.delenv("FDRL_DATA_DIR", raising=False)
    for root in (prepared, prepared / "nowhere"):
        monkeypatch.setenv("TFDS_DATA_DIR", str(root))
        source, is_given = load_if_given(options)
        assert source.event_shape == (4, 4, 3)
        assert is_given == (root == prepared)


def test_the_error_for_an_unprepared_tfds_set_says_where_and_how_to_prepare_it(prepared):
    with pytest.raises(DataError, match=r"'glyph' is not prepared in .*did you mean 'glyphs'"):
        load(DataOptions("tfds:glyph", str(prepared)))
    with pytest.raises(DataError, match=r"tfds build cifar10 .*--file_format=array_record"):
        load(DataOptions("tfds:cifar10", str(prepared / "nowhere")))


def test_the_error_for_a_tfds_set_without_random_access_says_to_prepare_it_again(
    prepared, tmp_path
):
    shutil.copytree(prepared, tmp_path / "copy")
    info = next((tmp_path / "copy").rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"tfrecord, a format without random access"):
        load(DataOptions("tfds:glyphs", str(tmp_path / "copy")))


def test_the_domains_of_a_pair_are_the_folders_a_and_b(tmp_path):
    names = [*numbered(4, "trainA/"), *numbered(6, "trainB/"), *numbered(2, "testA/")]
    write_folder(tmp_path, [*names, *numbered(2, "testB/")])
    source = load(DataOptions("pair", str(tmp_path)))
    assert len(source.arrays["source"]) == 4
    assert len(source.arrays["real"]) == 6
    back = load(DataOptions("pair", str(tmp_path), source_class="B", target_class="A"))
    assert len(back.arrays["source"]) == 6


def test_two_classes_of_a_labelled_set_make_a_pair_and_the_held_out_side_starts_first(tmp_path):
    write_folder(tmp_path, [*numbered(20, "cat/"), *numbered(30, "dog/"), *numbered(9, "fox/")])
    options = DataOptions("folder", str(tmp_path), source_class="cat", target_class="dog")
    source = load(options)
    assert (len(source.arrays["source"]), len(source.arrays["real"])) == (18, 27)
    starts = np.round((source.starts(np.arange(22)) + 1.0) * 127.5).astype(np.uint8)
    trained_on = {image.tobytes() for image in source.arrays["source"]}
    assert [image.tobytes() in trained_on for image in starts[:20]] == [False] * 2 + [True] * 18
    np.testing.assert_array_equal(starts[20:], starts[:2])


@pytest.mark.parametrize(("folder", "num_sources"), [("test/cat/", 20), ("test/", 18)])
def test_of_a_class_that_the_held_out_split_lacks_a_tenth_is_held_out(
    folder, num_sources, tmp_path
):
    names = [*numbered(20, "train/cat/"), *numbered(30, "train/dog/"), *numbered(3, folder)]
    options = DataOptions("folder", str(write_folder(tmp_path, names)))
    source = load(options._replace(source_class="cat", target_class="dog"))
    assert (len(source.arrays["source"]), len(source.arrays["real"])) == (num_sources, 27)
    assert len(source.held_out(10, 0)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dir": "missing"}, r"missing does not exist"),
        ({"dir": ""}, r"--data_dir, --config.data.dir or .*FDRL_DATA_DIR"),
        ({"source_class": "cat"}, r"go together"),
        ({"keep_aspect": False}, r"data.resize or data.image_size: set one of them"),
        ({"source_class": "cat", "target_class": "dgo"}, r"did you mean 'dog'.* cat, dog"),
        ({"name": "pair"}, r"needs a folder 'trainB'"),
        ({"name": "npz"}, r"needs the path of an .npz file"),
        ({"name": "lsun"}, r"neither an LMDB"),
    ],
)
def test_what_is_missing_is_named(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data", [*numbered(3, "cat/"), *numbered(3, "dog/")])
    with pytest.raises(DataError, match=message):
        load(DataOptions(**{"name": "folder", "dir": "data", **changes}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, "must be uint8.*got float32"),
        ({"images": np.zeros((4, 8, 8, 2), np.uint8)}, r"got uint8 \[4, 8, 8, 2\]"),
        (
            {"pictures": np.zeros((4, 8, 8, 3), np.uint8)},
            r"no array named .*available: \['pictures'\]",
        ),
        ({"images": np.array([{}], object)}, "not a readable .npz of plain arrays"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3)}, "4 images but labels"),
    ],
)
def test_arrays_of_another_kind_are_refused_by_name(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(DataOptions("npz", str(tmp_path / "a.npz")))


def test_held_out_labels_have_the_numbers_of_training_where_a_split_lacks_a_class(tmp_path):
    pixels = np.arange(6 * 64, dtype=np.uint16).astype(np.uint8).reshape(6, 8, 8)
    arrays = {"x_train": pixels, "y_train": [0, 1, 2, 0, 1, 2], "x_test": pixels[:2]}
    np.savez(tmp_path / "x.npz", **arrays, y_test=[2, 2])
    source = load(DataOptions("npz", str(tmp_path / "x.npz")))
    assert source.classes == ("0", "1", "2")
    assert source.labels.held_out.tolist() == [2, 2]

    np.savez(tmp_path / "x.npz", **arrays, y_test=[2, 7])
    assert load(DataOptions("npz", str(tmp_path / "x.npz"))).labels is None


def write_lmdb(path, num):
    with lmdb.open(str(path)) as database, database.begin(write=True) as transaction:
        for i in range(num):
            transaction.put(b"key%d" % i, encoded(picture(8, 8, i)))


def test_many_threads_may_be_the_first_to_read_a_database(tmp_path):
    write_lmdb(tmp_path / "x_train_lmdb", 4)
    stored = open_database(str(tmp_path / "x_train_lmdb"))
    expected_content, kept = stored.read(0), copy.deepcopy(stored)
    del stored
    for _ in range(50):
        # Like a worker process, where the database is not open yet.
        records, start = copy.deepcopy(kept), threading.Barrier(4)

        def read(records=records, start=start):
            start.wait()
            return records.read(0)

        with ThreadPoolExecutor(4) as pool:
            reads = [pool.submit(read) for _ in range(4)]
            assert all(each.result() == expected_content for each in reads)


def test_a_database_that_fails_later_is_a_bad_file(tmp_path):
    class Failing:
        def begin(self):
            raise lmdb.ReadersFullError("no slot is free")

    write_lmdb(tmp_path / "x_train_lmdb", 4)
    stored = open_database(str(tmp_path / "x_train_lmdb"))
    stored.container._opened = Failing()
    with pytest.raises(ValueError, match="cannot be read: no slot is free"):
        stored.read(0)


def test_a_database_may_be_opened_again_while_it_is_read(tmp_path):
    write_lmdb(tmp_path / "x_train_lmdb", 4)
    one, two = (open_database(str(tmp_path / "x_train_lmdb")) for _ in range(2))
    assert one.read(3) == two.read(3)


def write_pictures(where, grey, colour):
    """Writes images of two kinds under numbers."""
    where.mkdir(parents=True)
    for i in (*grey, *colour):
        pixels = picture(6, 6, i)
        (where / f"{i:03d}.png").write_bytes(encoded(pixels[..., 0] if i in grey else pixels))


def test_with_size_and_channels_0_a_zip_of_grey_images_is_read_unchanged(tmp_path):
    write_pictures(tmp_path / "images", range(20), ())
    path = make_zip(tmp_path / "images", tmp_path / "images.zip")
    source = load(DataOptions("folder", str(path), channels=0))
    assert source.event_shape == (6, 6, 1)
    found = {image.tobytes() for image in stored(source)}
    assert found < {picture(6, 6, i)[..., 0].tobytes() for i in range(20)}


def test_with_channels_0_grey_images_among_coloured_ones_get_equal_channels(tmp_path):
    write_pictures(tmp_path / "train", range(9), range(9, 10))
    write_pictures(tmp_path / "test", range(2), ())
    source = load(DataOptions("folder", str(tmp_path), channels=0))
    assert source.event_shape == (6, 6, 3)
    assert len(stored(source)) == 10
    assert np.ptp(stored(source)[:9], axis=-1).max() == 0
    assert np.ptp(source.held_out(2, 0), axis=-1).max() == 0


def test_with_channels_0_a_late_colour_image_is_not_made_grey(tmp_path):
    # Of 150 images, 100 are checked first: numbers 0, 1, 3, 4, 6 and so on.
    write_pictures(tmp_path / "train", [i for i in range(150) if i != 2], [2])
    write_pictures(tmp_path / "test", range(2), ())
    with pytest.raises(DataError, match=r"002.png: in colour, but others are grey; set data.cha"):
        load(DataOptions("folder", str(tmp_path), channels=0))


def test_a_long_pass_shows_a_bar_on_the_standard_error_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.data.stream._BAR_AFTER_SECONDS", 0.0)
    load(DataOptions("folder", str(write_folder(tmp_path, numbered(20)))))
    out, err = capsys.readouterr()
    assert "reading training images" in err
    assert not out
