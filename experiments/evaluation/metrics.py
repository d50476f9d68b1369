"""Metrics with their spread, next to the values of the prior and of real data."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluation.definitions import DEFINITIONS, Definition


class Estimate(NamedTuple):
    """The mean over draws and the standard deviation, which is `None` for a single draw."""

    value: float
    spread: float | None = None


class Metric(NamedTuple):
    """One metric: its values for samples, and for equally many prior samples and real examples.

    In a translation, source images replace the prior. A side is `None` if it is unknown.
    """

    name: str  # Definition, feature space and number of samples, as in `frechet_random_conv_500`.
    definition: str  # Key of `DEFINITIONS`.
    samples: Estimate
    prior: Estimate | None = None
    real: Estimate | None = None

    @property
    def value(self) -> float:
        """Mean over draws."""
        return self.samples.value

    @property
    def defined(self) -> Definition:
        return DEFINITIONS[self.definition]

    @property
    def relative_distance(self) -> float | None:
        """Position of the samples on the way from real data (0) to the prior (1).

        `None` if one of the two is unknown, if they cannot be distinguished, or if the prior scores
        better than real data.
        """
        if self.prior is None or self.real is None:
            return None
        sign = -1.0 if self.defined.direction == "higher" else 1.0
        gap = self.prior.value - self.real.value
        noise = math.hypot(self.prior.spread or 0.0, self.real.spread or 0.0)
        return (self.value - self.real.value) / gap if 2.0 * noise < sign * gap < math.inf else None


NOTE = "Mean ± standard deviation over draws of the given number of samples."
_NOTHING = "-"  # The text of a value that is unknown or not meaningful.
_ROUNDING = 1e-9  # Relative rounding error.
_GOOD, _FAIR = 0.1, 0.5  # Largest relative distances of good and of fair samples.

Metrics = dict[str, Metric]


def estimate(values: Iterable[float]) -> Estimate:
    """Returns the mean and standard deviation (with 1 / (N - 1)) of values over draws."""
    drawn = [float(value) for value in values]
    return Estimate(float(np.mean(drawn)), float(np.std(drawn, ddof=1)) if drawn[1:] else None)


def by_name(metrics: Iterable[Metric]) -> Metrics:
    """Returns metrics by name, in the order of the definitions."""
    order = list(DEFINITIONS)
    by_definition = sorted(metrics, key=lambda metric: order.index(metric.definition))
    return {metric.name: metric for metric in by_definition}


def with_count(name: str, num_samples: int) -> str:
    """Returns a metric's name with its number of samples, which most depend on: `fid_50k`."""
    thousands, rest = divmod(num_samples, 1_000)
    return f"{name}_{num_samples}" if rest or not thousands else f"{name}_{thousands}k"


def measured(definition: str, *sides: Iterable[float], space: str = "", num: int = 0) -> Metric:
    """Returns a metric, named by its definition, the feature space and the number of samples.

    The sides are values over draws of the samples, and of the prior and real data if known.
    """
    name = "_".join(filter(None, (definition, space)))
    return Metric(with_count(name, num) if num else name, definition, *map(estimate, sides))


# The keys of a metric in JSON: of the value and of the spread of each side.
_SIDES = (("value", "spread"), ("prior", "prior_spread"), ("real", "real_spread"))


def to_json(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Returns metrics as values for JSON; `[name]["value"]` is the mean over draws."""
    stored: dict[str, dict[str, Any]] = {}
    for name, m in metrics.items():
        stored[name] = {"unit": m.defined.unit, "direction": m.defined.direction}
        stored[name]["definition"] = m.definition
        for keys, side in zip(_SIDES, (m.samples, m.prior, m.real), strict=True):
            stored[name] |= zip(keys, side or (None, None), strict=True)
    return stored


def from_json(stored: Mapping[str, Mapping[str, Any]]) -> Metrics:
    """The inverse of `to_json`."""
    read = []
    for name, fields in stored.items():
        sides: list[Any] = [
            None if fields[value] is None else Estimate(fields[value], fields[spread])
            for value, spread in _SIDES
        ]
        read.append(Metric(name, fields["definition"], *sides))
    return by_name(read)


def columns(start: str = "prior") -> tuple[str, ...]:
    """Returns the headers of `rows`; samples start at the "prior" or the "source"."""
    return ("metric", "samples", start, "real data", "better")


def rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """Returns one row of text per metric, with the columns of `columns`."""
    return [
        (m.name, *map(_with_spread, (m.samples, m.prior, m.real)), m.defined.direction or "")
        for m in metrics.values()
    ]


def table(metrics: Metrics, start: str = "prior") -> str:
    """Returns the table for a terminal, without its empty columns, and a note."""
    padded = []
    for column in zip(columns(start), *rows(metrics), strict=True):
        if set(column[1:]) != {_NOTHING}:
            width = max(map(len, column))
            padded.append([cell.ljust(width) for cell in column])
    lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return "\n".join([*lines, "", NOTE])


def verdict(metrics: Metrics, start: str = "prior") -> str:
    """Returns in a sentence whether the samples are good, by the worst headline metric."""
    headlines = [metric for metric in metrics.values() if metric.defined.headline]
    for m in headlines:
        if not math.isfinite(m.value):
            return f"No verdict: {m.name} is not a finite number."
    placed = [(left, m) for m in headlines if (left := m.relative_distance) is not None]
    if not placed:
        return f"No verdict: no headline metric distinguishes real data from the {start}."
    left, worst = max(placed, key=lambda item: item[0])
    if _is_within_spread_of_real(worst):
        judged = "Good", "are indistinguishable from real data"
    elif left <= _GOOD:
        judged = "Good", "are close to real data"
    elif left <= _FAIR:
        judged = "Fair", f"are closer to real data than to the {start}"
    elif left == 1.0:
        judged = "Poor", f"are as far from real data as the {start} is"
    elif left < 1.0:
        judged = "Weak", f"are only a little better than the {start}"
    else:
        judged = "Poor", f"are further from real data than the {start} is"
    real, prior = _with_spread(worst.real), _with_spread(worst.prior)
    return (
        f"{judged[0]}: by {worst.name}, samples {judged[1]} ({format_value(worst.value)}; real "
        f"data {real}; {start} {prior})."
    )


def _is_within_spread_of_real(m: Metric) -> bool:
    """Whether samples score as real data do, or better, within the spread over draws of these."""
    if m.real is None or m.real.spread is None:
        return False
    sign = -1.0 if m.defined.direction == "higher" else 1.0
    return sign * (m.value - m.real.value) <= m.real.spread


def _with_spread(side: Estimate | None) -> str:
    if side is None:
        return _NOTHING
    # Draws that reuse all samples differ only by rounding errors, which are not a spread.
    if side.spread is None or side.spread <= _ROUNDING * abs(side.value):
        return format_value(side.value)
    return f"{format_value(side.value)} ± {side.spread:.2g}"


def format_value(value: float) -> str:
    """Formats a value with four digits, and small numbers as powers of ten."""
    return f"{value:.4g}"
