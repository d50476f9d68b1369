"""Damage to the files of a checkpoint."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def truncate(file: Path) -> None:
    """Cuts off the second half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    """Leaves an empty file."""
    file.write_bytes(b"")


def delete(file: Path) -> None:
    """Removes a file."""
    file.unlink()


def flip(file: Path) -> None:
    """Flips all bits of some bytes, a quarter into the file.

    In the middle there may be nothing to damage: the store of Orbax also leaves some hundred bytes
    in a file that it does not read, at the end or, depending on timing, between two arrays.
    """
    content = bytearray(file.read_bytes())
    first = len(content) // 4
    for i in range(first, min(len(content), first + 64)):
        content[i] ^= 0xFF
    file.write_bytes(content)


def largest_file(folder: Path) -> Path:
    """Returns the largest file at any depth, which contains the arrays."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


KINDS: tuple[Callable[[Path], None], ...] = (truncate, empty, delete, flip)


def each(checkpoint: Path) -> Iterator[str]:
    """Damages each file of a checkpoint in each way, and repairs it when the caller resumes.

    Yields:
      A description of the damage.
    """
    saved = checkpoint.with_name(f"saved_{checkpoint.name}")
    shutil.copytree(checkpoint, saved)
    for file in sorted(path for path in saved.rglob("*") if path.is_file()):
        for damage in KINDS:
            if file.stat().st_size == 0 and damage is not delete:
                continue
            damage(checkpoint / file.relative_to(saved))
            yield f"{damage.__name__} {file.relative_to(saved)}"
            shutil.rmtree(checkpoint, ignore_errors=True)
            shutil.copytree(saved, checkpoint)
    shutil.rmtree(saved)
