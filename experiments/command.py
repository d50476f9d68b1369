"""A parsed command: what `main` passes to the verbs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.settings import Flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command. Files of configs were run, but their values are not checked yet."""

    mode: str
    folder: Path  # Of the run; the working folder if none is given to a mode that needs none.
    config: Mapping[str, Any] | None = None  # That of the config file with the changes, if any.
    changes: Flat = dataclasses.field(default_factory=dict)  # Those on the command line.
    data_dir: str = ""  # Where the data are, if given.
    which: int | Literal["best"] | None = None  # The checkpoint: a step; `None` for the newest.
    num_samples: int | None = None
    label: str = ""  # Class of the samples, by name or number, or "all".
    classifier: str = ""  # Folder of a classifier that guides samples, or judges them.
    text: str = ""  # The command as typed, for the record.
