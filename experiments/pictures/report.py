"""One self-contained page a run: pictures, figures, settings and the command."""

import base64
import html
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import pictures
from experiments.build import Experiment
from experiments.data import npz_files
from experiments.errors import UserError
from experiments.evaluation.metrics import Metrics, columns, rows, summary
from experiments.evaluation.translation import caption
from experiments.pictures import curves, flow, points
from experiments.pictures.neighbours import neighbours
from experiments.sampling.log_ratio import make_log_ratio
from experiments.sampling.samples import Samples
from experiments.storage import best
from experiments.storage.workdir import Workdir, read_json, write_text
from experiments.training import metrics_log
from fdrl_jax.flow import drift
from fdrl_jax.state import TrainState

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}img{max-width:100%}"
    "code,pre{background:#f4f4f2;padding:.15rem .3rem;border-radius:3px}pre{overflow-x:auto}"
    "table{border-collapse:collapse}td{padding:.15rem 1.2rem .15rem 0;vertical-align:top;"
    "border-bottom:1px solid #e4e4e0}td+td{font-family:ui-monospace,monospace}"
)


def write(
    experiment: Experiment,
    workdir: Workdir,
    train_state: TrainState,
    samples: Samples,
    metrics: Metrics,
    nearest: dict[str, np.ndarray],
) -> None:
    """Draws the pictures of a run into its workdir and writes `report.html`.

    `nearest` are training images near the first samples, by the space in which they are near, for
    the picture of memorisation; nothing for points.
    """
    titled = _draw(experiment, workdir, train_state, samples, metrics)
    saved = read_json(workdir.config, "command", "settings")
    if nearest:
        figure = neighbours(samples.refined, nearest)
        path = pictures.save(figure, workdir.pictures / "neighbours.png")
        titled.append(("Nearest training images", path))
    name, step = experiment.source.name, int(train_state.step)
    sections = [
        f"<h1>FDRL on {html.escape(name)}, step {step:,}</h1>",
        f"<pre>{html.escape(saved['command'])}</pre>",
        "<h2>Metrics</h2>",
        _metrics_table(metrics, "prior" if experiment.source.starts is None else "source"),
        *(f"<h2>{html.escape(title)}</h2>{_embed(path, title)}" for title, path in titled),
        "<h2>Settings</h2>",
        _table({key: str(value) for key, value in saved["settings"].items()}),
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>FDRL on {html.escape(name)}'
        f"</title><style>{_STYLE}</style>{''.join(sections)}</html>\n"
    )
    write_text(workdir.report, page)


def _draw(
    experiment: Experiment,
    workdir: Workdir,
    train_state: TrainState,
    samples: Samples,
    metrics: Metrics,
) -> list[tuple[str, Path]]:
    source, folder = experiment.source, workdir.pictures
    step, settings = int(train_state.step), experiment.settings
    drawn = [
        (
            "Samples and data",
            pictures.samples_and_data(
                source,
                samples.prior,
                samples.refined,
                domains=(settings["data.source_class"], settings["data.target_class"]),
                caption=caption(metrics) if source.starts is not None else "",
            ),
            "samples.png",
        )
    ]
    if source.kind == "points":
        title, figure = "Density ratio and drift", _field(experiment, train_state)
        drawn.append((title, figure, "log_ratio.png"))
    else:
        title, figure = "The flow", flow.flow_strip(experiment, train_state)
        drawn.append((title, figure, "flow.png"))
    records = [r for r in metrics_log.read(workdir.metrics) if r["step"] <= step]
    if records:
        drawn.append(("Training", curves.training(records, best.read(workdir)), "curves.png"))
    shots = [(s, _read_snapshot(path)) for s, path in workdir.snapshot_files(step)]
    if shots:
        title = "Samples over training"
        drawn.append((title, pictures.course(source, shots), "course.png"))
    titled = [(title, pictures.save(figure, folder / name)) for title, figure, name in drawn]
    if shots and source.kind == "points":
        data = source.held_out(len(shots[0][1]), 1)
        gif = points.animate_course(shots, data, folder / "course.gif")
        titled.append(("Samples over training, moving", gif))
    return titled


def _read_snapshot(path: Path) -> np.ndarray:
    try:
        return npz_files.read(path)["arr_0"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and try again") from error


def _field(experiment: Experiment, train_state: TrainState) -> Any:
    problem, variables = experiment.problem, experiment.sampling_variables(train_state)

    def drift_at(x: np.ndarray) -> np.ndarray:
        return np.asarray(jax.jit(lambda x: drift(x, problem.potential(variables)))(jnp.asarray(x)))

    log_ratio = make_log_ratio(experiment, train_state)
    return points.log_ratio_and_drift(log_ratio, drift_at, experiment.source.held_out(4_000, 1))


def _metrics_table(metrics: Metrics, start: str) -> str:
    """Metrics next to those of the start and of real data; the words appear under the pointer."""
    lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in columns(start))}</tr>"]
    for metric, texts in zip(metrics.values(), rows(metrics), strict=True):
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        lines.append(f'<tr title="{html.escape(metric.defined.words)}">{cells}</tr>')
    sentences = "<br>".join(map(html.escape, summary(metrics, start).splitlines()))
    return f"<table>{''.join(lines)}</table><p>{sentences}</p>"


def _table(settings: dict[str, str]) -> str:
    cells = (
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
        for key, value in settings.items()
    )
    return f"<table>{''.join(cells)}</table>"


def _embed(path: Path, alt: str) -> str:
    kind = path.suffix[1:]
    encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{encoded}">'
