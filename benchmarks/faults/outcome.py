"""What a fault did."""

from typing import NamedTuple


class Outcome(NamedTuple):
    """A line of the table.

    Attributes:
      fault: what was done to the run.
      times: how often.
      lost: what it cost, in words.
      complaints: what should not have happened.
    """

    fault: str
    times: int
    lost: str
    complaints: list[str]
