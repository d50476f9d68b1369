"""All that is judged of a run: metrics, how they were taken, and the nearest training images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.build import Experiment
from experiments.data import Source, to_uint8
from experiments.evaluation import memorisation, points, spaces
from experiments.evaluation.compare import DEFAULT_METRICS, Inception, compare
from experiments.evaluation.evaluate import evaluate
from experiments.evaluation.image_sets import ImageSet
from experiments.sampling.draw import Samples
from fdrl_jax.metrics import random_conv_features

_MAX_SOUGHT = 1_000  # Samples, and held-out images, whose nearest training images are sought.


class RunEvaluation(NamedTuple):
    """What is known of a checkpoint's samples.

    Attributes:
      metrics: names to numbers, in the order in which a person should read them.
      record: how they were taken, as JSON can hold it.
      nearest: training images nearest to the first samples, by the name of the space in which they
        are near, [Q, k, H, W, C]; empty for points.
    """

    metrics: dict[str, Any]
    record: dict[str, Any]
    nearest: dict[str, np.ndarray]


def evaluate_run(
    experiment: Experiment,
    samples: Samples,
    log_ratio: Callable[[np.ndarray], np.ndarray],
    checkpoint_step: int,
) -> RunEvaluation:
    """Judges samples of a checkpoint by everything that the kind of data and the settings ask for.

    Args:
      experiment: the run.
      samples: of the checkpoint.
      log_ratio: the checkpoint's estimate, `x [B, ...] -> log r [B]`.
      checkpoint_step: its step.

    Raises:
      UserError: for weights that are missing or do not fit.
    """
    source = experiment.source
    metrics = evaluate(source, samples)
    record: dict[str, Any] = {"run": _describe(experiment, checkpoint_step)}
    if source.kind == "points":
        return RunEvaluation(metrics | points.ratio(source, samples, log_ratio), record, {})
    found, nearest = memorisation.judge(
        samples.refined[:_MAX_SOUGHT],
        source.held_out(_MAX_SOUGHT, 0),
        source.train_batches,
        {"pixels": None, spaces.BUILT_IN: random_conv_features},
    )
    metrics |= found
    if experiment.inception_weights:
        judged = _by_inception(experiment, samples.refined)
        metrics |= judged.pop("metrics")
        record |= judged
    return RunEvaluation(metrics, record, nearest)


def _by_inception(experiment: Experiment, samples: np.ndarray) -> dict[str, Any]:
    asked = (*DEFAULT_METRICS, "inception_score") if experiment.inception_score else DEFAULT_METRICS
    networks = Inception(experiment.inception_weights, asked)
    # Never rounded: the standard protocol rounds by itself, the paper's does not.
    ours = ImageSet("samples of the run", np.clip(samples, -1.0, 1.0).astype(np.float32))
    return compare(ours, _training_set(experiment.source), networks, ())


def _training_set(source: Source) -> ImageSet:
    pixels = np.concatenate([to_uint8(batch) for batch in source.train_batches()])
    return ImageSet(f"training set of {source.name}", pixels)


def _describe(experiment: Experiment, step: int) -> dict[str, Any]:
    flow = experiment.problem.flow
    return {
        "checkpoint_step": step,
        "weights": experiment.sampling.weights,
        "seed": experiment.seed,
        "num_steps": flow.num_steps,
        "num_refine_steps": flow.num_refine_steps,
        "step_size": float(flow.step_size),
        "noise_scale": float(flow.noise_scale),
    }
