"""Bad files are errors that name the file, or are skipped and counted; nothing hangs."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, numbered, picture, write_folder

from experiments.data import DataOptions, load, to_unit
from experiments.errors import DataError

FINE = 12


def open_folder(where, on_error="stop"):
    return load(DataOptions("folder", str(where), on_error=on_error))


def number_of_images(source):
    return len(source.train()) + len(source.held_out(1_000, 0))


def cut(path: Path) -> None:
    path.write_bytes(encoded(picture(32, 32))[:200])


def cut_jpeg(path: Path) -> None:
    path.with_suffix(".jpg").write_bytes(encoded(picture(64, 64), "JPEG")[:700])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text_in_disguise(path: Path) -> None:
    path.write_text("not an image")


def other_size(path: Path) -> None:
    path.write_bytes(encoded(picture(9, 8)))


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def endless(path: Path) -> None:
    path.with_suffix("").symlink_to(path.parent, target_is_directory=True)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2**28 + 1)  # A sparse file, which needs no disk space.


FAULTS = {
    cut: "damaged|cannot be opened",
    cut_jpeg: "damaged",
    empty: "the file is empty",
    text_in_disguise: "not a PNG, JPEG or WEBP image",
    other_size: "9 x 8 pixels, but others have 8 x 8; set data.image_size",
    dangling: "cannot be read",
    endless: "a link to a folder that contains it",
    pipe: "not a regular file",
    huge: "too large for an image",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_named_or_skipped_counted_and_reported_once(fault, tmp_path, caplog):
    write_folder(tmp_path, numbered(FINE))
    # Last in order, so that it does not determine the shape; four, so that one is trained on.
    for i in range(1 if fault in (endless, huge) else 4):
        fault(tmp_path / f"z{i}.png")
    with pytest.raises(DataError, match=rf"z\d.*({FAULTS[fault]}).*data.on_error=skip"):
        number_of_images(open_folder(tmp_path))
    assert number_of_images(open_folder(tmp_path, "skip")) == FINE
    assert len([r for r in caplog.records if "further such files" in r.message]) == 1
    assert "in total" in caplog.text


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, numbered(FINE))
    whole = Path.read_bytes

    def read_bytes(self):
        if self.name == "003.png":
            raise PermissionError(13, "Permission denied")
        return whole(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(DataError, match=r"003.png: cannot be read: Permission denied"):
        number_of_images(open_folder(tmp_path))
    assert number_of_images(open_folder(tmp_path, "skip")) == FINE - 1


def test_files_that_operating_systems_create_are_ignored_silently(tmp_path, caplog):
    write_folder(tmp_path, numbered(FINE))
    for name in (".DS_Store", "Thumbs.db", "._000.png"):
        (tmp_path / name).write_bytes(b"x")
    assert number_of_images(open_folder(tmp_path)) == FINE
    assert not caplog.records


def test_links_to_other_folders_are_followed(tmp_path):
    write_folder(tmp_path / "elsewhere", numbered(FINE))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert number_of_images(open_folder(tmp_path / "images")) == FINE


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_folders_without_enough_images_are_named(on_error, tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: no images found"):
        open_folder(tmp_path, on_error)
    write_folder(tmp_path, ["only.png"])
    with pytest.raises(DataError, match=r"only.png: expected at least 2 images"):
        open_folder(tmp_path, on_error)


def test_a_folder_with_only_bad_images_is_reported_as_such(tmp_path):
    for i in range(5):
        empty(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="unreadable"):
        open_folder(tmp_path, "skip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/x.png", "leads out of the archive"),
        ("a/../../x.png", "leads out of the archive"),
        ("..\\x.png", "leads out of the archive"),
        ("C:\\x.png", "leads out of the archive"),
        ("000.png", "occurs twice"),
    ],
)
def test_a_forbidden_entry_of_a_zip_is_named(name, message, tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, fine in enumerate(numbered(FINE)):
            archive.writestr(fine, encoded(picture(8, 8, i)))
        archive.writestr(name, encoded(picture(8, 8, 99)))
    with pytest.raises(DataError, match=f"images.zip:.*{message}"):
        open_folder(path)
    assert number_of_images(open_folder(path, "skip")) == FINE


def test_a_zip_with_separators_of_windows_has_its_classes_and_its_split(tmp_path, caplog):
    folders = {"train\\cat": 4, "train\\dog": 6, "test\\dog": 3}
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for folder, num in folders.items():
            archive.writestr(f"{folder}\\", b"")
            for i in range(num):
                archive.writestr(f"{folder}\\{i}.png", encoded(picture(8, 8, i)))
    source = open_folder(tmp_path / "images.zip")
    assert source.classes == ("cat", "dog")
    assert source.labels.train.tolist() == [0] * 4 + [1] * 6
    assert source.labels.held_out.tolist() == [1] * 3
    assert not caplog.records


def test_an_entry_of_a_zip_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", encoded(picture(8, 8)))
        archive.writestr("bomb.png", bytes(100_000))
    monkeypatch.setattr("experiments.data.files.MAX_FILE_BYTES", 50_000)
    with pytest.raises(DataError, match=r"bomb.png': 100,000 bytes when unpacked"):
        open_folder(path)


def test_damage_to_a_zip_is_noticed_by_its_checksum(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, fine in enumerate(numbered(FINE)):
            archive.writestr(fine, encoded(picture(8, 8, i)))
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"000.png: cannot be read: Bad CRC"):
        open_folder(path)


def test_a_file_that_is_not_a_zip_is_named(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"images.zip: not a readable zip"):
        open_folder(tmp_path / "images.zip")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY"])
def test_a_damaged_npz_is_named(content, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a.npz: not a readable .npz"):
        load(DataOptions("npz", str(tmp_path / "a.npz")))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_files_without_image_names_are_ignored_with_one_line(form, tmp_path, caplog):
    where = write_folder(tmp_path / "images", numbered(FINE))
    for name in ("readme.txt", "labels.csv", "checksums"):
        (where / name).write_text("not an image")
    if form == "zip":
        where = tmp_path / "images.zip"
        with zipfile.ZipFile(where, "w") as archive:
            for file in sorted((tmp_path / "images").iterdir()):
                archive.write(file, file.name)
    assert number_of_images(open_folder(where)) == FINE
    (line,) = (record.message for record in caplog.records)
    assert "ignored 3 file(s)" in line
    assert "checksums" in line


def test_a_folder_with_only_other_files_has_no_images(tmp_path):
    (tmp_path / "readme.txt").write_text("not an image")
    with pytest.raises(DataError, match=r"no images found \(1 file\(s\) skipped\)"):
        open_folder(tmp_path)


@pytest.mark.parametrize("name", ["$x_{$", os.fsdecode(b"\xff"), "x" * 250, "a\nb", "<b>"])
def test_class_folders_of_any_name_are_read_and_their_names_can_be_printed(name, tmp_path):
    write_folder(tmp_path, [*numbered(FINE, f"{name}/"), *numbered(FINE, "other/")])
    source = open_folder(tmp_path)
    assert number_of_images(source) == 2 * FINE
    assert len(source.classes) == 2
    assert all(shown.isprintable() for shown in source.classes)
    json.dumps(source.classes, ensure_ascii=False).encode()


def test_a_bad_file_in_a_folder_whose_name_is_not_utf8_is_named(tmp_path):
    where = tmp_path / os.fsdecode(b"\xff")
    write_folder(where, numbered(FINE))
    empty(where / "z.png")
    with pytest.raises(DataError, match="the file is empty") as caught:
        number_of_images(open_folder(tmp_path))
    assert "\\xff/z.png" in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", os.fsdecode(b"\xff")])
@pytest.mark.parametrize("kind", ["folder", "npz", "lsun", "pair", "tfds:x"])
def test_a_path_that_cannot_exist_ends_in_one_line(kind, name, tmp_path):
    with pytest.raises(DataError) as caught:
        load(DataOptions(kind, str(tmp_path / name)))
    assert str(caught.value).isprintable()


def test_a_damaged_lmdb_is_named(tmp_path):
    (tmp_path / "data.mdb").write_bytes(bytes(8_192))
    with pytest.raises(DataError, match="not a readable LMDB"):
        load(DataOptions("lsun", str(tmp_path)))


def test_skipped_images_lose_their_labels_too(tmp_path):
    write_folder(tmp_path, [*numbered(12, "a/"), *numbered(12, "b/")])
    (tmp_path / "a" / "000.png").write_bytes(b"")
    source = open_folder(tmp_path, "skip")
    assert len(source.labels.train) == len(source.arrays["real"])
    assert np.bincount(source.labels.train).sum() == len(source.train())


def test_a_skipped_held_out_image_takes_its_label_with_it(tmp_path):
    names = [f"{part}/{i % 2}/{i}.png" for part in ("train", "test") for i in range(6)]
    write_folder(tmp_path, names)
    cut(tmp_path / "test" / "0" / "2.png")
    source = open_folder(tmp_path, on_error="skip")
    images = source.held_out(1_000, 0)
    assert len(images) == len(source.labels.held_out) == 5
    expected = {to_unit(picture(8, 8, 6 + i)).tobytes(): i % 2 for i in range(6)}
    found = [expected[image.tobytes()] for image in images]
    np.testing.assert_array_equal(source.labels.held_out, found)


def test_the_order_of_a_run_depends_on_which_images_in_memory_are_readable(tmp_path):
    write_folder(tmp_path, numbered(FINE, "train/") + numbered(2, "test/"))
    whole = open_folder(tmp_path).identity
    assert open_folder(tmp_path, "skip").identity == whole
    cut(tmp_path / "train" / "003.png")
    assert open_folder(tmp_path, "skip").identity != whole


def test_unreadable_held_out_images_are_reported(tmp_path):
    write_folder(tmp_path, [*numbered(4, "train/"), *numbered(1, "test/")])
    cut(tmp_path / "test" / "000.png")
    source = open_folder(tmp_path, on_error="skip")
    with pytest.raises(DataError, match="none of the held-out images can be read"):
        source.held_out(10, 0)


def test_arrays_without_images_are_reported(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        images=np.zeros((0, 8, 8), np.uint8),
        x_test=np.zeros((3, 8, 8), np.uint8),
    )
    with pytest.raises(DataError, match="the data contain no images"):
        load(DataOptions("npz", str(tmp_path / "x.npz")))
