"""The reader of PyTorch files stays within the bytes of a file, however it is damaged."""

import contextlib
import pickle
import zipfile
from pathlib import Path

import pytest
import torch_file_bytes as torch_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_file_bytes import FLOAT, NORMAL, STORAGES, refusal, refusal_of

from experiments.torch_files import TorchFileError, read_torch_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((2, 2), (3, 1), 0),
        ((4,), (1,), -1),
        ((2,), (-1,), 3),
        ((-1,), (1,), 0),
        ((1,), (1,), 4),
        ((), (), 4),
        ((2,), (2**62,), 0),
        ((2**62, 2**62), (0, 0), 0),
        ((2**40,), (0,), 0),
        ((0, 2**62, 2**62), (1, 1, 1), 0),
        ((2, 2), (1,), 0),
        ((1,) * 33, (1,) * 33, 0),
        ((2.0,), (1,), 0),
        ([4], [1], 0),
        ((4,), (1,), "0"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path, size, stride, offset):
    pickled = torch_bytes.document(torch_bytes.tensor(FLOAT, size, stride, offset))
    message = refusal_of(tmp_path, pickled, STORAGES)
    assert "tensor" in message or "size" in message


@pytest.mark.parametrize("count", [0, 3, 5, 2**60, -1])
def test_a_storage_must_have_the_size_declared(tmp_path, count):
    flat = torch_bytes.storage("Float", "0", count)
    pickled = torch_bytes.document(torch_bytes.tensor(flat, (), ()))
    assert "storage '0' has 16 bytes" in refusal_of(tmp_path, pickled, STORAGES)


def test_a_storage_declared_twice_must_be_the_same(tmp_path):
    other = torch_bytes.storage("Int", "0", 4)
    both = torch_bytes.tensor(FLOAT, (), ()) + torch_bytes.tensor(other, (), ()) + b"\x86"
    assert "declared twice" in refusal_of(tmp_path, torch_bytes.document(both), STORAGES)


@pytest.mark.parametrize("key", ["1", "", "../data.pkl", "/etc/passwd"])
def test_a_storage_outside_the_archive_is_missing(tmp_path, key):
    flat = torch_bytes.storage("Float", key, 4)
    pickled = torch_bytes.document(torch_bytes.tensor(flat, (4,), (1,)))
    assert f"storage '{key}' is missing" in refusal_of(tmp_path, pickled, STORAGES)


def good_file(path, **options):
    pickled = torch_bytes.document(torch_bytes.tensor(FLOAT, (4,), (1,)))
    return torch_bytes.write(path, pickled, STORAGES, **options)


def test_a_name_twice_in_the_archive_is_refused(tmp_path):
    path = good_file(tmp_path / "x.pt")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", bytes(16))
    assert "'archive/data/0' twice" in refusal(path)


@pytest.mark.parametrize("second", ["other/data.pkl", "data.pkl", "archive/deeper/data.pkl"])
def test_two_pickles_in_the_archive_are_refused(tmp_path, second):
    path = good_file(tmp_path / "x.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(second, b"N.")
    assert "2 entries 'data.pkl'" in refusal(path)


def test_an_archive_without_a_pickle_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", b"hello")
    assert "0 entries 'data.pkl'" in refusal(tmp_path / "x.pt")


def test_a_compressed_archive_is_refused_unopened(tmp_path):
    path = good_file(tmp_path / "x.pt", compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(path)


def test_entries_that_declare_more_than_the_file_are_refused(tmp_path):
    path = good_file(tmp_path / "x.pt")
    content = path.read_bytes()
    huge = (2**31).to_bytes(4, "little")
    start = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[: start + 20] + huge + huge + content[start + 28 :])
    assert "bytes of data, but has" in refusal(path)


def test_a_flipped_byte_in_a_storage_is_noticed(tmp_path):
    path = good_file(tmp_path / "x.pt")
    content = path.read_bytes()
    assert content.count(STORAGES["0"]) == 1
    path.write_bytes(content.replace(STORAGES["0"], STORAGES["0"][::-1]))
    assert "CRC" in refusal(path)


def test_a_nonsensical_byte_order_is_refused(tmp_path):
    assert "byteorder" in refusal(good_file(tmp_path / "x.pt", byteorder=b"middle"))


def test_the_legacy_format_says_how_to_save_it_again(tmp_path):
    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    assert "torch.save(torch.load(" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", pickle.dumps({}), b"PK\x03\x04"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert "archive" in refusal(path)


def outcome(content, folder):
    """Reads bytes as a file: fails the test by any error that is not the reader's own."""
    path = folder / "fuzzed.pt"
    path.write_bytes(content)
    with contextlib.suppress(TorchFileError):
        read_torch_file(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(length=st.integers(0, 3514))
@settings(max_examples=100, deadline=None)
def test_every_truncation_is_an_error(folder, length):
    path = folder / "truncated.pt"
    path.write_bytes((GOLDEN / "original_tiny_ddp.pt").read_bytes()[:length])
    refusal(path)


FLIPS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
)


def flipped(content, flips):
    changed = bytearray(content)
    for place, value in flips:
        changed[int(place * len(changed))] = value
    return bytes(changed)


@given(flips=FLIPS)
@settings(max_examples=200, deadline=None)
def test_changed_bytes_of_an_archive_end_in_data_or_the_own_error(folder, flips):
    outcome(flipped((GOLDEN / "original_tiny_ddp.pt").read_bytes(), flips), folder)


@given(flips=FLIPS)
@settings(max_examples=200, deadline=None)
def test_changed_bytes_of_a_pickle_end_in_data_or_the_own_error(folder, flips):
    with zipfile.ZipFile(GOLDEN / "original_tiny_ddp.pt") as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    pickled = flipped(entries["data.pkl"], flips)
    storages = {key[5:]: value for key, value in entries.items() if key.startswith("data/")}
    outcome(torch_bytes.write(folder / "x.pt", pickled, storages).read_bytes(), folder)


FRAGMENTS = [bytes([code]) for code in range(256)] + [
    *(torch_bytes.name("torch." + name) for name in ("Size", "FloatStorage")),
    *(torch_bytes.literal(value) for value in ("0", "storage", (), (1,), 4)),
    *(FLOAT, NORMAL, torch_bytes.EMPTY_ORDERED_DICT, b"K\x01", b"q\x00", b"h\x00"),
    torch_bytes.tensor(FLOAT, (4,), (1,)),
    torch_bytes.name("torch._utils._rebuild_tensor_v2"),
]


@given(fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=40))
@settings(max_examples=300, deadline=None)
def test_random_pickles_end_in_data_or_the_own_error(folder, fragments):
    pickled = b"".join(fragments) + b"."
    outcome(torch_bytes.write(folder / "x.pt", pickled, STORAGES).read_bytes(), folder)
