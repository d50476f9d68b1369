"""The report of a run: a self-contained page that depends only on the run and one evaluation."""

import base64
import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import pictures, records, settings
from experiments.build import Experiment
from experiments.data import describe_shape
from experiments.errors import UserError
from experiments.evaluation import Evaluation, Samples, translation
from experiments.evaluation import metrics as metrics_lib
from experiments.evaluation.metrics import Metrics
from experiments.evaluation.references import too_few
from experiments.files import check_types, read_json, write_json, write_text
from experiments.pictures import curves, flow, points
from experiments.pictures.images import neighbours
from experiments.run import Run
from experiments.sampling.draw import make_log_ratio
from experiments.sampling.opened import Opened
from experiments.training import metrics_log
from fdrl_jax import drift
from fdrl_jax.training.state import TrainState

_NUM_HEADLINES = 5
_MEDIA_TYPES = {".png": "image/png", ".gif": "image/gif"}
_SCROLLED = "curves.png"  # Its labels would be too small on a phone.
_STYLE = Path(__file__).with_suffix(".css").read_text("utf-8")


def draw(opened: Opened, samples: Samples, found: Evaluation, folder: Path) -> None:
    """Draws the pictures of an evaluation to its folder, and lists them with their captions."""
    experiment, state, run = opened.experiment, opened.checkpoint.state, opened.run
    source = experiment.source
    start = "prior samples" if source.starts is None else "source images"
    domains, shares = translation.domains_of(run.settings), translation.caption(found.metrics)
    captions: dict[str, str] = {}

    def add(name: str, figure: Figure, caption: str) -> None:
        pictures.save(figure, folder / name)
        captions[name] = caption

    add(
        "samples.png",
        pictures.samples_and_data(source, samples.prior, samples.refined, domains, shares),
        f"From left to right: {start}, where the flow starts; samples; and held-out data. "
        "Good samples look like the data.",
    )
    if source.kind == "points":
        add(
            "log_ratio.png",
            _field(experiment, state),
            "The estimated log density ratio, flowed samples over data, and the drift of the flow. "
            "There are too many samples in red regions and too few in blue ones.",
        )
    else:
        caption = f"Samples along the flow. Each row is one sample, from the {start} to the end."
        add("flow.png", flow.flow_strip(experiment, state), caption)
    if found.nearest:
        caption = "Samples, each followed by its nearest training images. Copies would look equal."
        add("neighbours.png", neighbours(samples.refined, found.nearest), caption)
    log = [r for r in metrics_log.read(run.metrics) if r["step"] <= opened.step]
    if log:
        add(
            _SCROLLED,
            curves.training(log, run.best_checkpoint()),
            "Training: the loss, the mean ratio (1 on data for an exact estimator), and the norms "
            "of the gradient and of the drift.",
        )
    if shots := run.read_snapshots(opened.step):
        course = pictures.course(source, shots)
        add("course.png", course, "The same samples at several steps of training.")
        if source.kind == "points":
            real = source.held_out(len(shots[0][1]), 1)
            points.animate_course(shots, real, folder / "course.gif")
            captions["course.gif"] = "The same samples over training, as an animation."
    write_json(folder / "pictures.json", captions)


def write(run: Run, record: Path) -> Path:
    """Writes the report of an evaluation, and that of the run if the evaluation is its own.

    Of the run, only its folder is read, without data or checkpoints. Returns the path of the page
    to look at.

    Raises:
      UserError: if a file is missing or damaged; names it.
    """
    path = record / "record.json"
    found = read_json(path, key=dict, metrics=dict, details=dict)
    key, shown = found["key"], found["details"]
    check_types(path, key, step=int, num_samples=int, settings=dict)
    details = {"start": "prior", "skipped": [], "num_samples": key["num_samples"], **shown}
    check_types(path, details, start=str, skipped=list, num_samples=int)
    check_types(path, details, num_held_out=(int, type(None)))
    captions = read_json(record / "pictures.json")
    check_types(record / "pictures.json", captions, **dict.fromkeys(captions, str))
    metrics, start = metrics_of(record), details["start"]
    verdict = metrics_lib.verdict(metrics, start)
    if few := too_few(details.get("num_held_out")):
        verdict = f"{verdict} {few[0].upper()}{few[1:]}."
    name = html.escape(run.data["name"])
    kind = html.escape(describe_shape(run.data["event_shape"]))
    computed = [(k.replace("_", " "), json.dumps(v)) for k, v in shown.items()]
    used = {k: str(v) for k, v in run.settings.items()}
    command = html.escape(_without_paths(run.command))
    changed = settings.differences(settings.of_scope(run.settings, "flow"), key["settings"])
    differing = html.escape("; ".join(changed.values()))
    sections = [
        f"<h1>FDRL on {name}, train step {key['step']:,}</h1>",
        f"<p>Samples from a density-ratio flow (FDRL) that was trained on {kind}, data set "
        f"<b>{name}</b>. Checkpoint of train step {key['step']:,} of "
        f"{run.settings['train.num_steps']:,}, evaluated on {details['num_samples']:,} samples."
        "</p>",
        f"<p>In this evaluation, settings differ from the run: {differing}.</p>" * bool(changed),
        f'<p class="lead">{html.escape(verdict)}</p>',
        _metrics_table(_headlines(metrics), start),
        f'<p class="note">{metrics_lib.NOTE}</p>',
        "<h2>Pictures</h2>",
        *(_figure(record, file, caption) for file, caption in captions.items()),
        "<h2>Metrics</h2>",
        _metrics_table(metrics, start),
        _folded("How the metrics were computed", _table(computed)),
        "<h2>Settings</h2>",
        f"<p>The run was created by this command:</p><pre>{command}</pre>",
        "<p>These settings differ from the defaults:</p>",
        _table([(k, used[k]) for k in settings.changed(run.settings)]),
        _folded("All settings", _table(list(used.items()))),
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>FDRL on {name}</title><style>{_STYLE}</style>{''.join(sections)}</html>\n"
    )
    write_text(record / "report.html", page)
    if record != records.of_run(run):
        return record / "report.html"
    write_text(run.report, page)
    return run.report


def metrics_of(record: Path) -> Metrics:
    """Returns the metrics of an evaluation.

    Raises:
      UserError: if its record is damaged.
    """
    path = record / "record.json"
    try:
        return metrics_lib.from_json(read_json(path, metrics=dict)["metrics"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its metrics are not readable ({error})") from error


def _headlines(metrics: Metrics) -> Metrics:
    """Returns the metrics to show first: headlines, then others with prior and real data."""

    def order(item: tuple[str, metrics_lib.Metric]) -> tuple[bool, bool]:
        metric = item[1]
        return not metric.defined.headline, metric.prior is None or metric.real is None

    return dict(sorted(metrics.items(), key=order)[:_NUM_HEADLINES])


def _without_paths(command: str) -> str:
    """Shortens absolute paths to their last part, because reports are shared."""

    def shortened(found: re.Match[str]) -> str:
        word = found[0].translate(str.maketrans("", "", "'\""))
        flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        is_path = value.startswith("/")
        return shlex.quote(f"{flag}{equals}{Path(value).name}") if is_path else found[0]

    # A word of a shell, of which parts may be quoted.
    return re.sub(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""", shortened, command)


def _metrics_table(metrics: Metrics, start: str) -> str:
    names = metrics_lib.columns(start)[:-1]
    header = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = []
    for metric, (_, *cells, _) in zip(metrics.values(), metrics_lib.rows(metrics), strict=True):
        values = "".join(map(_value_cell, names[1:], cells))
        lines.append(f"<tr><td>{_words(metric)}</td>{values}</tr>")
    table = f'<table class="metrics"><tr>{header}</tr>{"".join(lines)}</table>'
    return f'<div class="scroll">{table}</div>'


def _value_cell(label: str, text: str) -> str:
    # A narrow screen may break the line only before the sign.
    value = html.escape(text).replace("± ", "±&nbsp;")
    return f'<td class="value" data-label="{html.escape(label)}">{value}</td>'


def _words(metric: metrics_lib.Metric) -> str:
    """Returns what a metric measures, with its name, unit and direction."""
    d = metric.defined
    details = [metric.name, "no unit" if d.unit == "1" else d.unit]
    details += [f"{d.direction} is better"] if d.direction else []
    words = html.escape(f"{d.words[0].upper()}{d.words[1:]}")
    return f"{words}<small>{html.escape(', '.join(details))}</small>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(key)}</td><td><code>{html.escape(value)}</code></td></tr>"
        for key, value in rows
        if not Path(value).is_absolute()
    )
    return f'<div class="scroll"><table>{cells}</table></div>'


def _figure(record: Path, name: str, caption: str) -> str:
    # A record may come from a stranger, and its page is shared: no other file may get into it.
    own = [path.name for path in record.iterdir() if path.is_file() and not path.is_symlink()]
    media_type = _MEDIA_TYPES.get(Path(name).suffix)
    if name not in own or media_type is None:
        raise UserError(
            f"{record / 'pictures.json'} names {name[:80]!r}; a picture must be a PNG or GIF file "
            "in the same folder that exists and is not a link. Restore it, or remove its line"
        )
    encoded = base64.b64encode((record / name).read_bytes()).decode()
    text = html.escape(caption)
    source = f"data:{media_type};base64,{encoded}"
    opening = '<figure class="scrolled">' if name == _SCROLLED else "<figure>"
    return f'{opening}<img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _field(experiment: Experiment, state: TrainState) -> Any:
    problem, variables = experiment.problem, experiment.sampling_variables(state)
    drift_at = jax.jit(lambda x: drift(x, problem.potential(variables)))
    return points.log_ratio_and_drift(
        make_log_ratio(experiment, state),
        lambda x: np.asarray(drift_at(x)),
        experiment.source.held_out(4_000, 1),
    )
