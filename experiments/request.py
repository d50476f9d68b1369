"""What the command line asks for, parsed: the input of every mode."""

from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from experiments.errors import UserError

CheckpointStep: TypeAlias = int | Literal["best"] | None


class Request(NamedTuple):
    """One call of the program.

    Attributes:
      mode: a name in `experiments.modes.MODES`.
      config: nested keys and values.
      workdir: the folder of the run; modes that need none leave it alone.
      command: what the user typed, for the record.
      checkpoint: step of a checkpoint, "best", or a file to convert; `None` for the newest.
      num_samples: how many samples to draw; `None` for the config's number.
      prior: file of the authors' prior, in mode convert.
      platforms: what an exported sampler is to run on.
      started: when the program was started, by `time.perf_counter`.
    """

    mode: str
    config: dict[str, Any]
    workdir: Path = Path()
    command: str = ""
    checkpoint: str | None = None
    num_samples: int | None = None
    prior: Path | None = None
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    started: float | None = None

    @property
    def checkpoint_step(self) -> CheckpointStep:
        """The step of the checkpoint asked for, "best", or `None` for the newest.

        Raises:
          UserError: if what was asked for is neither.
        """
        if self.checkpoint is None or self.checkpoint == "best":
            return cast(CheckpointStep, self.checkpoint)
        if not self.checkpoint.isdecimal():
            raise UserError(
                f"--checkpoint={self.checkpoint} must be the step of a checkpoint, or "
                f"best, in mode {self.mode}"
            )
        return int(self.checkpoint)
