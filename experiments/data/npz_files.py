"""Reading `.npz` files, whoever wrote them and whatever has become of them."""

from pathlib import Path

import numpy as np


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file; never anything that would be executed.

    Raises:
      ValueError: with the reason alone, if it is no whole `.npz` of plain arrays.
    """
    try:
        # Opened here, because NumPy leaves the file of a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib and NumPy's headers have dozens of errors.
        raise ValueError(f"no readable .npz of plain arrays: {error}") from error
