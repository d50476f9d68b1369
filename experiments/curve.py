"""The metric of samples against the length of the flow (fig. 8)."""

import itertools
import math
from collections.abc import Iterator

import jax
import numpy as np
from tqdm import tqdm

from experiments import devices, draw, pictures, run
from experiments.command import Command
from experiments.errors import UserError
from experiments.evaluation import draws
from experiments.evaluation.metrics import Metric
from experiments.files import write_text
from experiments.pictures import style
from experiments.run import Opened
from fdrl_jax.training import parallel, samplers

_BEYOND_STEPS = 50  # Steps beyond K.
_MAX_POINTS = 20


def curve(command: Command) -> None:
    """Writes a curve as CSV and as a picture to `curves/`, and prints the best point."""
    opened = run.open_checkpoint(command)
    model, flow = opened.experiment, opened.experiment.settings.flow
    wanted = command.num_samples or draw.available(model, model.settings.evaluate.num_samples)
    num, is_first = draws.num_read(opened.run.metric_reference, wanted), devices.is_first_process()
    if num < 2:
        raise UserError(f"a metric needs at least 2 samples, got --num_samples={num}")
    lengths = choose_lengths(flow.num_steps, flow.num_refine_steps)
    points = []
    found = over_length(opened, lengths, num)
    for length, metric in tqdm(found, "lengths", len(lengths), leave=False, disable=not is_first):
        points.append((length, metric))
        if is_first:
            tqdm.write(f"  length {length:<10,} {metric.name} {metric.value:.5g}")
    if not is_first:
        return
    name = run.name_of(opened, run.key_of(opened, num))
    opened.run.curves.mkdir(exist_ok=True)
    table = opened.run.curves / f"{name}.csv"
    rows = [("length", points[0][1].name), *((length, m.value) for length, m in points)]
    write_text(table, "".join(f"{length},{value}\n" for length, value in rows))
    marks = {"$K$": flow.num_steps, r"$K+\kappa$": flow.num_steps + flow.num_refine_steps}
    title = f"{opened.run.data['name']}, checkpoint of step {opened.step:,}"
    figure, (best, metric) = pictures.over_length(points, title, marks)
    picture = style.save(figure, table.with_suffix(".png"))
    print(f"best length: {best:,} ({metric.name} {metric.value:.5g})")
    print(f"values: {table}\npicture: {picture}")


def choose_lengths(num_steps: int, num_refine_steps: int) -> tuple[int, ...]:
    """Returns round lengths from 0 to K + 50, including K and K + κ."""
    longest = num_steps + _BEYOND_STEPS
    strides = (factor * 10**power for power in range(6) for factor in (1, 2, 5))
    stride = next(stride for stride in strides if longest <= _MAX_POINTS * stride)
    marked = {num_steps, num_steps + num_refine_steps, longest}
    return tuple(sorted({*range(0, longest + 1, stride), *marked}))


def over_length(
    opened: Opened, lengths: tuple[int, ...], num_samples: int
) -> Iterator[tuple[int, Metric]]:
    """Computes the metric at several increasing lengths of one flow, each step only once."""
    model, key = opened.experiment, opened.experiment.root_key
    stride = math.gcd(*lengths) or 1
    segment = samplers.make_segment(model.problem, num_steps=stride)
    advance = parallel.map_sampler(segment, num_shared=1)
    variables, constants = draw.on_devices(model, opened.state)
    batches = draw.positions(model, num_samples)
    starts = draw.sample_state(model, opened.state, 0, num_prior=num_samples).prior
    points = list(starts[batches])
    denoise = jax.jit(model.problem.denoise) if model.problem.denoise else lambda _, x: x
    of_sampling = opened.state.ema_variables
    metric_of = draws.cheap_metric(opened.run.metric_reference)
    for done, length in itertools.pairwise((0, *lengths)):
        for i, positions in enumerate(batches):
            for first_step in range(done, length, stride):
                batch = {**draw.batch_at(model, positions), "x": points[i]}
                part = parallel.shard({k: devices.local_part(v) for k, v in batch.items()})
                moved = advance(key, variables, constants, part, first_step)
                points[i] = np.asarray(parallel.gather(moved))
        finished = [np.asarray(denoise(of_sampling, x)) for x in points] if length else points
        yield length, metric_of(np.concatenate(finished)[:num_samples])
