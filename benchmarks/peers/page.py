"""Results of the race: the file, the table and the pictures."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.peers import efficientnet, methods, race
from experiments.data.decode import to_unit
from experiments.errors import UserError
from experiments.files import read_npz
from experiments.pictures import images

Result = dict[str, Any]
# Keys of the distances that `public` adds to figures.
PUBLIC = f"frechet_{efficientnet.NAME}"
DENOISED = f"{PUBLIC}_denoised"
NAMES = {
    "fdrl": "FDRL",
    "flow_matching": "flow matching",
    "ot_flow_matching": "flow matching, optimal pairs",
    "meanflow": "MeanFlow",
    "r3gan": "R3GAN, small",
}
# Settings that may differ from the default, because `_name` says so, or as they change no training.
_VARIED = (
    "by_class", "num_components", "prior_rank", "from_prior", "denoiser_width", "evaluations",
    "blocks",
)  # fmt: skip
_MOST_EVALUATIONS = 36  # Per sample in the pictures, so that no method has more.
_MARKERS = "os^Dvp"  # Of the contestants of a method in the pictures.
_GRID = 36  # Images of a method in the picture of samples.
_COLUMNS = (
    "method", "CPU seconds", "seeds", "steps", "parameters", "peak memory", "evaluations",
    "ms per sample", "top probability", "class accuracy", "class shares", "nearest was trained on",
    "Fréchet distance", "in public features", "denoised", "FID",
)  # fmt: skip


def read(*files: Path) -> list[Result]:
    """Reads the results, one JSON object per line; a missing file has none."""
    texts = [file.read_text() for file in files if file.exists()]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def line(result: Result) -> str:
    """Returns a result in one line of text, for the terminal."""
    texts = [f"{result['method']}, seed {result['seed']}, {result['steps']} steps"]
    texts += ["diverged"] if result["diverged"] else []
    for row in [{"evaluations": "real"} | result["real"], *result["samples"]]:
        kept = f" ({row['kept']:.0%} kept)" if "kept" in row else ""
        texts.append(figures_line(f"{row['evaluations']}{kept}", row))
    return "; ".join(texts)


def figures_line(name: str, figures: dict[str, Any]) -> str:
    """Returns the figures of images in text: distance, top probability, classes."""
    shares = f"{figures['min_share']:.1%} to {figures['max_share']:.1%}"
    text = f"{name}: {figures['frechet']:.3f}, {figures['top_probability']:.3f}, {shares}"
    accuracy = figures.get("class_accuracy")
    return text if accuracy is None else f"{text}, class accuracy {accuracy:.0%}"


def of_present_settings(results: list[Result], name: str) -> list[Result]:
    """Returns the results of a data set with default settings but for those that names tell."""

    def is_default(result: Result) -> bool:
        default = _defaults(result)
        varied = {key: default[key] for key in _VARIED if key in default}
        return result["settings"] | varied == default

    return [result for result in results if result["data"] == name and is_default(result)]


def by_judge(results: list[Result]) -> dict[str, list[Result]]:
    """Groups results whose figures can be compared, by the description of their judge.

    A judge is trained once per machine and precision, and its accuracy identifies it.
    """
    groups: dict[str, list[Result]] = {}
    for r in results:
        judge = f"Judge with an accuracy of {r['judge_accuracy']:.2%} in {r['precision']}"
        groups.setdefault(f"{judge}, {r['num_samples']:,} samples", []).append(r)
    return groups


def table(results: list[Result]) -> str:
    """Returns a table in Markdown: means over seeds, and the distance of each seed."""
    rows = [_row("real images", [result["real"] for result in results], results, trained=False)]
    groups: dict[tuple[Any, ...], list[tuple[Result, Result]]] = {}
    for result in _in_order(results):
        for row in result["samples"]:
            trained_for = result["budget"] if row["evaluations"] else 0.0
            of_row = result if trained_for else _of_prior(result)
            key = (trained_for, _place(of_row), row["evaluations"], "kept" in row)
            groups.setdefault(key, []).append((row, of_row))
    for key, group in sorted(groups.items()):
        samples, trained = map(list, zip(*group, strict=True))
        rows.append(_row(_label(trained[0], samples[0]), samples, trained, trained=key[0] > 0))
    rows += [
        f"| {_name(r)} | {r['budget']:,.0f} | seed {r['seed']} diverged at step "
        f"{r['steps']:,} |" + " |" * (len(_COLUMNS) - 3)
        for r in results
        if r["diverged"]
    ]
    header = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"
    return "\n".join([header, *rows])


def draw(results: list[Result], file: Path) -> None:
    """Draws the distance without rejection against the CPU seconds: a point per seed.

    There is a panel per judge. A line is the mean over seeds of one contestant, and a dotted line
    is the prior of FDRL. A point is the longest sampling of at most 36 evaluations per sample.
    """
    groups, looks = by_judge(results), _looks([r for r in results if r["samples"]])
    figure, axes = plt.subplots(
        ncols=len(groups), figsize=(2.8 * len(groups) + 3.2, 3.6), dpi=130, sharex=True,
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    ticks = sorted({result["budget"] for result in results})
    for ax, (judge, comparable) in zip(axes[0], groups.items(), strict=True):
        for place, look in looks.items():
            _draw_contestant(ax, [r for r in comparable if _place(r) == place], look)
        real = np.mean([result["real"]["frechet"] for result in comparable])
        ax.axhline(real, color="0.4", ls="--", lw=1)
        ax.set_title(textwrap.fill(judge, 32), fontsize=8)
        ax.set(xscale="log", yscale="log", xlabel="CPU seconds of training")
        ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
        ax.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        ax.minorticks_off()
    axes[0, 0].set_ylabel("Fréchet distance")
    handles = [Line2D([], [], ms=4, lw=1, **look, label=place[-1]) for place, look in looks.items()]
    handles.append(Line2D([], [], color="0.4", ls=":", lw=1, label="priors"))
    handles.append(Line2D([], [], color="0.4", ls="--", lw=1, label="real images"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def _looks(results: list[Result]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Returns a colour per method, and a marker per contestant of it, by their place."""
    looks: dict[tuple[Any, ...], dict[str, Any]] = {}
    for place in sorted({_place(result) for result in results}):
        marker = _MARKERS[sum(other[0] == place[0] for other in looks) % len(_MARKERS)]
        looks[place] = {"color": f"C{place[0]}", "marker": marker}
    return looks


def _draw_contestant(ax: Axes, results: list[Result], look: dict[str, Any]) -> None:
    """Draws the results of one contestant by one judge."""
    rows = [(r["budget"], _longest(r).get(_name(r))) for r in results]
    points = [(budget, row["frechet"]) for budget, row in rows if row]
    means = {b: np.mean([d for other, d in points if other == b]) for b, _ in sorted(points)}
    ax.plot(list(means), list(means.values()), lw=1.5, color=look["color"])
    ax.plot(*np.array(points).reshape(-1, 2).T, ls="", ms=4, **look)
    priors = [row["frechet"] for r in results for row in r["samples"] if not row["evaluations"]]
    if priors:
        ax.axhline(np.mean(priors), color=look["color"], ls=":", lw=1)


def draw_samples(results: list[Result], cache: Path, real: np.ndarray, file: Path) -> None:
    """Draws samples of all methods after their longest training, and real images.

    Args:
      results: of one data set.
      cache: folder of the samples.
      real: images of the data set, [N, H, W, C] uint8.
      file: of the picture.

    Raises:
      UserError: if the samples of a method are not in the cache.
    """
    longest = max(result["budget"] for result in results)
    sets: dict[str, np.ndarray] = {}
    for result in _in_order(r for r in results if r["budget"] == longest):
        for label, row in _longest(result).items():
            if label not in sets:
                name = race.samples_name(race.run_of(result), row)
                if not (cache / name).exists():
                    raise UserError(
                        f"{cache / name} is missing; samples are kept by the command that runs the "
                        "race"
                    )
                sets[label] = to_unit(read_npz(cache / name)["arr_0"][:_GRID])
    figure = images.side_by_side(sets | {"real images": to_unit(real[:_GRID])})
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def _in_order(results: Iterable[Result]) -> list[Result]:
    """Sorts results as `NAMES`, then by labels, prior and network, then by seed."""
    return sorted(results, key=lambda r: (_place(r), r["seed"]))


def _place(result: Result) -> tuple[int, bool, int, int, str]:
    """Returns the place of a contestant in tables, which is the same for its seeds only."""
    settings, method = result["settings"], list(NAMES).index(result["method"])
    num, rank = _prior(result)
    return method, settings.get("by_class", False), num, rank, _name(result)


def _prior(result: Result) -> tuple[int, int]:
    """Returns the number of Gaussians from which a contestant starts, and their rank, or zeros."""
    settings = result["settings"]
    if result["method"] != "fdrl" and not settings.get("from_prior"):
        return 0, 0
    num = settings["num_components"]
    has_rank = settings["by_class"] or num > 1  # One Gaussian has full rank.
    return num, settings["prior_rank"] if has_rank else 0


def _name(result: Result) -> str:
    """Returns the name of a contestant: with its labels, prior and network where they differ."""
    settings, name = result["settings"], NAMES[result["method"]]
    with_labels, starts = settings.get("by_class", False), settings.get("from_prior", False)
    name += " with labels" * with_labels + ", from FDRL's prior" * starts
    num, rank = _prior(result)
    if num:
        name += f", {num} Gaussian{'s' * (num > 1)}{' per class' * with_labels}"
        name += f" of rank {rank}" * (rank not in (0, _defaults(result)["prior_rank"]))
    name += " and a denoiser" * bool(settings.get("denoiser_width"))
    blocks, usual = (all_of.get("blocks", ()) for all_of in (settings, _defaults(result)))
    for index, what in enumerate(("channels", "strides")):
        values = [block[index] for block in blocks]
        if values != [block[index] for block in usual]:
            name += f", {what} {', '.join(map(str, values))}"
    return name


def _of_prior(result: Result) -> Result:
    """Returns a result as that of a contestant whose prior it shares."""
    default = _defaults(result)
    shared = {key: default[key] for key in ("denoiser_width", "blocks") if key in default}
    return result | {"settings": result["settings"] | shared}


def _longest(result: Result) -> dict[str, Result]:
    """Returns the rows of the longest sampling that the default settings have, by label.

    It has at most 36 evaluations, also per kept sample.
    """
    lengths = _defaults(result)["evaluations"]
    return {
        _label(result, row): row
        for row in sorted(result["samples"], key=lambda row: int(row["evaluations"]))
        if row["evaluations"] in lengths and 0 < _evaluations([row]) <= _MOST_EVALUATIONS
    }


def _defaults(result: Result) -> methods.Settings:
    return methods.defaults(tuple(result["shape"]), result["budget"])[result["method"]]


def _label(result: Result, row: dict[str, Any]) -> str:
    """Returns what a table calls samples."""
    if row["evaluations"] == 0:
        return f"prior of {_name(result)}"
    return _name(result) + (", kept by the ratio" if "kept" in row else "")


def _evaluations(rows: list[dict[str, Any]]) -> float:
    """Returns the evaluations per sample that is kept, for the same samples of several seeds."""
    return float(rows[0]["evaluations"] / np.mean([row.get("kept", 1.0) for row in rows]))


def _row(label: str, rows: list[Result], results: list[Result], *, trained: bool) -> str:
    def mean(key: str, of: list[Result] = rows) -> float:
        return float(np.mean([one[key] for one in of]))

    cells = [label] + 7 * [""]
    if trained:
        cells[1:] = [
            f"{mean('train_cpu_seconds', results):,.0f}",
            f"{len(rows)}",
            f"{mean('steps', results):,.0f}",
            f"{results[0]['parameters'] / 1e6:.2f} M",
            f"{max(result['peak_megabytes'] for result in results):,} MB",
            f"{_evaluations(rows):.0f}",
            f"{1e3 * mean('cpu_seconds'):.2f}",
        ]

    def of_all(key: str, form: str) -> str:
        """Of real images and of priors, which are the same in all runs, also of some rows only."""
        known = [row for row in rows if key in row]
        is_complete = known and (len(known) == len(rows) or not trained)
        return f"{mean(key, known):{form}}" if is_complete else ""

    distances = ", ".join(f"{row['frechet']:.2f}" for row in rows)
    cells += [
        f"{mean('top_probability'):.3f}",
        of_all("class_accuracy", ".0%"),
        f"{mean('min_share'):.1%} to {mean('max_share'):.1%}",
        of_all("training_share", ".1%"),
        f"{mean('frechet'):.2f}" + (f" ({distances})" if trained and len(rows) > 1 else ""),
        of_all(PUBLIC, ".1f"),
        of_all(DENOISED, ".1f"),
        "",  # FID, whose weights do not ship.
    ]
    return f"| {' | '.join(cells)} |"
