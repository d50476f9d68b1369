"""The report of an evaluation: a self-contained page, a picture first and a sentence next."""

import base64
import html
import io
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

from experiments import draw, log, pictures, settings
from experiments.data.source import describe_shape
from experiments.evaluation import Evaluation, Samples, metrics
from experiments.evaluation.metrics import Metrics
from experiments.files import write_text
from experiments.pictures import images, style
from experiments.run import Opened, Run
from fdrl_jax import bregman, drift

_MAX_PATH_VALUES = 2**25  # Of the paths of images, which are in memory at once: 128 MiB.
_STYLE = Path(__file__).with_suffix(".css").read_text("utf-8")


def draw_pictures(
    opened: Opened, samples: Samples, found: Evaluation, folder: Path
) -> dict[str, str]:
    """Draws the pictures of an evaluation, and returns captions by file name, the top one first."""
    model, state, run = opened.experiment, opened.state, opened.run
    source, data, flow = model.source, run.settings.data, model.settings.flow
    is_pair, is_image = source.starts is not None, source.kind == "images"
    start, where = ("source images", "the source") if is_pair else ("prior samples", "the prior")
    captions: dict[str, str] = {}

    def add(name: str, figure: Figure, caption: str) -> None:
        style.save(figure, folder / name)
        captions[name] = caption

    domains = (data.source_class or "source", data.target_class or "target")
    add(
        "samples.png",
        pictures.samples_and_data(source, samples.prior, samples.refined, domains),
        f"From left to right: {start}, where the flow starts; samples; and held-out data.",
    )
    values = (flow.num_steps + flow.num_refine_steps + 1) * math.prod(source.event_shape)
    num_images = min(max(_MAX_PATH_VALUES // values, images.NUM_ROWS), 36)
    path = draw.paths(model, state, num_images if is_image else 2_000)
    pictures.animate_flow(source, path, folder / "flow.webp")
    captions["flow.webp"] = f"Samples that flow from {where}, animated."
    add(
        "flow.png",
        pictures.strips(source, path, flow.num_steps, where),
        f"Samples along the {flow.num_steps} + {flow.num_refine_steps} steps of the flow."
        + " Each row is one sample." * is_image,
    )
    if not is_image:
        potential = model.problem.potential(state.ema_variables)
        drift_at = jax.jit(lambda x: drift(x, potential))
        add(
            "log_ratio.png",
            pictures.log_ratio_and_drift(
                draw.make_log_ratio(model, state),
                lambda x: np.asarray(drift_at(x)),
                source.held_out(4_000, 1),
            ),
            "The estimated log density ratio, flowed samples over data, and the drift of the flow. "
            "Where it is positive (red), the network estimates more samples than data.",
        )
    if found.nearest:
        caption = "Samples, each followed by its nearest training images. Copies would look equal."
        add("neighbours.png", images.neighbours(samples.refined, found.nearest), caption)
    if records := [r for r in log.read(run.metrics) if r["step"] <= opened.step]:
        loss = bregman.get(model.settings.loss.name)
        equal = jnp.asarray(0.0 if loss.output == "log_ratio" else 1.0)
        chance = float(loss.real_term(equal) + loss.flowed_term(equal))
        add(
            "curves.png",
            pictures.training(records, chance, run.checkpoints().best()),
            "Training: the loss (at chance if the network cannot distinguish samples from data), "
            "the mean ratio (1 on data for an exact estimator), norms of the gradient and drift.",
        )
    if shots := run.read_snapshots(opened.step):
        course = pictures.course(source, shots)
        add("course.png", course, "The same samples at several steps of training.")
    return captions


def write(run: Run, record: Mapping[str, Any], folder: Path) -> Path:
    """Writes the report of an evaluation next to its record, and returns its path.

    That of the newest checkpoint with the run's settings is also, and returned as, the run's.
    """
    key, details, name = record["key"], record["details"], html.escape(run.data["name"])
    used, own = settings.shareable(run.settings), settings.of_scope(run.settings, "flow")
    changed = [f"{k}={v} (run: {own[k]})" for k, v in key["settings"].items() if v != own[k]]
    first, *figures = [_figure(folder, *named) for named in record["pictures"].items()] or [""]
    num_steps = max(run.settings.train.num_steps, key["step"])  # More if it was trained for longer.
    sections = [
        f"<h1>{name}: {html.escape(describe_shape(run.data['event_shape']))}</h1>",
        first,
        *(f'<p class="lead">{html.escape(text)}</p>' for text in conclusions(record)),
        f"<p>In this evaluation, settings differ from the run: {html.escape('; '.join(changed))}"
        ".</p>" * bool(changed),
        _metrics_table(metrics.from_json(record["metrics"]), details.get("start", "prior")),
        f'<p class="note">{html.escape(metrics.NOTE)} Checkpoint of step {key["step"]:,} of '
        f"{num_steps:,}, {details['num_samples']:,} samples.</p>",
        *figures,
        "<h2>Settings</h2><p>This command created the run:</p>",
        f"<pre>{html.escape(_without_folders(run.command))}</pre>",
        "<p>These settings differ from the defaults:</p>",
        _table(settings.changed(run.settings)),
        f"<details><summary>All settings</summary>{_table(used)}</details>",
        "<details><summary>How the metrics were computed</summary>",
        _table({k.replace("_", " "): json.dumps(v) for k, v in details.items()}),
        "</details>",
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>FDRL on {name}</title><style>{_STYLE}</style>{''.join(sections)}</html>\n"
    )
    write_text(folder / "report.html", page)
    is_own = key["settings"] == own and key["num_samples"] == run.settings.evaluate.num_samples
    if not is_own or key["step"] != max(run.checkpoints().steps(), default=None):
        return folder / "report.html"
    write_text(run.report, page)
    return run.report


def conclusions(record: Mapping[str, Any]) -> list[str]:
    """Returns the verdict on the samples of a record, and what could not be computed."""
    found, details = metrics.from_json(record["metrics"]), record["details"]
    if not found:
        return [f"No verdict: {'; '.join(details['skipped'])}."]
    skipped = [f"Skipped: {reason}." for reason in details["skipped"]]
    return [metrics.verdict(found, details.get("start", "prior")), *skipped]


def _without_folders(command: str) -> str:
    # Paths outside the working folder keep only their last part, because reports are shared.
    def shortened(word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        return f"{flag}{equals}{Path(value).name}" if value.startswith(("/", "~")) else word

    return shlex.join(map(shortened, shlex.split(command)))


def _metrics_table(found: Metrics, start: str) -> str:
    if not found:
        return ""
    names = metrics.columns(start)[:-1]
    lines = ["<tr>", *(f"<th>{html.escape(name)}</th>" for name in names), "</tr>"]
    for metric, (_, *cells, _) in zip(found.values(), metrics.rows(found), strict=True):
        d = metric.defined
        details = filter(None, [metric.name, d.unit, d.direction and f"{d.direction} is better"])
        words = html.escape(f"{d.words[0].upper()}{d.words[1:]}")
        lines.append(f"<tr><td>{words}<small>{html.escape(', '.join(details))}</small></td>")
        for label, text in zip(names[1:], cells, strict=True):
            value = html.escape(text).replace("± ", "±&nbsp;")  # Lines may break before the sign.
            lines.append(f'<td class="value" data-label="{label}">{value}</td>')
        lines.append("</tr>")
    return f'<div class="scroll"><table class="metrics">{"".join(lines)}</table></div>'


def _table(rows: Mapping[str, Any]) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(key)}</td><td><code>{html.escape(str(value))}</code></td></tr>"
        for key, value in rows.items()
    )
    return f'<div class="scroll"><table>{cells}</table></div>'


def _figure(folder: Path, name: str, caption: str) -> str:
    """Returns a picture and its caption; a reader can pause an animation."""
    text, content, kind = html.escape(caption), (folder / name).read_bytes(), name.split(".")[-1]
    if kind == "webp":
        with Image.open(io.BytesIO(content)) as file:
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
        height, width = frames[0].shape[:2]
        sheet = io.BytesIO()
        Image.fromarray(np.concatenate(frames)).save(sheet, kind, quality=50)
        content = sheet.getvalue()
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    image = f'<img alt="{text}" src="{source}">'
    if kind == "webp":  # The sheet of frames moves behind a window; the style says how.
        style = f"--frames:{len(frames)};width:{width}px;aspect-ratio:{width}/{height}"
        movie = f'<input type="checkbox"> pause<span style="{style}">{image}</span>'
        image = f'<label class="movie">{movie}</label>'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
