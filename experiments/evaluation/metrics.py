"""The metrics, which metrics.toml defines: their values with a spread, and the verdict."""

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Definition(NamedTuple):
    """A family of metrics."""

    words: str  # What it measures, as a phrase.
    formula: str  # The definition in plain text.
    direction: str | None = None  # "lower" or "higher" values are better; `None` if neither are.
    unit: str = ""
    protocol: str = ""  # What else one should know of it.
    headline: bool = False  # Whether the verdict depends on it.
    far: float = math.inf  # How much worse than real data is far from them; at most the prior.


_FILE = Path(__file__).with_suffix(".toml").read_text("utf-8")
DEFINITIONS = {name: Definition(**fields) for name, fields in tomllib.loads(_FILE).items()}


class Estimate(NamedTuple):
    """The mean over draws and the standard deviation, which is `None` for a single draw."""

    value: float
    spread: float | None = None


class Metric(NamedTuple):
    """One metric: its values for samples, and for as many of the prior (or source) and of data."""

    name: str  # Definition, feature space and number of samples, as in `frechet_random_conv_500`.
    definition: str  # Key of `DEFINITIONS`.
    samples: Estimate
    prior: Estimate | None = None
    real: Estimate | None = None

    @property
    def value(self) -> float:
        return self.samples.value

    @property
    def defined(self) -> Definition:
        return DEFINITIONS[self.definition]


Metrics = dict[str, Metric]
NOTE = "Mean ± standard deviation over draws of the given number of samples."
_NOTHING = "-"  # The text of a value that is unknown or not meaningful.
_ROUNDING = 1e-9  # Relative rounding error.
# The largest part of the way from real data to the prior, the grade, and its words.
_GRADES = (
    (0.1, "Good", "close to real data"),
    (0.5, "Fair", "nearer to real data than to the {}"),
    (math.inf, "Poor", "far from real data"),
)
_SPREADS = 2.0  # Within this many standard deviations of real data, samples score as they do.


def estimate(values: Iterable[float]) -> Estimate:
    """Returns the mean and standard deviation (with 1 / (N - 1)) of values over draws."""
    drawn = [float(value) for value in values]
    return Estimate(float(np.mean(drawn)), float(np.std(drawn, ddof=1)) if drawn[1:] else None)


def by_name(metrics: Iterable[Metric]) -> Metrics:
    """Returns metrics by name, in the order of the definitions."""
    order = list(DEFINITIONS)
    return {m.name: m for m in sorted(metrics, key=lambda m: order.index(m.definition))}


def measured(definition: str, *sides: Iterable[float], space: str = "", num: int = 0) -> Metric:
    """Returns a metric named as `frechet_svc_64` or `fid_50k`, from values of each side by draw."""
    thousands, rest = divmod(num, 1_000)
    count = f"{num}" if rest or not thousands else f"{thousands}k"
    name = "_".join(filter(None, (definition, space, count if num else "")))
    return Metric(name, definition, *map(estimate, sides))


# The keys of a metric in JSON.
_SIDES = (("value", "spread"), ("prior", "prior_spread"), ("real", "real_spread"))


def to_json(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Returns metrics as values for JSON; `[name]["value"]` is the mean over draws."""
    stored: dict[str, dict[str, Any]] = {}
    for name, (_, definition, *sides) in metrics.items():
        stored[name] = {"definition": definition}
        for keys, side in zip(_SIDES, sides, strict=True):
            stored[name] |= zip(keys, side or (None, None), strict=True)
    return stored


def from_json(stored: Mapping[str, Mapping[str, Any]]) -> Metrics:
    """The inverse of `to_json`."""
    read = []
    for name, fields in stored.items():
        pairs = [(fields[value], fields[spread]) for value, spread in _SIDES]
        sides: list[Any] = [None if pair[0] is None else Estimate(*pair) for pair in pairs]
        read.append(Metric(name, fields["definition"], *sides))
    return by_name(read)


def columns(start: str = "prior") -> tuple[str, ...]:
    """Returns the headers of `rows`."""
    return ("metric", "samples", start, "real data", "better")


def rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """Returns one row of text per metric, with the columns of `columns`."""
    return [(m.name, *_texts(m), m.defined.direction or "") for m in metrics.values()]


def table(metrics: Metrics, start: str = "prior") -> str:
    """Returns the table for a terminal, without its empty columns, and a note."""
    every = zip(columns(start), *rows(metrics), strict=True)
    kept = [column for column in every if set(column[1:]) != {_NOTHING}]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in kept]
    lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return "\n".join([*lines, "", NOTE])


def verdict(metrics: Metrics, start: str = "prior") -> str:
    """Returns in a sentence whether the samples are good, by the worst headline metric."""
    headlines = [metric for metric in metrics.values() if metric.defined.headline]
    if broken := [m.name for m in headlines if not math.isfinite(m.value)]:
        return f"No verdict: {broken[0]} is not a finite number."
    placed = [(_position(m, m.prior, m.real), m) for m in headlines if m.prior and m.real]
    if not any(_gap(m, m.prior, m.real) for _, m in placed if m.prior and m.real):
        return f"No verdict: no headline metric distinguishes real data from the {start}."
    where, worst = max(placed, key=lambda pair: pair[0])
    if where <= 0.0:
        names = " and ".join(m.name for _, m in placed)
        judged = f"Good: by {names}, samples cannot be distinguished from real data"
    else:
        grade, words = next((g, words) for most, g, words in _GRADES if where <= most)
        judged = f"{grade}: samples are {words.format(start)}, by {worst.name}"
        judged += ", in which they are worst" * (len(placed) > 1)
    samples, prior, real = _texts(worst)
    return f"{judged} ({samples}; real data {real}; {start} {prior})."


def _position(m: Metric, prior: Estimate, real: Estimate) -> float:
    """Returns where samples are on the way from real data (0) to the prior, or to `far` (1).

    At most 0 means that they score as real data do, within the spread of these. It is infinite for
    samples that do not, if the metric cannot distinguish the prior from real data.
    """
    excess = _worse(m, m.samples, real)
    if excess <= _SPREADS * (real.spread or 0.0) + _ROUNDING * abs(real.value):
        return min(0.0, excess)
    gap = _gap(m, prior, real)
    return excess / min(gap, m.defined.far) if gap else math.inf


def _gap(m: Metric, prior: Estimate, real: Estimate) -> float:
    """Returns by how much real data score better than the prior; 0 if that is not significant."""
    gap = _worse(m, prior, real)
    noise = math.hypot(prior.spread or 0.0, real.spread or 0.0)
    return gap if _SPREADS * noise < gap < math.inf else 0.0


def _worse(m: Metric, side: Estimate, real: Estimate) -> float:
    return (side.value - real.value) * (-1.0 if m.defined.direction == "higher" else 1.0)


def _texts(m: Metric) -> list[str]:
    """Returns the texts of the samples, the prior and real data, with as many digits as matter."""

    def text(side: Estimate | None) -> str:
        if side is None:
            return _NOTHING
        value, spread = side
        # Draws that reuse all samples differ only by rounding errors, which are not a spread.
        if spread is None or spread <= _ROUNDING * abs(value):
            return format_value(value, m.real and m.real.spread)
        return f"{format_value(value, spread)} ± {format_value(spread, spread)}"

    return [text(side) for side in (m.samples, m.prior, m.real)]


def format_value(value: float, spread: float | None = None) -> str:
    """Formats a value to the second digit of its spread, or with three digits."""
    if not spread or not math.isfinite(value) or not math.isfinite(spread):
        return f"{value:.3g}"
    decimals = 1 - math.floor(math.log10(spread))
    if value:  # At most five digits.
        decimals = min(decimals, 4 - math.floor(math.log10(abs(value))))
    if decimals > 6 or abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"
