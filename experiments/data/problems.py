"""What happens with input that cannot be used: `data.on_error`."""

import logging

from experiments.errors import DataError


class Problems:
    """Takes every bad file: stops at the first, or leaves them out, counts and tells once."""

    def __init__(self, on_error: str) -> None:
        self.skip = on_error == "skip"
        self._names: set[str] = set()

    def __len__(self) -> int:
        return len(self._names)

    def report(self, name: str, reason: str) -> None:
        """Tells of a bad file.

        Raises:
          DataError: naming the file, unless such files are to be skipped.
        """
        if not self.skip:
            raise DataError(f"{name}: {reason}. Mend or remove it, or set data.on_error=skip")
        if not self._names:
            _log().warning("skipped %s: %s; more such files are counted in silence", name, reason)
        self._names.add(name)

    def tell(self) -> None:
        """Says how many files were skipped, if any."""
        if self._names:
            _log().warning("skipped %d file(s) of the data in all", len(self._names))


def _log() -> logging.Logger:
    return logging.getLogger("fdrl")
