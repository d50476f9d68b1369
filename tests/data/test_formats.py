"""All formats give the same kind of source; a bad file is an error that names it."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import all_images, encoded, numbered, open_folder, picture, pictures, write_folder

from experiments.data import load
from experiments.errors import DataError
from experiments.settings import Data

FINE = 12


def open_npz(folder, **arrays):
    if arrays:
        np.savez(folder / "a.npz", **arrays)
    return load(Data(name="npz", dir=str(folder / "a.npz")))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_every_image_is_used_and_files_that_are_none_are_reported_once(form, tmp_path, caplog):
    where = write_folder(tmp_path / "images", numbered(20))
    for name in (".DS_Store", "._000.png", "readme.txt", "labels.csv"):
        (where / name).write_text("not an image")
    if form == "zip":
        where = shutil.make_archive(str(where), "zip", where)
    source = open_folder(where)
    assert (source.event_shape, source.labels) == ((8, 8, 3), None)
    assert (len(source.train()), len(source.held_out(100, 0))) == (18, 2)
    assert all_images(source) == pictures(20)
    (line,) = (record.message for record in caplog.records)
    assert "skipped 2 file(s)" in line


def test_npz_arrays_have_labels_and_a_held_out_part(tmp_path):
    pixels = np.stack([picture(8, 8, i) for i in range(9)])
    arrays = {"images": pixels[:6], "labels": np.arange(6) % 2, "held_out_images": pixels[6:]}
    source = open_npz(tmp_path, **arrays, held_out_labels=[0, 1, 1])
    np.testing.assert_array_equal(source.arrays["real"], pixels[:6])
    np.testing.assert_array_equal(source.labels.train, np.arange(6) % 2)
    assert all_images(source) == pictures(9)
    source = open_npz(tmp_path, **arrays, held_out_labels=[1, 1, 1])  # Without a class.
    assert (source.classes, source.labels.held_out.tolist()) == (("0", "1"), [1, 1, 1])
    arrays["labels"] = 1 - arrays["labels"]
    assert open_npz(tmp_path, **arrays).identity != source.identity


def test_renamed_or_replaced_images_are_other_data_and_copied_ones_are_not(tmp_path):
    first = open_folder(write_folder(tmp_path, numbered(6)))
    os.utime(tmp_path / "000.png", (1, 1))
    assert open_folder(tmp_path).identity == first.identity
    content = (tmp_path / "001.png").read_bytes()
    (tmp_path / "001.png").write_bytes(content + b"0")
    assert open_folder(tmp_path).identity != first.identity
    (tmp_path / "001.png").write_bytes(content)
    (tmp_path / "000.png").rename(tmp_path / "007.png")
    assert open_folder(tmp_path).identity != first.identity


@pytest.mark.parametrize(  # test_decode.py has damaged images.
    ("make", "reason"),
    [
        (Path.touch, "the file is empty"),
        (lambda path: path.write_bytes(encoded(picture(9, 8))), r"\(8, 9, 3\), but"),
        (lambda path: path.symlink_to(path.parent / "nothing"), "No such file"),
    ],
    ids=["empty", "size", "dangling"],
)
def test_a_bad_file_is_named_with_the_reason(make, reason, tmp_path):
    write_folder(tmp_path, [*numbered(FINE, "train/"), *numbered(2, "test/")])
    make(tmp_path / "train" / "z.png")
    with pytest.raises(DataError, match=rf"train/z.*({reason})|{reason}.*train/z"):
        open_folder(tmp_path)


def test_a_zip_is_never_extracted_and_its_damage_is_noticed(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "images.zip"
    names = ("a/0.png", "/tmp/out.png", "b/2.png", "__MACOSX/x.png", "../x.png")
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, encoded(picture(8, 8, i)))
    assert all_images(open_folder(path)) == pictures(3)
    assert [*tmp_path.rglob("*.*")] == [path]
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    for damaged, reason in ((content, "0.png: .* Bad CRC"), (b"PK no", "not a readable zip")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"images.zip.*{reason}"):
            open_folder(path)


PIXELS = np.zeros((4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PIXELS.astype(np.float32)}, "must be uint8.*got float32"),
        ({"images": np.stack([PIXELS] * 2, -1)}, r"got uint8 \[4, 8, 8, 2\]"),
        ({"images": PIXELS[..., :1]}, "1 x 8 pixels; images need 2 x 2"),
        ({"images": PIXELS[:0]}, "has 0 image"),
        ({"pictures": PIXELS}, "no array named images; available: pictures"),
        ({"images": PIXELS, "labels": np.zeros(3)}, "4 images but labels"),
    ],
    ids=["floats", "channels", "thin", "empty", "name", "labels"],
)
def test_arrays_of_another_kind_are_refused_by_name(arrays, message, tmp_path):
    with pytest.raises(DataError, match=message):
        open_npz(tmp_path, **arrays)


@pytest.mark.parametrize("name", ["$x_{$", os.fsdecode(b"\xff"), "x" * 250, "a\nb", "<b>"])
def test_class_folders_of_any_name_are_read_and_their_names_can_be_printed(name, tmp_path):
    write_folder(tmp_path, [*numbered(FINE, f"{name}/"), *numbered(FINE, "other/")])
    source = open_folder(tmp_path)
    assert len(source.classes) == 2
    assert all(shown.isprintable() and shown.encode() for shown in source.classes)
    (tmp_path / name / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty") as caught:
        all_images(open_folder(tmp_path))
    str(caught.value).encode()


@pytest.mark.parametrize("name", ["x" * 300, os.fsdecode(b"\xff")])
@pytest.mark.parametrize("kind", ["folder", "npz", "pair", "tfds:glyphs"])
def test_a_path_that_cannot_exist_ends_in_one_line(kind, name, tmp_path):
    with pytest.raises(DataError) as caught:
        load(Data(name=kind, dir=f"{tmp_path}/{name}"))
    assert str(caught.value).isprintable()
