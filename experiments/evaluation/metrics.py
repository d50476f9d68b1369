"""The metrics: their definitions, their values with a spread, and the verdict on samples."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np


class Definition(NamedTuple):
    """A family of metrics."""

    words: str  # What it measures, as a phrase.
    formula: str  # In plain text.
    direction: Literal["lower", "higher"] | None  # Which values are better; `None` if neither are.
    protocol: str  # How it is estimated.
    unit: str = ""  # Of the value, if it has one.
    headline: bool = False  # Whether the verdict depends on it.
    # How much worse than real data is far from them; at most the difference of the prior.
    far: float = math.inf


_NEIGHBOURS = "Kynkäänniemi et al. 2019, with the third neighbour, in a feature space."
_CLASSES = "By a classifier of real images; on the draws of the Fréchet distance."

# The glossary of the documentation follows from these.
DEFINITIONS: dict[str, Definition] = {
    "energy_ratio": Definition(
        "energy distance to the data in units of the sampling error of real data",
        "1 + D / (E|Y - Y'| (1/N + 1/M)), D the unbiased energy distance",
        "lower",
        "D is unbiased and averaged over several fresh data sets of N points, so real data score "
        "1 on average. Single scores of real data scatter; their spread is given.",
        headline=True,
    ),
    "energy_distance": Definition(
        "energy distance to the data",
        "2 E|X - Y| - E|X - X'| - E|Y - Y'|",
        "lower",
        "Unbiased (U-statistic), so real data scatter around 0 and values may be negative.",
        unit="unit of the data",
    ),
    "kl_to_data": Definition(
        "KL divergence of the samples from the known density",
        "E_q[log q - log p]",
        "lower",
        "The entropy of the samples is estimated from nearest neighbours (Kozachenko and "
        "Leonenko), so real data scatter around 0.",
        unit="nats",
        headline=True,
        far=1.0,
    ),
    "modes_hit": Definition(
        "number of modes of the mixture that samples reach",
        "modes with a sample within 4 standard deviations",
        "higher",
        "A sample belongs to its nearest mode.",
        unit="modes",
    ),
    "high_quality_share": Definition(
        "share of samples close to a mode",
        "share within 4 standard deviations of a mode",
        "higher",
        "A sample belongs to its nearest mode.",
    ),
    "log_ratio_kl": Definition(
        "error of the estimated log-ratio",
        "E_q~[log q~/p - log r] + E_p[r] - 1",
        "lower",
        "KL(q~ || r p), whose mass E_p[r] need not be 1; q~ are the samples after K steps.",
        unit="nats",
    ),
    "frechet": Definition(
        "Fréchet distance between Gaussians fitted to features",
        "|m_X - m_Y|² + tr(C_X + C_Y - 2 (C_X C_Y)^(1/2))",
        "lower",
        "Biased upwards for few images, so compare at the same number only. The name contains the "
        "feature space.",
        unit="squared unit of the features",
        headline=True,
    ),
    "precision": Definition(
        "share of samples within the neighbourhoods of real images",
        "share of x_i nearer to some y_j than the third neighbour of y_j",
        "higher",
        _NEIGHBOURS,
    ),
    "recall": Definition(
        "share of real images within the neighbourhoods of samples",
        "share of y_j nearer to some x_i than the third neighbour of x_i",
        "higher",
        _NEIGHBOURS,
    ),
    "top_probability": Definition(
        "mean probability of the most probable class",
        "E max_c p(c | x)",
        "higher",
        _CLASSES,
    ),
    "smallest_class_share": Definition(
        "share of the rarest class among the samples",
        "smallest share over the classes",
        "higher",
        _CLASSES,
    ),
    "class_accuracy": Definition(
        "share of samples that a classifier assigns to the class that they were drawn for",
        "share of i with argmax_c p(c | x_i) = y_i",
        "higher",
        "By a classifier of real images, on all samples of a run with network.by_class. Real data: "
        "accuracy of the classifier on held-out images.",
    ),
    "memorisation_auc": Definition(
        "probability that a sample is nearer to the training set than a held-out image",
        "area under the ROC curve of distances to the nearest training image",
        None,
        "0.5: as near as new images. 1: copies.",
    ),
    "target_share": Definition(
        "share of translated images that a classifier assigns to the target",
        "share of predictions that are the target",
        "higher",
        "By a support-vector classifier of pixels. An image that fools it counts as well, so read "
        "it next to the pictures.",
        headline=True,
    ),
    "own_source_nearest_share": Definition(
        "share of translated images whose nearest source is their own",
        "share of i with argmin_j |x_i - s_j| = i",
        "higher",
        "Distances of pixels. Real data: 1 / N, the score of images unrelated to the sources.",
    ),
    "distance_to_own_source": Definition(
        "distance between a translated image and its source",
        "mean over i of |x_i - s_i|",
        None,
        "For real images of the target: distance to a source image at random.",
        unit="pixel values in [-1, 1], root mean square",
    ),
    "fid": Definition(
        "Fréchet distance in the features of the Inception network",
        "as frechet",
        "lower",
        "Of the network of torch-fidelity, against the training set (translation: held-out images "
        "of the target).",
        unit="squared unit of the features",
        headline=True,
    ),
}


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


Metrics = dict[str, Metric]
NOTE = "Mean ± standard deviation over draws of the given number of samples."
_NOTHING = "-"  # The text of a value that is unknown or not meaningful.
_ROUNDING = 1e-9  # Relative rounding error.
_GOOD, _FAIR = 0.1, 0.5  # Largest parts of the way from real data to the prior.
_SPREADS = 2.0  # Within this many standard deviations of real data, samples score as they do.


def estimate(values: Iterable[float]) -> Estimate:
    """Returns the mean and standard deviation (with 1 / (N - 1)) of values over draws."""
    drawn = [float(value) for value in values]
    return Estimate(float(np.mean(drawn)), float(np.std(drawn, ddof=1)) if drawn[1:] else None)


def by_name(metrics: Iterable[Metric]) -> Metrics:
    """Returns metrics by name, in the order of the definitions."""
    order = list(DEFINITIONS)
    by_definition = sorted(metrics, key=lambda metric: order.index(metric.definition))
    return {metric.name: metric for metric in by_definition}


def measured(definition: str, *sides: Iterable[float], space: str = "", num: int = 0) -> Metric:
    """Returns a metric, named by its definition, the feature space and the number of samples.

    The sides are values over draws of the samples, and of the prior and real data if known. The
    number, on which most metrics depend, is written as in `frechet_svc_64` or `fid_50k`.
    """
    thousands, rest = divmod(num, 1_000)
    count = f"{num}" if rest or not thousands else f"{thousands}k"
    name = "_".join(filter(None, (definition, space, count if num else "")))
    return Metric(name, definition, *map(estimate, sides))


# The keys of a metric in JSON: of the value and of the spread of each side.
_SIDES = (("value", "spread"), ("prior", "prior_spread"), ("real", "real_spread"))


def to_json(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Returns metrics as values for JSON; `[name]["value"]` is the mean over draws."""
    stored: dict[str, dict[str, Any]] = {}
    for name, m in metrics.items():
        stored[name] = {"definition": m.definition, "direction": m.defined.direction}
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
    return [(m.name, *_texts(m), m.defined.direction or "") for m in metrics.values()]


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
    compared = [m for m in headlines if m.prior and m.real]
    if not any(_gap(m) for m in compared):
        return f"No verdict: no headline metric distinguishes real data from the {start}."
    worst = max(compared, key=position)
    where = position(worst)
    if where <= 0.0:
        names = " and ".join(m.name for m in compared)
        judged = f"Good: by {names}, samples cannot be distinguished from real data"
    else:
        grade = "Good" if where <= _GOOD else "Fair" if where <= _FAIR else "Poor"
        words = {
            "Good": "close to real data",
            "Fair": f"nearer to real data than to the {start}",
            "Poor": "far from real data",
        }
        judged = f"{grade}: samples are {words[grade]}, by {worst.name}"
        judged += ", in which they are worst" * (len(compared) > 1)
    samples, prior, real = _texts(worst)
    return f"{judged} ({samples}; real data {real}; {start} {prior})."


def position(m: Metric) -> float:
    """Returns where samples are on the way from real data (0) to the prior, or to `far` (1).

    At most 0 means that they score as real data do, within the spread of these. It is infinite for
    samples that do not, if the metric cannot distinguish the prior from real data.
    """
    if m.prior is None or m.real is None:
        raise ValueError(f"{m.name} has no values of the prior and real data")
    excess = _sign(m) * (m.value - m.real.value)
    if excess <= _SPREADS * (m.real.spread or 0.0) + _ROUNDING * abs(m.real.value):
        return min(0.0, excess)
    return excess / min(gap, m.defined.far) if (gap := _gap(m)) else math.inf


def _gap(m: Metric) -> float:
    """Returns by how much real data score better than the prior; 0 if that is not significant."""
    if m.prior is None or m.real is None:
        return 0.0
    gap = _sign(m) * (m.prior.value - m.real.value)
    noise = math.hypot(m.prior.spread or 0.0, m.real.spread or 0.0)
    return gap if _SPREADS * noise < gap < math.inf else 0.0


def _sign(m: Metric) -> float:
    return -1.0 if m.defined.direction == "higher" else 1.0


def _texts(m: Metric) -> list[str]:
    """Returns the texts of the samples, the prior and real data, with as many digits as matter."""
    sides = (m.samples, m.prior, m.real)
    # A single value has as many digits as its spread would allow, which is that of real data.
    usual = m.real.spread if m.real else None
    return [_NOTHING if side is None else _text(side, usual) for side in sides]


def _text(side: Estimate, usual: float | None) -> str:
    # Draws that reuse all samples differ only by rounding errors, which are not a spread.
    value, spread = side.value, side.spread or 0.0
    if spread <= _ROUNDING * abs(value):
        return format_value(value, usual)
    return f"{format_value(value, spread)} ± {format_value(spread, spread)}"


def format_value(value: float, spread: float | None = None) -> str:
    """Formats a value to the second digit of its spread, or with three digits."""
    if not spread or not math.isfinite(value) or not math.isfinite(spread):
        return f"{value:.3g}"
    decimals = 1 - math.floor(math.log10(spread))
    if decimals > 6 or abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"
