"""Curves of the metric of samples, against the length of the flow or the training step (fig. 8)."""

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments import draw, pictures, run
from experiments.classifier import open_to_judge
from experiments.command import Command
from experiments.data.source import Source
from experiments.errors import UserError
from experiments.evaluation import cheap
from experiments.evaluation.classes import Classifier
from experiments.evaluation.metrics import Metric
from experiments.files import sha256_of_json, write_text
from experiments.pictures import curves
from experiments.pictures.style import plain
from experiments.run import Opened
from fdrl_jax.priors import Batch
from fdrl_jax.training import parallel, samplers
from fdrl_jax.training.problem import FlowParams

_BEYOND_STEPS = 50  # Steps beyond K in the default curve.
_MAX_POINTS = 20


class Point(NamedTuple):
    """A point of a curve."""

    at: int  # Length of the flow, or step of the checkpoint.
    metric: Metric
    output: float | None = None  # Mean output of the network on the samples, by length only.


def curve(command: Command) -> None:
    """Writes a curve as CSV and as a picture to `curves/`, and prints the best point."""
    opened = run.open_checkpoint(command)
    settings, flow = opened.experiment.settings, opened.experiment.problem.flow
    wanted = command.num_samples or draw.available(opened.experiment, settings.evaluate.num_samples)
    num, is_first = cheap.num_read(opened.run.metric_reference, wanted), parallel.is_first_process()
    if num < wanted and is_first:
        print(f"the metric reads {num:,} samples, so no more are drawn")
    data, judge, suffix = plain(opened.run.data["name"]), None, ""
    if path := command.changes.get("condition.classifier"):
        source = opened.experiment.source
        identity = "" if source.starts is not None else opened.run.data["identity"]
        judge, described = open_to_judge(Path(path), source.classes, source.event_shape, identity)
        suffix = "_classifier"
        if is_first:
            print(f"classifier: {described['name']}, accuracy {described['accuracy']:.2%}")
    if settings.curve.over == "step":
        if command.which is not None:
            raise UserError("curve.over='step' uses all checkpoints; remove --checkpoint")
        computed = over_step(opened, num, judge)
        name, over, axis, marks = f"step{suffix}", "step", "training step", {}
        title = f"{data}, every checkpoint"
    else:
        if settings.sample.rejection:
            raise UserError(
                "sample.rejection: a curve over the length of the flow does not reject samples; "
                "add --config.sample.rejection=False or --config.curve.over=step"
            )
        lengths = settings.curve.lengths or choose_lengths(flow)
        computed = over_length(opened, lengths, num, judge)
        title = f"{data}, checkpoint of step {opened.step:,}"
        name, over = f"length_step_{opened.step}{suffix}", "length"
        axis = "length of the flow, steps"
        marks = {"$K$": flow.num_steps, r"$K+\kappa$": flow.num_steps + flow.num_refine_steps}
    points = []
    for point in computed:
        if is_first:
            found = f"{point.metric.name} {point.metric.value:.5g}"
            output = "" if point.output is None else f"   mean output {point.output:.4f}"
            print(f"  {over} {point.at:<10,} {found}{output}")
        points.append(point)
    if not is_first:
        return
    opened.run.curves.mkdir(exist_ok=True)
    content = io.StringIO()
    rows: list[tuple[object, ...]] = [(over, points[0].metric.name, "mean_output")]
    rows += [(point.at, point.metric.value, point.output) for point in points]
    csv.writer(content, lineterminator="\n").writerows(rows)
    table = opened.run.curves / f"{name}.csv"
    if table.exists() and table.read_text() != content.getvalue():  # No curve replaces another.
        table = table.with_stem(f"{name}_{sha256_of_json(content.getvalue())[:8]}")
    write_text(table, content.getvalue())
    pairs, balanced = [(point.at, point.metric) for point in points], None
    if over == "length":
        of_real = mean_output_of(opened)(*_held_out(opened, num))
        balanced = balanced_length(points, of_real)
        where = "beyond the longest" if balanced is None else f"{balanced:,}"
        print(f"balanced length: {where} (mean output {of_real:.4f} on held-out data)")
    figure = curves.metric(pairs, title, axis, marks, balanced)
    picture = pictures.save(figure, table.with_suffix(".png"))
    at, best = curves.best_of(pairs)
    print(f"best {over}: {at:,} ({best.name} {best.value:.5g})")
    print(f"values: {table}\npicture: {picture}")


def choose_lengths(flow: FlowParams) -> tuple[int, ...]:
    """Returns round lengths from 0 to K + 50, including K and K + κ."""
    longest = flow.num_steps + _BEYOND_STEPS
    strides = (factor * 10**power for power in range(6) for factor in (1, 2, 5))
    stride = next(stride for stride in strides if longest <= _MAX_POINTS * stride)
    marked = {flow.num_steps, flow.num_steps + flow.num_refine_steps, longest}
    return tuple(sorted({*range(0, longest + 1, stride), *marked}))


def balanced_length(points: Sequence[Point], of_real: float) -> int | None:
    """Returns the length at which samples have the mean output of real data, or `None`.

    Equal densities have equal means under any function, so this is a necessary condition, which
    needs no metric and no labels. Between two points of the curve, the mean is interpolated.
    """
    lengths, outputs = zip(*((point.at, point.output) for point in points), strict=True)
    reached = next((i for i, output in enumerate(outputs) if output <= of_real), None)
    if not reached:  # At none, or at the first.
        return None if reached is None else lengths[0]
    # `np.interp` wants increasing abscissas.
    last = slice(reached, reached - 2 if reached > 1 else None, -1)
    return round(float(np.interp(of_real, outputs[last], lengths[last])))


def mean_output_of(opened: Opened) -> Callable[[np.ndarray, Batch], float]:
    """Returns the mean output of the network, ratios or their logarithms, for examples [N, ...].

    The second argument has their classes, for an estimator that takes labels.
    """
    model = opened.experiment
    estimator = model.problem.estimator
    apply = jax.jit(estimator.apply)
    outputs = draw.in_batches(model, apply, model.sampling_variables(opened.state))
    return lambda examples, batch: float(np.mean(outputs(examples, *estimator.labels(batch))))


def _held_out(opened: Opened, num: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns held-out data with the noise of training, [N, ...], and a batch with their classes.

    The batch is empty if they have no classes. The ratio is that of data with this noise.
    """
    reference = opened.run.metric_reference
    if isinstance(reference, Source):
        return reference.held_out(num, 1), {}
    labels = {} if reference.labels is None else {"label": reference.labels[:num]}
    images = reference.images[:num]
    noise = np.random.default_rng(0).standard_normal(images.shape, np.float32)
    return images + opened.experiment.settings.data.dequantisation * noise, labels


def over_length(
    opened: Opened,
    lengths: tuple[int, ...],
    num_samples: int,
    classifier: Classifier | None = None,
) -> Iterator[Point]:
    """Computes the metric at several increasing lengths of one flow.

    All samples advance together from one length to the next, so every step is computed only once.
    """
    model, reference = opened.experiment, opened.run.metric_reference
    stride = math.gcd(*lengths) or 1
    advance = parallel.map_segment(samplers.make_segment(model.problem, num_steps=stride))
    variables, constants = draw.on_devices(model, opened.state)
    key, size = model.root_key, draw.batch_size(model, num_samples)
    # All batches have one size; the last one repeats the last sample.
    numbers = np.arange(-(-num_samples // size) * size, dtype=np.int32)
    batches = np.minimum(numbers, num_samples - 1).reshape(-1, size)
    points = list(draw.sample_starts(model, opened.state, num_samples)[batches])
    classes = draw.labels_at(model, numbers[:num_samples])
    mean_output, denoise = mean_output_of(opened), draw.make_denoise(model, opened.state)
    with tqdm(
        total=lengths[-1] * len(batches),
        unit="step",
        desc="flowing",
        disable=not parallel.is_first_process(),
    ) as bar:
        for done, length in itertools.pairwise((0, *lengths)):
            for i, positions in enumerate(batches):
                for first_step in range(done, length, stride):
                    batch = {**draw.batch_at(model, positions), "x": points[i]}
                    part = parallel.shard({k: parallel.local_part(v) for k, v in batch.items()})
                    moved = advance(key, variables, constants, part, first_step)
                    points[i] = np.asarray(parallel.gather(moved))
                    bar.update(stride)
            samples = np.concatenate(points)[:num_samples]
            finished = denoise(samples) if length else samples
            metric = cheap.cheap_metric(reference, finished, classifier)
            yield Point(length, metric, mean_output(samples, classes))


def over_step(
    opened: Opened, num_samples: int, classifier: Classifier | None = None
) -> Iterator[Point]:
    """Computes the metric at every checkpoint on disk."""
    model, reference = opened.experiment, opened.run.metric_reference
    sampler, template = draw.Sampler(model), model.state_shapes()
    for step in opened.run.checkpoints().steps():
        state = opened.run.restored(template, step).state
        variables, constants = draw.on_devices(model, state)
        keep, shown = {"refined": num_samples}, parallel.is_first_process()
        samples = sampler(variables, constants, keep, progress=shown)["refined"]
        yield Point(step, cheap.cheap_metric(reference, samples, classifier))
