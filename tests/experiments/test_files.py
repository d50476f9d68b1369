"""Files are complete or absent, unfinished files have unique names, and links are not followed."""

import contextlib
import errno
import fcntl
import os
import time

import numpy as np
import pytest

from experiments import files
from experiments.errors import UserError
from experiments.files import (
    append_line,
    locked,
    read_json,
    read_npz,
    remove_remains,
    replacing,
    sha256_of_arrays,
    unfinished_folder,
    write_json,
    write_text,
)


def test_a_crash_while_a_file_is_written_leaves_the_one_before_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with contextlib.suppress(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_programs_that_write_one_file_at_a_time_do_not_share_the_unfinished_one(tmp_path):
    path = tmp_path / "x"
    with replacing(path) as one, replacing(path) as other:
        one.write(b"one")
        other.write(b"other")
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"one"  # The file that was finished last.


def test_what_killed_programs_left_is_removed_a_day_later(tmp_path):
    (tmp_path / "snapshots").mkdir()
    with replacing(tmp_path / "snapshots" / "1.npz"), unfinished_folder(tmp_path) as folder:
        (file,) = (tmp_path / "snapshots").iterdir()
    (folder / "record").mkdir(parents=True)
    file.touch()
    remove_remains(tmp_path)
    assert folder.exists()
    assert file.exists()
    for path in (folder, file, tmp_path / "snapshots"):
        os.utime(path, (0, 0))
    remove_remains(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["snapshots", "1.npz"]


def test_text_with_a_file_name_that_is_not_utf_8_can_be_written(tmp_path):
    write_text(tmp_path / "x", f"a{os.fsdecode(bytes([0xFF]))}±")
    assert (tmp_path / "x").read_text("utf-8") == "a\\udcff±"


def test_a_link_in_place_of_a_file_overwrites_nothing_elsewhere(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("lock", "run.json", "commands.jsonl"):
        (tmp_path / name).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path / "lock", "x", "y"):
        pass
    with pytest.raises(OSError, match="symbolic"):
        append_line(tmp_path / "commands.jsonl", {})
    write_json(tmp_path / "run.json", {})
    assert not (tmp_path / "run.json").is_symlink()
    assert precious.read_text() == "mine"


@pytest.fixture(params=["flock", "lease"])
def kind(request, monkeypatch):
    """Locks of the file system, and the files that replace them where there are none."""

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param == "lease":
        monkeypatch.setattr(fcntl, "flock", unsupported)
    return request.param


@pytest.mark.usefixtures("kind")
def test_a_lock_names_its_holder_and_is_free_afterwards(tmp_path):
    with (
        locked(tmp_path / "lock", "--workdir=x", "wait"),
        pytest.raises(UserError, match=rf"x is in use by process {os.getpid()} on .* or wait"),
        locked(tmp_path / "lock", "--workdir=x", "wait"),
    ):
        pass
    with locked(tmp_path / "lock", "--workdir=x", "wait"):
        pass


@pytest.mark.parametrize("kind", ["lease"], indirect=True)
@pytest.mark.parametrize(("age", "is_free"), [(30, False), (90, True)])
def test_a_lease_of_a_killed_program_ends_when_it_is_no_longer_refreshed(
    kind, age, is_free, tmp_path, monkeypatch
):
    lease = tmp_path / "lock.lease"
    lease.write_text("process 1 on elsewhere")
    os.utime(lease, (time.time() - age,) * 2)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    if is_free:
        with locked(tmp_path / "lock", "x", "y"):
            assert f"process {os.getpid()}" in lease.read_text()
        assert not lease.exists()
        return
    with (
        pytest.raises(UserError, match=r"in use by process 1 on elsewhere"),
        locked(tmp_path / "lock", "x", "y"),
    ):
        pass
    assert lease.read_text() == "process 1 on elsewhere"


@pytest.mark.parametrize("kind", ["lease"], indirect=True)
def test_a_lease_is_refreshed_while_it_is_held(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_REFRESH_SECONDS", 0.01)
    lease = tmp_path / "lock.lease"
    with locked(tmp_path / "lock", "x", "y"):
        os.utime(lease, (0, 0))
        limit = time.monotonic() + 60.0
        while lease.stat().st_mtime == 0:
            assert time.monotonic() < limit
            time.sleep(0.01)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"step": "4"}', b"{}", b"\xff", b"[" * 10**5])
def test_a_file_that_was_edited_by_hand_is_named(content, tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"record\.json is damaged"):
        read_json(path, step=int)


def test_an_npz_is_read_or_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3), b=np.arange(4.0))
    assert {name: len(array) for name, array in read_npz(path).items()} == {"a": 3, "b": 4}
    whole = path.read_bytes()
    middle = whole.index(b"NUMPY") + 90
    for broken in (b"", b"PK", whole[:-30], whole[:middle] + b"???" + whole[middle + 3 :]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"x\.npz: not a readable \.npz"):
            read_npz(path)
    np.savez(path, a=np.array([{}]))
    for name in ("a", "c"):
        with pytest.raises(UserError, match=r"x\.npz: not a readable \.npz"):
            read_npz(path, name)


def test_an_npz_that_unpacks_to_much_more_than_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_UNCHECKED", 2**20)
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(2**20, np.uint8))
    with pytest.raises(
        UserError, match=r"x\.npz: .*'a.npy': .* unpack to 1,048,704, more than 100"
    ):
        read_npz(tmp_path / "x.npz")


def test_a_file_that_does_not_exist_is_named(tmp_path):
    for read in (read_json, read_npz):
        with pytest.raises(UserError, match="nothing does not exist"):
            read(tmp_path / "nothing")


def test_digests_depend_on_names_types_shapes_and_bytes():
    different = [
        {"x": np.arange(6.0)},
        {"y": np.arange(6.0)},
        {"x": np.arange(6.0).reshape(2, 3)},
        {"x": np.arange(6)},
        {"x": np.float32(0.0)},
        {"x": np.float32(-0.0)},
    ]
    assert len({sha256_of_arrays(tree) for tree in different}) == len(different)
    assert sha256_of_arrays(different[0]) == sha256_of_arrays({"x": np.arange(6.0)})
