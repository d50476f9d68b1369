"""Metrics as records: a value with its spread, next to the prior and to real data."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluation.definitions import DEFINITIONS, Definition


class Estimate(NamedTuple):
    """A mean over draws and its standard deviation; a single draw has none."""

    value: float
    spread: float | None = None


class Metric(NamedTuple):
    """One metric of one set of samples.

    Attributes:
      name: the definition, the feature space if there is one, and the number of samples per draw,
        as in `frechet_random_conv_500`.
      definition: key of `DEFINITIONS`.
      samples: of the generated samples.
      prior: of the same number of draws from the prior; for translation, of the source images.
        `None` where it is unknown or makes no sense.
      real: of the same number of real examples; `None` likewise.
    """

    name: str
    definition: str
    samples: Estimate
    prior: Estimate | None = None
    real: Estimate | None = None

    @property
    def value(self) -> float:
        """Mean over draws."""
        return self.samples.value

    @property
    def defined(self) -> Definition:
        """What the metric means."""
        return DEFINITIONS[self.definition]

    @property
    def way_left(self) -> float | None:
        """How far samples are from real data, on the way from real data (0) to the prior (1).

        `None` without both ends, or where prior and real data cannot be told apart.
        """
        if self.prior is None or self.real is None:
            return None
        gap = self.prior.value - self.real.value
        noise = math.hypot(self.prior.spread or 0.0, self.real.spread or 0.0)
        return (self.value - self.real.value) / gap if abs(gap) > 2.0 * noise else None


NOTE = "Mean ± standard deviation over draws of the given number of samples."
_ROUNDING = 1e-9  # Relative.

Metrics = dict[str, Metric]


def estimate(values: Iterable[float]) -> Estimate:
    """Returns mean and standard deviation (with 1 / (N - 1)) of the values of several draws."""
    drawn = [float(value) for value in values]
    return Estimate(float(np.mean(drawn)), float(np.std(drawn, ddof=1)) if drawn[1:] else None)


def by_name(metrics: Iterable[Metric]) -> Metrics:
    """Returns metrics by their names, in the order of the definitions, which is that of reading."""
    order = list(DEFINITIONS)
    by_definition = sorted(metrics, key=lambda metric: order.index(metric.definition))
    return {metric.name: metric for metric in by_definition}


def with_count(name: str, num_samples: int) -> str:
    """Returns a metric's name with its number of samples: `fid_50k`, `fid_5k`, `fid_360`.

    Most metrics depend on this number, so values with different numbers do not compare.
    """
    thousands, rest = divmod(num_samples, 1_000)
    return f"{name}_{num_samples}" if rest or not thousands else f"{name}_{thousands}k"


def to_json(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Returns metrics as JSON can hold them: `[name]["value"]` is the mean over draws."""
    return {name: _fields(metric) for name, metric in metrics.items()}


def from_json(stored: Mapping[str, Mapping[str, Any]]) -> Metrics:
    """Undoes `to_json`.

    Raises:
      KeyError, TypeError or ValueError: for what `to_json` does not return.
    """

    def read(fields: Mapping[str, Any], side: str, spread: str) -> Estimate | None:
        for value in (fields[side], fields[spread]):
            if not isinstance(value, int | float | None):
                raise TypeError(f"{side!r} holds {str(value)[:80]!r}")
        return None if fields[side] is None else Estimate(fields[side], fields[spread])

    return by_name(
        Metric(
            name,
            fields["definition"],
            _required(read(fields, "value", "spread")),
            read(fields, "prior", "prior_spread"),
            read(fields, "real", "real_spread"),
        )
        for name, fields in stored.items()
    )


def _required(found: Estimate | None) -> Estimate:
    if found is None:
        raise TypeError("'value' holds None")
    return found


def _fields(metric: Metric) -> dict[str, Any]:
    prior, real = (side or (None, None) for side in (metric.prior, metric.real))
    return {
        "value": metric.samples.value,
        "spread": metric.samples.spread,
        "prior": prior[0],
        "prior_spread": prior[1],
        "real": real[0],
        "real_spread": real[1],
        "unit": metric.defined.unit,
        "direction": metric.defined.direction,
        "definition": metric.definition,
    }


def columns(start: str = "prior") -> tuple[str, ...]:
    """Returns the heads of the columns of `rows`.

    Args:
      start: what samples start from: "prior", or "source" for a translation.
    """
    return ("metric", "samples", start, "real data", "better")


def rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """Returns a row of texts per metric, below `columns`."""
    return [
        (m.name, *map(_with_spread, (m.samples, m.prior, m.real)), m.defined.direction or "")
        for m in metrics.values()
    ]


def table(metrics: Metrics, start: str = "prior") -> str:
    """Returns the table for a terminal, with the sentences of `summary`."""
    lines = [columns(start), *rows(metrics)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", summary(metrics, start)])


def summary(metrics: Metrics, start: str = "prior") -> str:
    """Returns what the table shows, and one sentence per headline metric."""
    return "\n".join([NOTE, *sentences(metrics, start)])


def sentences(metrics: Metrics, start: str = "prior") -> list[str]:
    """Says in words where samples are between real data and their start, per headline metric."""
    headlines = [m for m in metrics.values() if m.defined.headline and m.way_left is not None]
    return [_sentence(metric, start) for metric in headlines]


def _sentence(metric: Metric, start: str) -> str:
    left = metric.way_left or 0.0
    if left > 1.0:
        verdict = f"the samples are further from real data than the {start} is"
    elif left < 0.0:
        verdict = "the samples score no worse than real data of the same number"
    else:
        verdict = f"the samples are at {100 * left:.0f}% of the way from real data to the {start}"
    words = metric.defined.words
    return (
        f"{words[0].upper()}{words[1:]} ({metric.name}, {metric.defined.direction} is better): "
        f"{verdict}."
    )


def _with_spread(side: Estimate | None) -> str:
    if side is None:
        return "-"
    # Draws that reuse all samples differ only by rounding, which says nothing about the spread.
    if side.spread is None or side.spread <= _ROUNDING * abs(side.value):
        return format_value(side.value)
    return f"{format_value(side.value)} ± {side.spread:.2g}"


def format_value(value: Any) -> str:
    """Formats a value for people: four digits, small numbers as powers of ten."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
