"""Mode evaluate: computes the metrics of a checkpoint and writes a record and a report."""

import tempfile
from pathlib import Path

from experiments import pictures, records, report
from experiments.build import Experiment
from experiments.classifiers import FeatureClassifier, load_features
from experiments.command_line import Command
from experiments.data import Source
from experiments.errors import UserError
from experiments.evaluation import Evaluation, Samples, draws, metrics
from experiments.evaluation.images import evaluate_images
from experiments.evaluation.inception import DEFAULT_METRICS, Inception, versions
from experiments.evaluation.points import MAX_POINTS, evaluate_points
from experiments.evaluation.protocols import PROTOCOLS, check_weights
from experiments.evaluation.references import PointsReference
from experiments.evaluation.translation import MAX_IMAGES, evaluate_translation
from experiments.files import read_json, write_json
from experiments.modes.creation import load_data
from experiments.modes.report import write as write_report
from experiments.run import Run
from experiments.sampling.draw import make_log_ratio, sample_state
from experiments.sampling.opened import Opened, open_checkpoint, restore
from experiments.settings import Settings
from fdrl_jax import parallel


def run_mode(command: Command) -> None:
    """Computes the metrics of a checkpoint, unless they were computed before."""
    evaluate(open_checkpoint(command), command.flags["num_samples"], command.data_dir)


def evaluate_last(run: Run, experiment: Experiment) -> None:
    """Evaluates the newest checkpoint of a run that was trained to its end."""
    evaluate(Opened(run, experiment, restore(run, experiment, None)), None, live=experiment.source)


def evaluate(
    opened: Opened,
    num_samples: int | None = None,
    data_dir: str = "",
    live: Source | None = None,
) -> None:
    """Writes and prints the metrics of a checkpoint and its report.

    The training data are `live` if they are open already.
    """
    settings, folder = opened.experiment.settings, opened.run.evaluations
    num = num_samples or settings["evaluate.num_samples"]
    data, path = opened.experiment.source, settings["condition.classifier"]
    classifier = load_features(Path(path), data.classes, data.event_shape) if path else None
    inception = _inception(settings)
    digest = None if classifier is None else classifier.digest
    key = records.key_of(opened, num, classifier=digest, inception=inception is not None)
    is_default = num == opened.run.settings["evaluate.num_samples"] and not classifier
    name = records.name_of(opened, key, is_default=is_default)
    record_folder, is_there = records.find(folder, name, key)
    if is_there:
        if parallel.is_first_process():
            print(f"already evaluated: step {opened.step:,}, {num:,} samples")
            _finish(opened.run, record_folder)
        return
    samples = _draw(opened, num)
    if not parallel.is_first_process():
        return
    source, reason = _training_data(opened, data_dir, live)
    found = _score(opened, samples, source, classifier, inception)
    skipped = [*found.record.get("skipped", ()), *([reason] if reason else [])]
    record = {
        "key": key,
        "metrics": metrics.to_json(found.metrics),
        "details": {
            **found.record,
            **({} if classifier is None else {"classifier": classifier.describe()}),
            "skipped": skipped,
            "precision": settings["precision"],
            "versions": versions(),
        },
    }
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part_", dir=folder) as part:
        unfinished = Path(part) / "record"
        unfinished.mkdir()
        report.draw(opened, samples, found, unfinished)
        write_json(unfinished / "record.json", record)
        records.add(unfinished, record_folder)
    _finish(opened.run, record_folder)


def _draw(opened: Opened, num: int) -> Samples:
    """Draws samples, of each stage only as many as the metrics and the pictures read."""
    reference, keep = opened.run.metric_reference, {"num_prior": min(num, draws.MAX_SAMPLES)}
    if isinstance(reference, PointsReference):
        num = min(num, MAX_POINTS)
        keep = {"num_prior": num, "num_bridged": num}
    elif reference.starts is not None:
        num = min(num, MAX_IMAGES, len(reference.starts.images))
        keep = {"num_prior": min(num, pictures.num_shown(opened.experiment.source))}
    return sample_state(opened.experiment, opened.checkpoint.state, num, **keep)


def _finish(run: Run, record: Path) -> None:
    """Writes the report of a record and prints its metrics."""
    page = write_report(run, record)
    details = read_json(record / "record.json", details=dict)["details"]
    print(metrics.table(report.metrics_of(record), details.get("start", "prior")))
    for reason in details.get("skipped", ()):
        print(f"skipped: {reason}")
    print(f"report: {page.absolute()}")


def _score(
    opened: Opened,
    samples: Samples,
    source: Source | None,
    classifier: FeatureClassifier | None,
    inception: Inception | None,
) -> Evaluation:
    reference = opened.run.metric_reference
    if isinstance(reference, PointsReference):
        log_ratio = make_log_ratio(opened.experiment, opened.checkpoint.state)
        return evaluate_points(reference, samples, log_ratio)
    if reference.starts is not None:
        return evaluate_translation(reference, samples, classifier=classifier)
    return evaluate_images(
        reference,
        samples,
        train_batches=None if source is None else source.train_batches,
        classifier=classifier,
        inception=inception,
    )


def _inception(settings: Settings) -> Inception | None:
    """Returns the Inception networks whose weights the settings name, if any."""
    given = {name: file for name, p in PROTOCOLS.items() if (file := settings[p.key])}
    if not given:
        return None
    for name, file in given.items():
        check_weights(PROTOCOLS[name], file)  # Before hours of work, not after.
    score = ("inception_score",) if settings["evaluate.inception_score"] else ()
    return Inception(given, (*DEFAULT_METRICS, *score))


def _training_data(
    opened: Opened, data_dir: str, live: Source | None
) -> tuple[Source | None, str | None]:
    """Returns the training data if they are available and unchanged, or the reason if not."""
    settings = opened.experiment.settings
    if live is not None or opened.experiment.source.kind == "points":
        return live, None
    try:
        source = load_data(settings, data_dir)
        opened.run.check_data(source)
    except UserError as error:
        if data_dir or settings["data.dir"] != opened.run.settings["data.dir"]:
            raise  # The user has specified where they are.
        return None, f"the training data are not available: {error}"
    return source, None
