"""Mode curve: the metric against the length of the flow, or against the step of training."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from experiments import pictures
from experiments.errors import UserError
from experiments.evaluation import curve
from experiments.evaluation.curve import Point
from experiments.pictures import curves
from experiments.request import Request
from experiments.sampling import runs
from experiments.storage.workdir import write_text
from fdrl_jax import parallel


def run(request: Request) -> None:
    """Writes a curve as CSV and as a picture into `curves/`, and tells where the best lies."""
    experiment, workdir = runs.open_run(request)
    flow, num = experiment.problem.flow, request.num_samples or experiment.evaluation_samples
    if experiment.curve.over == "step":
        if request.checkpoint is not None:
            raise UserError("curve.over='step' goes over all checkpoints; leave --checkpoint out")
        points = _told("step", curve.over_step(experiment, workdir, num))
        name, axis, marks = "step", "training step", {}
        title = f"{experiment.source.name}, every checkpoint"
    else:
        train_state = runs.restore(experiment, workdir, request.checkpoint_step)
        lengths = experiment.curve.lengths or curve.choose_lengths(flow)
        points = _told("length", curve.over_length(experiment, train_state, lengths, num))
        title = f"{experiment.source.name}, checkpoint of step {int(train_state.step):,}"
        name, axis = f"length_step_{int(train_state.step)}", "length of the flow, steps"
        marks = {"$K$": flow.num_steps, r"$K+\kappa$": flow.num_steps + flow.num_refine_steps}
    if not parallel.is_first_process():
        return
    if not points:
        raise UserError(f"no checkpoint in {workdir.checkpoints}; train first, with --mode=train")
    workdir.curves.mkdir(exist_ok=True)
    table = workdir.curves / f"{name}.csv"
    _write_csv(table, name.partition("_")[0], points)
    figure = curves.metric(points, title, axis, marks)
    picture = pictures.save(figure, table.with_suffix(".png"))
    print(f"best: {curves.best_of(points)[0]:,}\nvalues: {table}\npicture: {picture}")


def _told(over: str, points: Iterable[Point]) -> list[Point]:
    """Prints each point when it is there."""
    seen = []
    for at, metric in points:
        if parallel.is_first_process():
            print(f"  {over} {at:<10,} {metric.name} {metric.value:.5g}")
        seen.append((at, metric))
    return seen


def _write_csv(path: Path, over: str, points: list[Point]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([over, points[0][1].name])
    writer.writerows([at, metric.value] for at, metric in points)
    write_text(path, text.getvalue())
