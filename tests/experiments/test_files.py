"""Files are complete or absent, unfinished files have unique names, and links are not followed."""

import contextlib
import os
import shutil

import numpy as np
import pytest

from experiments import files
from experiments.errors import UserError


def test_a_crash_while_a_file_is_written_leaves_the_one_before_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with contextlib.suppress(KeyError), files.replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_removed_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    with (
        pytest.raises(UserError, match=r"run does not exist: was it removed or renamed\?"),
        files.replacing(tmp_path / "run" / "x"),
    ):
        shutil.rmtree(tmp_path / "run")


def test_a_link_in_place_of_a_file_overwrites_nothing_elsewhere(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("lock", "run.json", "commands.jsonl"):
        (tmp_path / name).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"), files.locked(tmp_path / "lock", "x"):
        pass
    with pytest.raises(OSError, match="symbolic"):
        files.append_line(tmp_path / "commands.jsonl", {})
    files.write_json(tmp_path / "run.json", {})
    assert not (tmp_path / "run.json").is_symlink()
    assert precious.read_text() == "mine"


def test_a_lock_names_its_holder_and_is_free_afterwards(tmp_path):
    with (
        files.locked(tmp_path / "lock", "--workdir=x"),
        pytest.raises(UserError, match=rf"x is in use by process {os.getpid()} on .* or stop it"),
        files.locked(tmp_path / "lock", "--workdir=x"),
    ):
        pass
    with files.locked(tmp_path / "lock", "--workdir=x"):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 10**5])
def test_a_file_that_was_edited_by_hand_is_named(content, tmp_path):
    path = tmp_path / "record.json"
    for read in (files.read_json, files.read_npz):
        with pytest.raises(UserError, match=r"record\.json does not exist"):
            read(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"record\.json is damaged"):
        files.read_json(path)


def test_whatever_is_changed_in_a_sealed_file_is_noticed(tmp_path):
    path, content = tmp_path / "record.json", {"value": 2.538, "none": None}
    files.write_sealed(path, content)
    assert files.read_sealed(path) == content
    whole = path.read_bytes()
    for changed in (whole.replace(b"2", b"1", 1), whole.replace(b"sha256", b"sha255"), b"{}"):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"record\.json is damaged: it is not what was writ"):
            files.read_sealed(path)


def test_an_npz_is_read_or_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3), b=np.arange(4.0))
    assert {name: len(array) for name, array in files.read_npz(path).items()} == {"a": 3, "b": 4}
    whole = path.read_bytes()
    middle = whole.index(b"NUMPY") + 90
    for broken in (b"", b"PK", whole[:-30], whole[:middle] + b"???" + whole[middle + 3 :]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"x\.npz: not a readable \.npz"):
            files.read_npz(path)
    np.savez(path, a=np.array([{}]))
    for name in ("a", "c"):
        with pytest.raises(UserError, match=r"x\.npz: not a readable \.npz"):
            files.read_npz(path, name)


def test_digests_depend_on_names_types_shapes_and_bytes():
    different = [
        {"x": np.arange(6.0)},
        {"y": np.arange(6.0)},
        {"x": np.arange(6.0).reshape(2, 3)},
        {"x": np.arange(6)},
        {"x": np.float32(0.0)},
        {"x": np.float32(-0.0)},
    ]
    assert len({files.sha256_of_arrays(tree) for tree in different}) == len(different)
    assert files.sha256_of_arrays(different[0]) == files.sha256_of_arrays({"x": np.arange(6.0)})
