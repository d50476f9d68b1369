"""Evaluates a checkpoint of a run: metrics next to those of the prior and real data, a report."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import devices, draw, pictures, report
from experiments.classifier import open_to_judge
from experiments.command import Command
from experiments.data import load
from experiments.data.source import Source
from experiments.errors import UserError
from experiments.evaluation import Evaluation, Samples, draws, inception, metrics
from experiments.evaluation.images import evaluate_images
from experiments.evaluation.points import MAX_POINTS, evaluate_points
from experiments.evaluation.references import ImageReference
from experiments.evaluation.translation import MAX_IMAGES, evaluate_translation
from experiments.files import read_sealed, unfinished_folder, write_sealed
from experiments.run import Opened, Run, key_of, name_of, open_checkpoint
from experiments.settings import Settings

_Passes = Callable[[], Iterator[np.ndarray]]  # Over the training images, [B, H, W, C].


def evaluate_run(command: Command) -> None:
    """Evaluates a checkpoint of a run, unless it was evaluated before, and writes its report."""
    evaluate(open_checkpoint(command), command.num_samples, command.classifier)


def evaluate(
    opened: Opened, num_samples: int | None = None, classifier: str = "", live: Source | None = None
) -> None:
    """Writes and prints metrics and report of a state; training data are `live` if open already."""
    settings, data = opened.experiment.settings, opened.experiment.source
    num, is_first = num_samples or settings.evaluate.num_samples, devices.is_first_process()
    if num < 2:
        raise UserError(f"metrics need at least 2 samples, got --num_samples={num}")
    judge = network = None
    details: dict[str, Any] = {"environment": devices.environment(settings.precision)}
    if classifier:
        # With images to start from, the identity is that of both sets.
        identity = "" if data.starts is not None else opened.run.data["identity"]
        judge, details["classifier"] = open_to_judge(
            Path(classifier), data.classes, data.event_shape, identity
        )
    if weights := settings.evaluate.inception_weights:
        details["inception"] = inception.describe(weights)
        network = inception.load(weights)
    train_batches, reason = _train_batches(opened, live) if is_first else (None, "")
    key = key_of(
        opened,
        num,
        classifier=details.get("classifier", {}).get("digest"),
        inception=details.get("inception"),
        training_data=not reason,
    )
    folder = opened.run.evaluations / name_of(opened, key)
    file = folder / "record.json"
    if devices.first_process_says(file.is_file()):
        if is_first:
            record = read_sealed(file)
            print(f"already evaluated: step {opened.step:,}")
            _finish(opened.run, record, folder)
        return
    samples = _draw(opened, num)
    if not is_first:
        return
    found = _score(opened, samples, train_batches, classifier=judge, inception=network)
    details |= {**found.record, "num_samples": len(samples.refined)}
    details["skipped"] += [reason] * bool(reason)
    record = {"key": key, "metrics": metrics.to_json(found.metrics), "details": details}
    opened.run.evaluations.mkdir(exist_ok=True)
    with unfinished_folder(opened.run.evaluations) as part:
        unfinished = part / "record"
        unfinished.mkdir()
        record["pictures"] = report.draw_pictures(opened, samples, found, unfinished)
        write_sealed(unfinished / file.name, record)
        if not file.is_file():  # Another program may have added the same meanwhile.
            unfinished.rename(folder)
    _finish(opened.run, record, folder)


def _draw(opened: Opened, num: int) -> Samples:
    """Draws samples, of each stage only as many as the metrics and the pictures read."""
    model, reference = opened.experiment, opened.run.metric_reference
    num = num_drawn(model.settings, reference, num)
    if isinstance(reference, Source):
        return draw.sample_state(model, opened.state, num, num_prior=num, num_bridged=num)
    most = draws.MAX_SAMPLES if reference.starts is None else pictures.num_shown(model.source)
    return draw.sample_state(model, opened.state, num, num_prior=min(num, most))


def num_drawn(settings: Settings, reference: Source | ImageReference, num: int) -> int:
    """Returns how many samples an evaluation draws if `num` are wanted: not more than it reads."""
    if isinstance(reference, Source):
        return min(num, MAX_POINTS)
    if reference.starts is not None:
        return min(num, len(reference.starts), MAX_IMAGES)
    return num if settings.evaluate.inception_weights else min(num, draws.MAX_SAMPLES)


def _score(
    opened: Opened, samples: Samples, train_batches: _Passes | None, **judges: Any
) -> Evaluation:
    reference, model = opened.run.metric_reference, opened.experiment
    if not all(np.isfinite(stage).all() for stage in samples):
        return Evaluation({}, {"skipped": ["all metrics: some samples are not finite numbers"]}, {})
    if isinstance(reference, Source):
        return evaluate_points(reference, samples, draw.make_log_ratio(model, opened.state))
    if reference.starts is not None:
        return evaluate_translation(reference, samples, **judges)
    labels = draw.labels_at(model, np.arange(len(samples.refined))).get("label")
    return evaluate_images(reference, samples, labels=labels, train_batches=train_batches, **judges)


def _finish(run: Run, record: Mapping[str, Any], folder: Path) -> None:
    """Writes the report of a record and prints its metrics."""
    page = report.write(run, record, folder)
    found, start = metrics.from_json(record["metrics"]), record["details"].get("start", "prior")
    print(*[metrics.table(found, start)] * bool(found), *report.conclusions(record), sep="\n")
    print(f"report: {page.absolute()}")


def _train_batches(opened: Opened, live: Source | None) -> tuple[_Passes | None, str]:
    """Returns passes over the training images, if metrics read them, or why there are none."""
    run, data, source = opened.run, opened.experiment.settings.data, live
    reference = run.metric_reference
    if isinstance(reference, Source) or reference.starts is not None:
        return None, ""
    if source is None:
        try:
            source = load(data)
            run.check_data(source)
        except UserError:
            if data.dir != run.settings.data.dir:
                raise  # The user has specified where they are.
            return None, "memorisation: the training images are not available; add --data_dir"
    read = source.train_batches
    if not data.random_flip:
        return read, ""
    # Training also saw the mirror images.
    return lambda: (images for batch in read() for images in (batch, batch[:, :, ::-1])), ""
