"""Mode sample: samples of a checkpoint as files, with a record of what they are, and a picture."""

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments import pictures
from experiments.build import Experiment
from experiments.request import Request
from experiments.sampling import runs, sample_files
from experiments.sampling.conditional import ALL, conditioned
from experiments.sampling.draw import batch_size, make_sample_fn, on_devices, sample_starts
from experiments.sampling.shards import Shards, lock
from experiments.storage.checkpoints import FREE_IN_TRAINING
from experiments.storage.integrity import digest_arrays
from experiments.storage.workdir import read_json, write_json
from fdrl_jax import parallel
from fdrl_jax.state import TrainState

# Settings that no sample follows from: the checkpoint's hash stands for how it was trained.
_OF_NO_SAMPLE = (*FREE_IN_TRAINING, "train.", "optimizer.")


def run(request: Request) -> None:
    """Writes samples, `samples/NAME.npz` or as PNG, `NAME.json` with what they are, `NAME.png`.

    With condition.label they are of that class, or, for "all", sample `i` of class `i` modulo their
    number, and the picture has a row for each.

    They are drawn in parts that are kept until the end: after a kill the same command goes on, and
    the files are those of an uninterrupted run. Points are stored as they are, images as uint8.
    """
    experiment, workdir = runs.open_run(request)
    if experiment.conditioning.label:
        experiment = conditioned(experiment)
    options, source = experiment.sampling, experiment.source
    train_state = runs.restore(experiment, workdir, request.checkpoint_step)
    step, num = int(train_state.step), request.num_samples or experiment.evaluation_samples
    name = options.name or default_name(step, experiment.conditioning.label)
    path = sample_files.target(workdir.samples, name, options.format, source.kind)
    record_file, picture = (workdir.samples / f"{name}.{suffix}" for suffix in ("json", "png"))
    record = describe(experiment, train_state, num, path)
    first = parallel.is_first_process()
    if not _is_done(record_file, record, path):
        parts = workdir.samples / f"{name}.parts"
        with lock(parts) if first else contextlib.nullcontext():
            shards = _open_shards(parts, record, experiment)
            draw(experiment, train_state, shards, request.started)
            starts = sample_starts(experiment, train_state, min(num, pictures.num_shown(source)))
            if first:
                record_file.unlink(missing_ok=True)  # That of samples that are replaced now.
                with tqdm(total=num, unit="sample", desc="writing") as bar:
                    sample_files.write(path, options.format, _told(shards.read(), bar), num)
                _draw_picture(experiment, starts, shards, picture)
                write_json(record_file, record)
                shards.remove()
    if first:
        print(f"{num:,} samples of step {step:,}: {path}")
        print(f"picture: {picture}\nwhat they are: {record_file}")


def default_name(step: int, label: str) -> str:
    """Returns what samples of a step, and perhaps of a class, are called."""
    safe = label.replace("/", "_")  # Names of classes may have slashes.
    return f"step_{step}_class_{safe}" if label else f"step_{step}"


def describe(
    experiment: Experiment, train_state: TrainState, num_samples: int, path: Path
) -> dict[str, Any]:
    """Returns all that samples follow from, as JSON can hold it."""
    settings = experiment.settings.items()
    condition: dict[str, Any] = {}
    if experiment.labels is not None:
        # Not where the classifier lies, but what it is.
        condition = experiment.conditioning._asdict()
        condition["classifier"] = digest_arrays(experiment.constants.classifier)
    return {
        "file": path.name,
        "num_samples": num_samples,
        "checkpoint_step": int(train_state.step),
        "weights": experiment.sampling.weights,
        "variables_sha256": digest_arrays(experiment.sampling_variables(train_state)),
        "condition": condition,
        "settings": {k: v for k, v in settings if not k.startswith(_OF_NO_SAMPLE)},
    }


def draw(
    experiment: Experiment, train_state: TrainState, shards: Shards, started: float | None = None
) -> None:
    """Draws the parts that are missing; tells how long after the start the first one was there."""
    variables, constants = on_devices(experiment, train_state)
    sample = make_sample_fn(experiment)
    missing = shards.missing()
    left = sum(map(shards.count, missing))
    with tqdm(
        total=shards.num_samples,
        initial=shards.num_samples - left,
        unit="sample",
        desc="sampling",
        smoothing=0.1,
        disable=not parallel.is_first_process(),
    ) as bar:
        for first in missing:
            # Of full size also at the end, so that all parts run the same compiled program.
            samples = sample(variables, constants, shards.shard_size, first=first).refined
            kept = samples[: shards.count(first)]
            if parallel.is_first_process():
                shards.write(first, pictures.as_stored(experiment.source, kept))
            bar.update(len(kept))
            if started is not None and first == missing[0] and parallel.is_first_process():
                bar.write(f"first samples {time.perf_counter() - started:.1f} s after the start")


def _open_shards(folder: Path, record: dict[str, Any], experiment: Experiment) -> Shards:
    num = record["num_samples"]

    def opened() -> Shards:
        return Shards(folder, record, num, batch_size(experiment, num))

    if parallel.is_first_process():  # Others would make the folder at the same time.
        opened()
    parallel.barrier("shards opened")
    return opened()


def _is_done(record_file: Path, record: dict[str, Any], path: Path) -> bool:
    return record_file.exists() and path.exists() and bool(read_json(record_file) == record)


def _told(parts: Iterator[np.ndarray], bar: Any) -> Iterator[np.ndarray]:
    for part in parts:
        yield part
        bar.update(len(part))


def _draw_picture(experiment: Experiment, starts: np.ndarray, shards: Shards, path: Path) -> None:
    enough = itertools.islice(shards.read(), -(-len(starts) // shards.shard_size))
    stored = np.concatenate(list(enough))[: len(starts)]
    samples = pictures.from_stored(experiment.source, stored)
    if experiment.labels is not None and experiment.conditioning.label == ALL:
        labels = experiment.labels(np.arange(len(samples)))
        figure = pictures.samples_by_class(experiment.source, samples, labels)
    else:
        figure = pictures.samples_and_data(experiment.source, starts, samples)
    pictures.save(figure, path)
