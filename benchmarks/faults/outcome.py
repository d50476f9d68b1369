"""What a fault did."""

from collections.abc import Sequence
from typing import NamedTuple


class Outcome(NamedTuple):
    """A line of the table.

    Attributes:
      fault: what was done to the run.
      times: how often.
      lost: what it cost, in words.
      complaints: what should not have happened.
      codes: exit codes of the program, each once, in words; empty if it did not end.
      lines: most lines that it printed when it ended; `None` if it did not end by itself.
      seconds: longest time from the fault to the end of the program; `None` likewise.
    """

    fault: str
    times: int
    lost: str
    complaints: list[str]
    codes: str = ""
    lines: int | None = None
    seconds: float | None = None

    def as_row(self) -> str:
        """Returns the line of a Markdown table."""
        cells = [
            *(self.fault, str(self.times), self.lost, self.codes or "-"),
            "-" if self.lines is None else str(self.lines),
            "-" if self.seconds is None else f"{self.seconds:.0f}",
        ]
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| fault | injected | lost | exit code | lines printed | seconds to the end |\n"
    "|---|---|---|---|---|---|"
)


def errors_in(printed: str) -> list[str]:
    """Returns what a program should not print on stderr: all but the one line of its error."""
    # A process that waits for its peers says so.
    lines = [line for line in printed.splitlines() if not line.startswith("waiting for ")]
    errors = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if line not in errors]
    wrong = errors[1:] + others
    return [f"{len(wrong)} lines besides the error, first: {wrong[0]}"] if wrong else []


def words(codes: Sequence[int | None]) -> str:
    """Returns exit codes in words, each once."""
    return ", ".join("none" if c is None else str(c) for c in sorted(set(codes), key=str))
