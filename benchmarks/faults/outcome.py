"""The outcome of a fault."""

from collections.abc import Sequence
from typing import NamedTuple


class Outcome(NamedTuple):
    """A row of the table.

    Attributes:
      fault: the fault.
      times: number of injections.
      lost: what was lost, in words.
      complaints: observations that show an error of the program.
      codes: the different exit codes of the program, in words; empty if it did not end.
      lines: largest number of lines printed at its end; `None` if it did not end by itself.
      seconds: longest time from the fault to the end of the program; `None` if it did not end by
        itself.
    """

    fault: str
    times: int
    lost: str
    complaints: list[str]
    codes: str = ""
    lines: int | None = None
    seconds: float | None = None

    def as_row(self) -> str:
        """Returns the row of a Markdown table."""
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
    """Returns unexpected output on stderr: everything except the one line of the error."""
    # Also expected: a process that waits for its peers reports that.
    lines = [line for line in printed.splitlines() if not line.startswith("waiting for ")]
    errors = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if line not in errors]
    wrong = errors[1:] + others
    return [f"{len(wrong)} unexpected lines, first: {wrong[0]}"] if wrong else []


def complaints_about(
    codes: Sequence[int | None], expected: Sequence[int], printed: Sequence[str], message: str = ""
) -> list[str]:
    """Returns what is wrong with the ends of processes: exit codes, and lines without a message."""
    found = [] if list(codes) == list(expected) else [f"exit codes {codes}: {printed}"]
    found += [f"printed {line}" for text in printed for line in errors_in(text)]
    return found + [f"no clear message: {text}" for text in printed if message not in text]


def words(codes: Sequence[int | None]) -> str:
    """Returns the different exit codes in words."""
    return ", ".join("none" if c is None else str(c) for c in sorted(set(codes), key=str))
