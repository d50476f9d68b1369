"""Mode curve: the metric against the length of the flow, or against the train step."""

import csv
import io

from experiments import pictures
from experiments.command_line import Command
from experiments.errors import UserError
from experiments.evaluation import cheap
from experiments.files import sha256_of_json, write_text
from experiments.pictures import curves
from experiments.pictures.style import plain
from experiments.sampling import curve
from experiments.sampling.opened import open_checkpoint
from fdrl_jax.training import parallel


def run_mode(command: Command) -> None:
    """Writes a curve as CSV and as a picture to `curves/`, and prints the best point."""
    opened = open_checkpoint(command)
    settings, flow = opened.experiment.settings, opened.experiment.problem.flow
    wanted = command.flags["num_samples"] or settings["evaluate.num_samples"]
    num = cheap.num_read(opened.run.metric_reference, wanted)
    if num < wanted and parallel.is_first_process():
        print(f"the metric reads {num:,} samples, so no more are drawn")
    data = plain(opened.run.data["name"])
    if settings["curve.over"] == "step":
        if command.flags["checkpoint"] is not None:
            raise UserError("curve.over='step' uses all checkpoints; remove --checkpoint")
        computed = curve.over_step(opened, num)
        name, over, axis, marks = "step", "step", "train step", {}
        title = f"{data}, every checkpoint"
    else:
        lengths = tuple(settings["curve.lengths"]) or curve.choose_lengths(flow)
        computed = curve.over_length(opened, lengths, num)
        title = f"{data}, checkpoint of step {opened.step:,}"
        name, over, axis = f"length_step_{opened.step}", "length", "length of the flow, steps"
        marks = {"$K$": flow.num_steps, r"$K+\kappa$": flow.num_steps + flow.num_refine_steps}
    points = []
    for at, metric in computed:
        if parallel.is_first_process():
            print(f"  {over} {at:<10,} {metric.name} {metric.value:.5g}")
        points.append((at, metric))
    if not parallel.is_first_process():
        return
    opened.run.curves.mkdir(exist_ok=True)
    content = io.StringIO()
    rows = [(over, points[0][1].name), *((at, metric.value) for at, metric in points)]
    csv.writer(content, lineterminator="\n").writerows(rows)
    table = opened.run.curves / f"{name}.csv"
    if table.exists() and table.read_text() != content.getvalue():  # No curve replaces another.
        table = table.with_stem(f"{name}_{sha256_of_json(content.getvalue())[:8]}")
    write_text(table, content.getvalue())
    figure = curves.metric(points, title, axis, marks)
    picture = pictures.save(figure, table.with_suffix(".png"))
    at, best = curves.best_of(points)
    print(f"best {over}: {at:,} ({best.name} {best.value:.5g})")
    print(f"values: {table}\npicture: {picture}")
