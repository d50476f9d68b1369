"""Writes samples to files for other programs. Equal samples always give equal bytes."""

import contextlib
import io
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from experiments.errors import UserError

# All members of a zip get this date, the earliest possible, so that files do not depend on time.
_DATE = (1980, 1, 1, 0, 0, 0)


def target(folder: Path, name: str, file_format: str, kind: str) -> Path:
    """Returns the path for samples of this name and format.

    The format "npz" is one array `arr_0`, as in common evaluation programs; "folder" and "zip" have
    one PNG per sample.

    Raises:
      UserError: for points in a format of PNG files.
    """
    if kind == "points" and file_format != "npz":
        raise UserError(f"sample.format={file_format!r} is only for images; use 'npz' for points")
    return folder / f"{name}{_FORMATS[file_format][0]}"


@contextlib.contextmanager
def writing(
    path: Path, file_format: str, parts: Iterable[np.ndarray], num_samples: int
) -> Iterator[None]:
    """Writes samples to a path of `target`, which get their name after the block.

    They are therefore always complete. Only one part is in memory at a time: uint8 images [n, H, W,
    C], or points [n, 2]. A folder never replaces existing files.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    if unfinished.is_dir():
        shutil.rmtree(unfinished)
    else:
        unfinished.unlink(missing_ok=True)
    write = _FORMATS[file_format][1]
    write(unfinished, iter(parts), num_samples)
    yield
    unfinished.rename(path)


def _write_npz(path: Path, parts: Iterator[np.ndarray], num_samples: int) -> None:
    part = next(parts)
    header = {
        "descr": np.lib.format.dtype_to_descr(part.dtype),
        "fortran_order": False,
        "shape": (num_samples, *part.shape[1:]),
    }
    with zipfile.ZipFile(path, "w") as archive, _member(archive, "arr_0.npy") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(part.tobytes())
        for part in parts:
            file.write(part.tobytes())


def _write_zip(path: Path, parts: Iterator[np.ndarray], num_samples: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in _pngs(parts, num_samples):
            with _member(archive, name) as file:
                file.write(content)


def _write_folder(path: Path, parts: Iterator[np.ndarray], num_samples: int) -> None:
    path.mkdir()
    for name, content in _pngs(parts, num_samples):
        (path / name).write_bytes(content)


def _pngs(parts: Iterator[np.ndarray], num_samples: int) -> Iterator[tuple[str, bytes]]:
    digits = max(6, len(str(num_samples - 1)))
    images = (image for part in parts for image in part)
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        grey = image.shape[-1] == 1
        Image.fromarray(image[..., 0] if grey else image).save(buffer, "png")
        yield f"{i:0{digits}d}.png", buffer.getvalue()


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # Not compressed: PNG files are compressed already, and raw pixels hardly shrink.
    return archive.open(zipfile.ZipInfo(name, _DATE), "w", force_zip64=True)


# The suffix and the writer of each format.
_FORMATS = {"npz": (".npz", _write_npz), "zip": (".zip", _write_zip), "folder": ("", _write_folder)}
