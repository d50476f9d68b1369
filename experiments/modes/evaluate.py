"""Mode evaluate: the metrics of a checkpoint, and its report."""

from pathlib import Path
from typing import Any

from experiments import classifiers
from experiments.build import Experiment
from experiments.evaluation import metrics, references
from experiments.evaluation.compare import DEFAULT_METRICS, Inception, versions
from experiments.evaluation.images import evaluate_images
from experiments.evaluation.points import evaluate_points
from experiments.evaluation.protocols import check_files
from experiments.evaluation.references import PointsReference
from experiments.evaluation.result import Evaluation
from experiments.evaluation.translation import evaluate_translation
from experiments.pictures import report
from experiments.request import Request
from experiments.sampling import runs
from experiments.sampling.draw import sample_state
from experiments.sampling.log_ratio import make_log_ratio
from experiments.sampling.samples import Samples
from experiments.storage.workdir import Workdir, read_json, write_json
from fdrl_jax import parallel
from fdrl_jax.state import TrainState


def run(request: Request) -> None:
    """Computes the metrics of a checkpoint and draws its report again."""
    experiment, workdir = runs.open_run(request)
    evaluate(experiment, workdir, runs.restore(experiment, workdir, request.checkpoint_step))


def evaluate(experiment: Experiment, workdir: Workdir, train_state: TrainState) -> None:
    """Writes and prints the metrics of a train state, and writes the report."""
    check_files(experiment.inception_weights)
    samples = sample_state(experiment, train_state, experiment.evaluation_samples)
    if not parallel.is_first_process():
        return
    step = int(train_state.step)
    found = _compute(experiment, train_state, samples)
    workdir.report.unlink(missing_ok=True)  # Mode train takes it and these metrics for one.
    write_json(
        workdir.evaluation,
        {
            "step": step,
            "metrics": metrics.to_json(found.metrics),
            "run": _describe(experiment, step),
            "versions": versions(),
            **found.record,
        },
    )
    report.write(experiment, workdir, train_state, samples, found.metrics, found.nearest)
    show(workdir)


def show(workdir: Workdir) -> None:
    """Prints the metrics of the last evaluation, and where the report is."""
    stored = read_json(workdir.evaluation, "metrics")
    print(metrics.table(metrics.from_json(stored["metrics"]), stored.get("start", "prior")))
    for reason in stored.get("skipped", ()):
        print(f"skipped: {reason}")
    print(f"report: {workdir.report.absolute()}")


def _compute(experiment: Experiment, train_state: TrainState, samples: Samples) -> Evaluation:
    source, classifier = experiment.source, None
    domains = tuple(experiment.settings[f"data.{side}_class"] for side in ("source", "target"))
    reference = references.of(source, (domains[0], domains[1]))
    if isinstance(reference, PointsReference):
        return evaluate_points(reference, samples, make_log_ratio(experiment, train_state))
    if folder := experiment.conditioning.classifier:
        classifier = classifiers.load_features(Path(folder), source.classes, source.event_shape)
    if reference.starts is not None:
        return evaluate_translation(reference, samples, classifier=classifier)
    inception = None
    if experiment.inception_weights:
        score = ("inception_score",) if experiment.inception_score else ()
        inception = Inception(experiment.inception_weights, (*DEFAULT_METRICS, *score))
    return evaluate_images(
        reference,
        samples,
        train_batches=source.train_batches,
        classifier=classifier,
        inception=inception,
    )


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
