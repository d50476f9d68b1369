"""The zip archive of a PyTorch file: its storages, and the tensors that view them."""

import math
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from experiments.torch_files.errors import TorchFileError, shown
from experiments.torch_files.inert import Global, Vocabulary
from experiments.torch_files.pickles import interpret

Array = np.ndarray[Any, np.dtype[Any]]

MULTIVARIATE_NORMAL = "torch.distributions.multivariate_normal.MultivariateNormal"

_DTYPES: dict[str, np.dtype[Any]] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}

_MAX_DIMENSIONS = 32
_MAX_EXPANDED_ELEMENTS = 2**24  # A stride of zero makes a tensor larger than its storage.

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# What zipfile raises on archives that are damaged or use features of zip that PyTorch never does.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def read_torch_file(path: str | os.PathLike[str]) -> object:
    """Reads a file of ``torch.save`` into numpy arrays and plain containers.

    Nothing in the file is executed, imported or looked up. Memory: the size of the file.

    Args:
        path: A zip-format file (PyTorch 1.6 and later).

    Returns:
        The saved object: tensors and parameters as read-only arrays that share memory where their
        storages do (bfloat16 as ``ml_dtypes.bfloat16``), ``torch.Size`` as a tuple, a
        ``MultivariateNormal`` as an ``Instance`` of its attributes.

    Raises:
        TorchFileError: The file is damaged, of the legacy format, or holds anything else; the
            message names the file and the problem.
        OSError: The file cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            return _read(file)
        except TorchFileError as error:
            raise TorchFileError(f"{os.fspath(path)}: {error}") from error


def _read(file: BinaryIO) -> object:
    _check_format(file.read(len(_LEGACY_MAGIC)))
    with _zip_errors_translated(), zipfile.ZipFile(file) as zipped:
        archive = _Archive(zipped, size=file.seek(0, os.SEEK_END))
        return interpret(archive.pickled(), archive.vocabulary())


def _check_format(start: bytes) -> None:
    if start == _LEGACY_MAGIC:
        raise TorchFileError(
            "is of the format before PyTorch 1.6; if you trust it, re-save it with a newer one: "
            "torch.save(torch.load(OLD, map_location='cpu', weights_only=False), NEW)"
        )
    if not start.startswith(_ZIP_MAGIC):
        raise TorchFileError("is not a PyTorch file: it does not start as a zip archive")


@contextmanager
def _zip_errors_translated() -> Iterator[None]:
    try:
        yield
    except TorchFileError:
        raise
    except _ZIP_ERRORS as error:
        raise TorchFileError(f"is a damaged or truncated archive: {shown(str(error))}") from error


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """The elements of one storage, flat and in native byte order."""

    elements: Array


class _Archive:
    """The entries of an open archive, checked, and what a pickle in it may mention."""

    def __init__(self, zipped: zipfile.ZipFile, size: int) -> None:
        self._zipped = zipped
        self._entries = _checked_entries(zipped, size)
        self._prefix = _find_prefix(self._entries)
        self._storages: dict[str, _Storage] = {}
        byteorder = self._entries.get(self._prefix + "byteorder")
        self._byteorder = b"little" if byteorder is None else zipped.read(byteorder)
        if self._byteorder not in (b"little", b"big"):
            raise TorchFileError("its entry 'byteorder' is neither little nor big")

    def pickled(self) -> bytes:
        """Returns the pickle that describes the saved object."""
        return self._zipped.read(self._entries[self._prefix + "data.pkl"])

    def vocabulary(self) -> Vocabulary:
        """Returns what the pickle may mention: tensors over this archive's storages."""
        return Vocabulary(
            functions={
                "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
                "torch._utils._rebuild_parameter": _rebuild_parameter,
                "torch.Size": _rebuild_size,
            },
            classes=frozenset((MULTIVARIATE_NORMAL,)),
            names=frozenset(_DTYPES),
            load_persistent=self._load_storage,
            data_types=frozenset((np.ndarray,)),
        )

    def _load_storage(self, persistent_id: object) -> _Storage:
        match persistent_id:
            # The fourth is the device that it was on. A literal pattern would compare by ==, which
            # an array in its place answers with an array, so each class is matched first.
            case (str(tag), Global(name), str(key), str(), int(count)) if (
                tag == "storage" and name in _DTYPES
            ):
                dtype = _DTYPES[name]
            case _:
                raise TorchFileError("its pickle holds a persistent id that is of no storage")
        if key not in self._storages:
            self._storages[key] = self._read_storage(key, dtype, count)
        known = self._storages[key].elements
        if (known.dtype, known.size) != (dtype, count):
            raise TorchFileError(f"its storage {shown(key)} is declared twice, differently")
        return self._storages[key]

    def _read_storage(self, key: str, dtype: np.dtype[Any], count: int) -> _Storage:
        entry = self._entries.get(f"{self._prefix}data/{key}")
        if entry is None:
            raise TorchFileError(f"its storage {shown(key)} is missing")
        if entry.file_size != count * dtype.itemsize:
            raise TorchFileError(
                f"its storage {shown(key)} has {entry.file_size} bytes, "
                f"but {count} elements of {dtype.name} are declared"
            )
        raw = np.frombuffer(self._zipped.read(entry), dtype=f"u{dtype.itemsize}")
        if self._byteorder.decode() != sys.byteorder:
            raw = raw.byteswap()
        # A byte other than 0 and 1 seen as a bool is undefined behaviour.
        return _Storage(raw != 0 if dtype == np.bool_ else raw.view(dtype))


def _checked_entries(zipped: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in zipped.infolist():
        if entry.filename in entries:
            raise TorchFileError(f"its archive holds {shown(entry.filename)} twice")
        # PyTorch never compresses; without, no entry can be larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise TorchFileError(f"its archive entry {shown(entry.filename)} is compressed")
        entries[entry.filename] = entry
    declared = sum(entry.file_size for entry in entries.values())
    if declared > size:
        raise TorchFileError(f"its archive declares {declared} bytes of data, but has {size}")
    return entries


def _find_prefix(entries: dict[str, zipfile.ZipInfo]) -> str:
    found = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise TorchFileError(f"its archive holds {len(found)} entries 'data.pkl' instead of one")
    return found[0].removesuffix("data.pkl")


def _rebuild_tensor(arguments: tuple[object, ...]) -> Array:
    match arguments:
        # The last two, requires_grad and the backward hooks, mean nothing here.
        case (_Storage() as flat, int(offset), tuple(size), tuple(stride), bool(), dict() | None):
            return _view(flat.elements, offset, size, stride)
    raise TorchFileError("its pickle describes a tensor in a way that is not known")


def _rebuild_parameter(arguments: tuple[object, ...]) -> Array:
    match arguments:
        case (np.ndarray() as array, bool(), dict() | None):
            return array
    raise TorchFileError("its pickle describes a parameter in a way that is not known")


def _rebuild_size(arguments: tuple[object, ...]) -> tuple[int, ...]:
    match arguments:
        case (tuple(size),):
            return _extents(size)
    raise TorchFileError("its pickle describes a size in a way that is not known")


def _extents(values: tuple[object, ...]) -> tuple[int, ...]:
    if len(values) > _MAX_DIMENSIONS:
        raise TorchFileError(f"its pickle holds a size of more than {_MAX_DIMENSIONS} dimensions")
    extents = tuple(value for value in values if isinstance(value, int) and value >= 0)
    if len(extents) != len(values):
        raise TorchFileError("its pickle holds a size or stride that is not a count")
    return extents


def _view(
    elements: Array, offset: int, size: tuple[object, ...], stride: tuple[object, ...]
) -> Array:
    """Returns the strided view of a flat array, after proof that it stays inside."""
    shape, steps = _extents(size), _extents(stride)
    if len(shape) != len(steps):
        raise TorchFileError(f"its pickle holds a tensor of size {shape} with strides {steps}")
    last = offset + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    inside = 0 in shape or (offset >= 0 and last < elements.size)
    expanded = math.prod(max(length, 1) for length in shape)
    if not inside or expanded > max(elements.size, _MAX_EXPANDED_ELEMENTS):
        raise TorchFileError(
            f"its pickle holds a tensor of size {shape}, strides {steps} and offset {offset}, "
            f"which does not fit its storage of {elements.size} elements"
        )
    # The step of an axis of length 1 is arbitrary in the file and never taken.
    strides = tuple(
        step * elements.itemsize if length > 1 else 0
        for length, step in zip(shape, steps, strict=True)
    )
    start = elements[:0] if 0 in shape else elements[offset:]
    return np.lib.stride_tricks.as_strided(start, shape, strides, writeable=False)
