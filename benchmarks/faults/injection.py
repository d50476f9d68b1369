"""Faults of the disk at a chosen file operation; see `injection.c`."""

import errno
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_SOURCE = Path(__file__).with_name("injection.c")


class Kind(NamedTuple):
    """A way in which a disk or a process fails.

    Attributes:
      name: name of the signal or the errno.
      errno: the errno; 0 for a kill.
      lasting: whether all later operations fail too, as on a full disk.
      reads: whether reading files fails too.
    """

    name: str
    errno: int = 0
    lasting: bool = False
    reads: bool = False


KINDS = (
    Kind("kill"),
    Kind("EIO", errno.EIO),
    Kind("ENOSPC", errno.ENOSPC, lasting=True),
    Kind("EROFS", errno.EROFS, lasting=True),
    Kind("ESTALE", errno.ESTALE, lasting=True, reads=True),
)


class Fault(NamedTuple):
    """A fault at a file operation.

    Attributes:
      folder: the folder whose files fail.
      kind: how they fail.
      position: number of the operation, from 1; 0 only counts operations.
      trace: file for the operations, one per line; `None` for no file.
    """

    folder: Path
    kind: Kind
    position: int
    trace: Path | None = None

    def as_arguments(self) -> list[str | int]:
        """Returns the arguments of `faults_arm`."""
        kind = self.kind
        name = str(kind.errno) if kind.errno else "kill"
        trace = "" if self.trace is None else str(self.trace)
        return [str(self.folder), name, self.position, kind.lasting, kind.reads, trace]

    def as_environment(self) -> dict[str, str]:
        """Returns the environment variables that inject it into a process from its start."""
        names = ("FOLDER", "KIND", "POSITION", "LASTING", "READS", "TRACE")
        values = [str(int(a) if isinstance(a, bool) else a) for a in self.as_arguments()]
        return {f"FAULTS_{name}": value for name, value in zip(names, values, strict=True)}


def can_compile() -> bool:
    """Whether there is a C compiler."""
    return shutil.which("gcc") is not None


def compile_library(folder: Path) -> Path:
    """Compiles `injection.c` to a folder and returns the library."""
    library = folder.absolute() / "injection.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"],
        check=True,
        capture_output=True,
    )
    return library
