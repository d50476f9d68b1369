"""Mode evaluate: computes the metrics of a checkpoint and writes a record and a report."""

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import pictures, records, report
from experiments.build import Experiment
from experiments.classifiers import load_features
from experiments.command_line import Command
from experiments.data import Source
from experiments.errors import UserError
from experiments.evaluation import Evaluation, Samples, draws, inception, metrics
from experiments.evaluation.classes import Classifier
from experiments.evaluation.images import evaluate_images
from experiments.evaluation.inception import Inception
from experiments.evaluation.points import MAX_POINTS, evaluate_points
from experiments.evaluation.protocols import DEFAULT_METRICS, PROTOCOLS
from experiments.evaluation.translation import MAX_IMAGES, domains_of, evaluate_translation
from experiments.files import read_json, write_json
from experiments.modes.creation import load_data
from experiments.run import Run
from experiments.sampling.draw import make_log_ratio, sample_state
from experiments.sampling.opened import Opened, open_checkpoint
from experiments.settings import Settings
from fdrl_jax.training import parallel


def run_mode(command: Command) -> None:
    """Computes the metrics of a checkpoint, unless they were computed before."""
    # Not that of the run's own settings, which may guide its samples.
    classifier = command.changes.get("condition.classifier", "")
    opened = open_checkpoint(command)
    evaluate(opened, command.flags["num_samples"], classifier, command.data_dir)


def evaluate_last(run: Run, experiment: Experiment) -> None:
    """Evaluates the newest checkpoint of a run that was trained to its end."""
    restored = run.restored(experiment.state_shapes())
    evaluate(Opened(run, experiment, restored), live=experiment.source)


def evaluate(
    opened: Opened,
    num_samples: int | None = None,
    classifier_path: str = "",
    data_dir: str = "",
    live: Source | None = None,
) -> None:
    """Writes and prints the metrics of a checkpoint and its report.

    The training data are `live` if they are open already. Everything that may be missing is looked
    for before any sample is drawn.
    """
    settings = opened.experiment.settings
    num = num_samples or settings["evaluate.num_samples"]
    if num < 2:
        raise UserError(f"metrics need at least 2 samples, got --num_samples={num}")
    data, classifier = opened.experiment.source, None
    of_classifier: dict[str, Any] = {}
    if classifier_path:
        path = Path(classifier_path)
        classifier, of_classifier = load_features(path, data.classes, data.event_shape)
    networks, described = _inception(settings)
    key = records.key_of(opened, num, classifier=of_classifier.get("digest"), inception=described)
    record_folder, is_there = records.find(opened, key)
    source, reason = None, None
    if parallel.is_first_process() and not is_there:
        source, reason = _training_data(opened, data_dir, live)
    is_incomplete = bool(parallel.any_process(reason is not None))
    if is_incomplete:
        # With the data, it is another evaluation, which has metrics that this one skips.
        key |= {"training_data": False}
        record_folder, is_there = records.find(opened, key)
    if is_there:
        if parallel.is_first_process():
            kept = read_json(record_folder / "record.json", details=dict)["details"]
            num_used = kept.get("num_samples", num)
            print(f"already evaluated: step {opened.step:,}, {num_used:,} samples")
            _finish(opened.run, record_folder)
        return
    of_inception = networks is not None and not is_incomplete
    samples = _draw(opened, num, of_inception=of_inception)
    if not parallel.is_first_process():
        return
    found = _score(opened, samples, source, classifier, networks)
    if of_inception and "protocols" not in found.record:
        key |= {"inception": "failed"}  # So that the same command tries again.
        record_folder, _ = records.find(opened, key)
    record = {
        "key": key,
        "metrics": metrics.to_json(found.metrics),
        "details": {
            **found.record,
            "num_samples": len(samples.refined),
            **({"classifier": of_classifier} if classifier else {}),
            "skipped": found.record["skipped"] + ([reason] if reason else []),
            "precision": settings["precision"],
            "versions": inception.versions(),
        },
    }
    opened.run.evaluations.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part_", dir=opened.run.evaluations) as part:
        unfinished = Path(part) / "record"
        unfinished.mkdir()
        report.draw(opened, samples, found, unfinished)
        write_json(unfinished / "record.json", record)
        records.add(unfinished, record_folder)
    _finish(opened.run, record_folder)


def _draw(opened: Opened, num: int, *, of_inception: bool) -> Samples:
    """Draws samples, of each stage only as many as the metrics and the pictures read."""
    reference, keep = opened.run.metric_reference, {"num_prior": min(num, draws.MAX_SAMPLES)}
    if isinstance(reference, Source):
        num = min(num, MAX_POINTS)
        keep = {"num_prior": num, "num_bridged": num}
    elif reference.starts is not None:
        num = min(num, MAX_IMAGES, len(reference.starts))
        keep = {"num_prior": min(num, pictures.num_shown(opened.experiment.source))}
    elif not of_inception:
        num = min(num, draws.MAX_SAMPLES)
    return sample_state(opened.experiment, opened.checkpoint.state, num, **keep)


def _finish(run: Run, record: Path) -> None:
    """Writes the report of a record and prints its metrics."""
    page = report.write(run, record)
    details = read_json(record / "record.json", details=dict)["details"]
    print(metrics.table(report.metrics_of(record), details.get("start", "prior")))
    for reason in details.get("skipped", ()):
        print(f"skipped: {reason}")
    print(f"report: {page.absolute()}")


def _score(
    opened: Opened,
    samples: Samples,
    source: Source | None,
    classifier: Classifier | None,
    networks: Inception | None,
) -> Evaluation:
    reference = opened.run.metric_reference
    if not all(np.isfinite(stage).all() for stage in samples):
        return Evaluation({}, {"skipped": ["all metrics: some samples are not finite numbers"]}, {})
    if isinstance(reference, Source):
        log_ratio = make_log_ratio(opened.experiment, opened.checkpoint.state)
        return evaluate_points(reference, samples, log_ratio)
    if reference.starts is not None:
        domains = domains_of(opened.run.settings)
        return evaluate_translation(reference, samples, domains=domains, classifier=classifier)
    return evaluate_images(
        reference,
        samples,
        train_batches=None if source is None else source.train_batches,
        classifier=classifier,
        inception=networks,
    )


def _inception(settings: Settings) -> tuple[Inception | None, records.Key | Literal[False]]:
    """Returns the Inception networks whose weights the settings name, and their part of the key."""
    given = {name: file for name, p in PROTOCOLS.items() if (file := settings[p.key])}
    if not given:
        return None, False
    digests = {name: inception.check_ready(PROTOCOLS[name], file) for name, file in given.items()}
    score = ("inception_score",) if settings["evaluate.inception_score"] else ()
    wanted = (*DEFAULT_METRICS, *score)
    return Inception(given, wanted), {"weights": digests, "metrics": list(wanted)}


def _training_data(
    opened: Opened, data_dir: str, live: Source | None
) -> tuple[Source | None, str | None]:
    """Returns the training data if metrics need them, or the reason if they are not available."""
    settings, reference = opened.experiment.settings, opened.run.metric_reference
    if isinstance(reference, Source) or reference.starts is not None:
        return None, None
    if live is not None:
        return live, None
    try:
        source = load_data(settings, data_dir or opened.run.remembered_dir(settings["data.dir"]))
        opened.run.check_data(source)
    except UserError as error:
        if data_dir or settings["data.dir"] != opened.run.settings["data.dir"]:
            raise  # The user has specified where they are.
        return None, f"the training data are not available: {error}"
    return source, None
