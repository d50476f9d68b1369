"""Writes PyTorch files byte by byte, well-formed and not, without PyTorch."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from experiments.torch_files import TorchFileError, read_torch_file

EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def literal(value: object) -> bytes:
    """The opcodes of a plain value, without header and end."""
    return pickle.dumps(value, protocol=2)[2:-1]


def name(dotted: str) -> bytes:
    """The GLOBAL opcode."""
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(dotted: str, *arguments: bytes) -> bytes:
    """The opcodes that apply a function to arguments."""
    return name(dotted) + b"(" + b"".join(arguments) + b"tR"


def document(body: bytes, protocol: int = 2) -> bytes:
    """A whole pickle."""
    return b"\x80" + bytes([protocol]) + body + b"."


def dictionary(**items: bytes) -> bytes:
    """The opcodes of a dictionary whose values are given as opcodes."""
    return b"}(" + b"".join(literal(key) + value for key, value in items.items()) + b"u"


def storage(kind: str, key: str, count: int) -> bytes:
    """The persistent id of a storage."""
    head = literal("storage") + name(f"torch.{kind}Storage")
    return b"(" + head + literal(key) + literal("cpu") + literal(count) + b"tQ"


def tensor(flat: bytes, size: object, stride: object, offset: object = 0) -> bytes:
    """The opcodes of a tensor over a storage."""
    place = literal(offset) + literal(size) + literal(stride)
    return call("torch._utils._rebuild_tensor_v2", flat, place, literal(False), EMPTY_ORDERED_DICT)


def write(
    path: Path,
    pickled: bytes,
    storages: Mapping[str, np.ndarray | bytes] | None = None,
    *,
    prefix: str = "archive/",
    byteorder: bytes | None = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Writes a PyTorch file of the zip format; returns its path."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(prefix + "data.pkl", pickled)
        if byteorder is not None:
            archive.writestr(prefix + "byteorder", byteorder)
        for key, elements in (storages or {}).items():
            archive.writestr(f"{prefix}data/{key}", bytes(elements))
        archive.writestr(prefix + "version", b"3\n")
    return path


# Small parts for broken files: a storage of four elements, its data, and the class that is allowed.
FLOAT = storage("Float", "0", 4)
STORAGES = {"0": np.arange(4, dtype="<f4").tobytes()}
NORMAL = name("torch.distributions.multivariate_normal.MultivariateNormal")


def refusal(path: Path) -> str:
    """The message of the reader's error, after a check of its form."""
    with pytest.raises(TorchFileError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    return message


def refusal_of(
    folder: Path, pickled: bytes, storages: Mapping[str, np.ndarray | bytes] | None = None
) -> str:
    """The message of the reader's error for a file with this pickle."""
    return refusal(write(folder / "hostile.pt", pickled, storages))
