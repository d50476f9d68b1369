"""Files are complete or absent, unfinished files have unique names, and links are not followed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.files import (
    append_line,
    locked,
    read_json,
    read_npz,
    replacing,
    sha256_of_arrays,
    without_home,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[2]


def test_a_crash_while_a_file_is_written_leaves_the_one_before_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")

    def write(content):
        with replacing(path) as file:
            file.write(content)
            file.write("no bytes")

    with pytest.raises(TypeError):
        write(b"half")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_programs_that_write_one_file_at_a_time_do_not_share_the_unfinished_one(tmp_path):
    path = tmp_path / "x"
    with replacing(path) as one, replacing(path) as other:
        one.write(b"one")
        other.write(b"other")
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"one"  # The file that was finished last.
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_place_of_a_file_overwrites_nothing_elsewhere(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("lock", "run.json", "commands.jsonl"):
        (tmp_path / name).symlink_to(precious)
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "lock", "x", "y"):
        pass
    with pytest.raises(OSError, match="symbolic"):
        append_line(tmp_path / "commands.jsonl", {})
    write_json(tmp_path / "run.json", {})
    assert not (tmp_path / "run.json").is_symlink()
    assert precious.read_text() == "mine"


def test_a_lock_names_its_holder_and_is_free_afterwards(tmp_path):
    with (
        locked(tmp_path / "lock", "--workdir=x", "wait"),
        pytest.raises(UserError, match=rf"x is in use by process {os.getpid()} on .* or wait"),
        locked(tmp_path / "lock", "--workdir=x", "wait"),
    ):
        pass
    with locked(tmp_path / "lock", "--workdir=x", "wait"):
        pass


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"text"', b"null", b"3", b'{"step": "4"}', b"{}", b"\xff", b"[" * 10**5],
)
def test_a_file_that_was_edited_by_hand_is_named(content, tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"record\.json is damaged") as caught:
        read_json(path, step=int)
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_exist_is_named(tmp_path):
    for read in (read_json, read_npz):
        with pytest.raises(UserError, match="nothing does not exist"):
            read(tmp_path / "nothing")


def test_digests_depend_on_names_types_shapes_and_bytes():
    a = {"x": np.arange(6.0)}
    assert sha256_of_arrays(a) == sha256_of_arrays({"x": np.arange(6.0)})
    others = [
        {"y": np.arange(6.0)},
        {"x": np.arange(6.0).reshape(2, 3)},
        {"x": np.arange(6)},
        {"x": np.arange(6.0) + 1e-16 * np.arange(6)},
    ]
    digests = {sha256_of_arrays(other) for other in others[:3]}
    assert len(digests | {sha256_of_arrays(a)}) == 4
    assert sha256_of_arrays({"x": np.float32(0.0)}) != sha256_of_arrays({"x": np.float32(-0.0)})


def test_text_is_utf8_whatever_the_locale(tmp_path):
    program = (
        "import sys; from pathlib import Path; from experiments.files import write_text;"
        "write_text(Path(sys.argv[1]), chr(954))"
    )
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program, str(tmp_path / "x")]
    subprocess.run(command, cwd=ROOT, env=os.environ | ascii_locale, check=True)
    assert (tmp_path / "x").read_bytes() == "κ".encode()
    write_text(tmp_path / "y", "κ")
    assert (tmp_path / "y").read_bytes() == "κ".encode()


def test_home_and_working_folder_are_shortened_and_their_neighbours_are_not(tmp_path, monkeypatch):
    home, work = tmp_path / "ada", tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    command = f"x --workdir={work}/run '--config.data.dir={home}/a b' {home}2/c /data{home}/d"
    shortened = f"x --workdir=run '--config.data.dir=~/a b' {home}2/c /data{home}/d"
    assert without_home(command) == shortened
