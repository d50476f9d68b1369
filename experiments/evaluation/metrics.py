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
    unit: str = ""
    protocol: str = ""  # What else one should know of it.
    headline: bool = False  # Whether the verdict depends on it.
    # How much worse than real data is far from them; at most the difference of the prior.
    far: float = math.inf


# The table of metrics in the documentation follows from these.
DEFINITIONS: dict[str, Definition] = {
    "energy_ratio": Definition(
        "energy distance to the data in units of the sampling error of real data",
        "1 + D / (E|Y - Y'| (1/N + 1/M)), D the unbiased energy distance",
        "lower",
        protocol="Over fresh data sets of N points. Real data score 1 on average, and scatter.",
        headline=True,
    ),
    "energy_distance": Definition(
        "energy distance to the data",
        "2 E|X - Y| - E|X - X'| - E|Y - Y'|",
        "lower",
        "unit of the data",
        "Unbiased, so real data scatter around 0 and values may be negative.",
    ),
    "kl_to_data": Definition(
        "KL divergence of the samples from the known density",
        "E_q[log q - log p]",
        "lower",
        "nats",
        "The entropy is estimated from nearest neighbours, so real data scatter around 0.",
        headline=True,
        far=1.0,
    ),
    "modes_hit": Definition(
        "number of modes of the mixture that samples reach",
        "modes that are the nearest one of a sample within 4 standard deviations",
        "higher",
        "modes",
    ),
    "high_quality_share": Definition(
        "share of samples close to a mode",
        "share within 4 standard deviations of a mode",
        "higher",
    ),
    "log_ratio_kl": Definition(
        "error of the estimated log-ratio",
        "E_q~[log q~/p - log r] + E_p[r] - 1",
        "lower",
        "nats",
        "KL(q~ || r p), whose mass E_p[r] need not be 1; q~ are the samples after K steps.",
    ),
    "frechet": Definition(
        "Fréchet distance between Gaussians fitted to features",
        "|m_X - m_Y|² + tr(C_X + C_Y - 2 (C_X C_Y)^(1/2))",
        "lower",
        "squared unit of the features",
        "Biased upwards for few images, so compare at the same number and in the same space only.",
        headline=True,
    ),
    "precision": Definition(
        "share of samples within the neighbourhoods of real images",
        "share of x_i nearer to some y_j than the third neighbour of y_j",
        "higher",
        protocol="Kynkäänniemi et al. 2019.",
    ),
    "recall": Definition(
        "share of real images within the neighbourhoods of samples",
        "share of y_j nearer to some x_i than the third neighbour of x_i",
        "higher",
        protocol="Kynkäänniemi et al. 2019.",
    ),
    "top_probability": Definition(
        "mean probability of the most probable class",
        "E max_c p(c | x), p a classifier of real images",
        "higher",
    ),
    "smallest_class_share": Definition(
        "share of the rarest class among the samples",
        "smallest share over the classes that a classifier assigns",
        "higher",
    ),
    "class_accuracy": Definition(
        "share of samples that a classifier assigns to the class that they were drawn for",
        "share of i with argmax_c p(c | x_i) = y_i",
        "higher",
        protocol="Of a run with network.by_class. Real data: accuracy on held-out images.",
    ),
    "memorisation_auc": Definition(
        "probability that a sample is nearer to the training set than a held-out image",
        "area under the ROC curve of distances to the nearest training image",
        None,
        protocol="0.5: as near as new images. 1: copies.",
    ),
    "target_share": Definition(
        "share of translated images that a classifier assigns to the target",
        "share of predictions that are the target",
        "higher",
        protocol="By a support-vector classifier of pixels, which some images fool.",
        headline=True,
    ),
    "own_source_nearest_share": Definition(
        "share of translated images whose nearest source is their own",
        "share of i with argmin_j |x_i - s_j| = i",
        "higher",
        protocol="Distances of pixels. Real data: 1 / N, that of images unrelated to the sources.",
    ),
    "distance_to_own_source": Definition(
        "distance between a translated image and its source",
        "mean over i of |x_i - s_i|",
        None,
        "pixel values in [-1, 1], root mean square",
        "For real images of the target: distance to a source image at random.",
    ),
    "fid": Definition(
        "Fréchet distance in the features of the Inception network",
        "as frechet",
        "lower",
        "squared unit of the features",
        "To the training set (translation: to held-out images of the target).",
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
        stored[name] = {"definition": m.definition}
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
    excess = _sign(m) * (m.value - real.value)
    if excess <= _SPREADS * (real.spread or 0.0) + _ROUNDING * abs(real.value):
        return min(0.0, excess)
    gap = _gap(m, prior, real)
    return excess / min(gap, m.defined.far) if gap else math.inf


def _gap(m: Metric, prior: Estimate, real: Estimate) -> float:
    """Returns by how much real data score better than the prior; 0 if that is not significant."""
    gap = _sign(m) * (prior.value - real.value)
    noise = math.hypot(prior.spread or 0.0, real.spread or 0.0)
    return gap if _SPREADS * noise < gap < math.inf else 0.0


def _sign(m: Metric) -> float:
    return -1.0 if m.defined.direction == "higher" else 1.0


def _texts(m: Metric) -> list[str]:
    """Returns the texts of the samples, the prior and real data, with as many digits as matter."""
    # A single value has as many digits as its spread would allow, which is that of real data.
    usual = m.real.spread if m.real else None
    return [_text(side, usual) if side else _NOTHING for side in (m.samples, m.prior, m.real)]


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
    if value:  # With at least two and at most five digits.
        size = math.floor(math.log10(abs(value)))
        decimals = min(decimals, 4 - size)
    if decimals > 6 or abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"
