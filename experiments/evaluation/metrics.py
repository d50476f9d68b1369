"""Metrics with their spread, next to the values of the prior and of real data."""

import itertools
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

    In a translation, source images replace the prior. A side is `None` if it is unknown or not
    meaningful.
    """

    # The definition, the feature space if there is one, and the number of samples per draw, as in
    # `frechet_random_conv_500`.
    name: str
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
        better than real data. The metric then says nothing about the samples.
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
    """Returns a metric's name with its number of samples: `fid_50k`, `fid_5k`, `fid_360`.

    Most metrics depend on this number, so values with different numbers are not comparable.
    """
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
    for name, metric in metrics.items():
        stored[name] = {}
        for keys, side in zip(_SIDES, (metric.samples, metric.prior, metric.real), strict=True):
            stored[name] |= zip(keys, side or (None, None), strict=True)
        defined = {"unit": metric.defined.unit, "direction": metric.defined.direction}
        stored[name] |= {**defined, "definition": metric.definition}
    return stored


def from_json(stored: Mapping[str, Mapping[str, Any]]) -> Metrics:
    """The inverse of `to_json`.

    Raises:
      KeyError, TypeError or ValueError: for content that `to_json` cannot return.
    """
    read = []
    for name, fields in stored.items():
        for key in itertools.chain(*_SIDES):
            is_missing = fields[key] is None and key == "value"
            if is_missing or not isinstance(fields[key], int | float | None):
                raise TypeError(f"{key!r} holds {str(fields[key])[:80]!r}")
        samples, *others = (Estimate(*(fields[key] for key in keys)) for keys in _SIDES)
        known = [None if side.value is None else side for side in others]
        read.append(Metric(name, fields["definition"], samples, *known))
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
    """Returns the table for a terminal without its empty columns, followed by `summary`."""
    padded = []
    for column in zip(columns(start), *rows(metrics), strict=True):
        if set(column[1:]) != {_NOTHING}:
            width = max(map(len, column))
            padded.append([cell.ljust(width) for cell in column])
    lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return "\n".join([*lines, "", summary(metrics, start)])


def summary(metrics: Metrics, start: str = "prior") -> str:
    """Returns a note, and a sentence per headline metric: where samples are on the way to start."""
    return "\n".join([NOTE, *(_sentence(*item, start) for item in _placed(metrics))])


def verdict(metrics: Metrics, start: str = "prior") -> str:
    """Returns in a sentence whether the samples are good, with the reason.

    The headline metric in which the samples are worst decides. Its relative distance is at most 0.1
    for good samples, 0.5 for fair ones and 1 for weak ones.
    """
    for m in metrics.values():
        if m.defined.headline and not math.isfinite(m.value):
            return f"No verdict: the {m.defined.words} ({m.name}) is not a finite number."
    placed = _placed(metrics)
    if not placed:
        return f"No verdict: no headline metric distinguishes real data from the {start}."
    left, worst = max(placed, key=lambda item: item[0])
    words = f"the {worst.defined.words} ({worst.name})"
    scope = f"in all {len(placed)} headline metrics" if len(placed) > 1 else f"by {words}"
    if left <= _GOOD:
        where = f"at most {_on_the_way(max(left, 0.0), start)}"
        return f"Good: the samples are close to real data {scope}, {where}."
    if left > 1.0:
        return f"Poor: by {words}, the samples are further from real data than the {start} is."
    where = f"at {_on_the_way(left, start)}"
    if left <= _FAIR:
        return f"Fair: the samples are nearer to real data than to the {start}; {words} is {where}."
    return f"Weak: the samples are only a little better than the {start}; {words} is {where}."


def _placed(metrics: Metrics) -> list[tuple[float, Metric]]:
    """Returns the headline metrics that place samples between real data and their start."""
    headlines = [(m.relative_distance, m) for m in metrics.values() if m.defined.headline]
    return [(left, m) for left, m in headlines if left is not None and math.isfinite(left)]


def _sentence(left: float, metric: Metric, start: str) -> str:
    if left > 1.0:
        verdict = f"the samples are further from real data than the {start} is"
    elif left < 0.0:
        verdict = "the samples score no worse than real data of the same number"
    else:
        verdict = f"the samples are at {_on_the_way(left, start)}"
    words = metric.defined.words
    return (
        f"{words[0].upper()}{words[1:]} ({metric.name}, {metric.defined.direction} is better): "
        f"{verdict}."
    )


def _on_the_way(left: float, start: str) -> str:
    return f"{100 * left:.0f}% of the distance from real data (0%) to the {start} (100%)"


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
