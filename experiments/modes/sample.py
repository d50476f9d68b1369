"""Mode sample: writes samples of a checkpoint with a record and a picture."""

import contextlib
import functools
import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments import pictures, records, settings
from experiments.build import Experiment
from experiments.command_line import Command
from experiments.data import to_uint8, to_unit
from experiments.errors import UserError
from experiments.files import read_json, sha256_of_arrays, sha256_of_json, write_json
from experiments.pictures import images
from experiments.sampling import sample_files
from experiments.sampling.conditional import ALL, conditioned
from experiments.sampling.draw import Sampler, batch_size, on_devices, sample_starts
from experiments.sampling.opened import Opened, open_checkpoint
from experiments.sampling.shards import Shards, lock
from experiments.settings import Settings
from fdrl_jax.training import parallel

_STARTED = time.perf_counter()


def run_mode(command: Command) -> None:
    """Writes samples, to `samples/NAME.npz` or as PNG, with a record and a picture.

    With condition.label, samples are of that class. For "all", sample `i` is of class `i` modulo
    the number of classes, and the picture has one row per class.

    Samples are drawn in parts, which are kept until the end. If the program is killed, the same
    command resumes and writes the same files. Points are stored unchanged, and images as uint8.
    Existing samples are never replaced.
    """
    opened = open_checkpoint(command)
    experiment, wanted = opened.experiment, opened.experiment.settings
    _check_condition(command.changes, wanted)
    if wanted["condition.label"]:
        experiment = conditioned(experiment)
    num = command.flags["num_samples"] or wanted["evaluate.num_samples"]
    record = _describe(opened, experiment, num)
    path = _find_path(opened, record)
    picture, record_file = _next_to(path, "picture.png"), _next_to(path, "json")
    parts = _next_to(path, "parts")
    first = parallel.is_first_process()
    # Only complete samples have a record next to them.
    is_done = record_file.exists() and path.exists() and read_json(record_file) == record
    if not is_done:
        opened.run.samples.mkdir(exist_ok=True)
        with lock(parts) if first else contextlib.nullcontext():
            open_shards = functools.partial(Shards, parts, record, num, batch_size(experiment, num))
            if first:  # Only one process may create the folder.
                open_shards()
            parallel.barrier("shards opened")
            shards = open_shards()
            _draw(opened, experiment, shards)
            num_shown = min(num, pictures.num_shown(experiment.source))
            starts = sample_starts(experiment, opened.checkpoint.state, num_shown)
            if first:
                with tqdm(total=num, unit="sample", desc="writing") as bar:
                    samples = _counted(shards.read(), bar)
                    with sample_files.writing(path, record["format"], samples, num):
                        _draw_picture(experiment, starts, shards, picture)
                        # Written before the samples get their name: samples without a record are
                        # not ours.
                        write_json(record_file, record)
                shards.remove()
    elif first and parts.exists():
        with lock(parts):  # Left by a kill right before their removal.
            shutil.rmtree(parts, ignore_errors=True)
    if first:
        print(f"{num:,} samples of step {opened.step:,}: {path}")
        print(f"picture: {picture}\nrecord: {record_file}")


def _check_condition(changes: Settings, wanted: Settings) -> None:
    """Raises an error for changes that have no effect with a class, or without one."""
    label = wanted["condition.label"]
    if label and "flow.num_refine_steps" in changes:
        raise UserError(
            f"flow.num_refine_steps has no effect with --class={label}; the number of refinement "
            "steps is that of condition.num_refine_steps"
        )
    unused = [key for key in changes if key.startswith("condition.") and key != "condition.label"]
    if unused and not label:
        name = "--classifier" if unused[0] == "condition.classifier" else unused[0]
        raise UserError(f"{name} needs --class=NAME or --class=all")


def _describe(opened: Opened, experiment: Experiment, num_samples: int) -> dict[str, Any]:
    """Returns everything that determines the samples, and their format."""
    condition: dict[str, Any] = {}
    if experiment.labels is not None:
        condition = settings.section(experiment.settings, "condition")
        # The identity of the classifier, not its path.
        condition["classifier"] = sha256_of_arrays(experiment.constants.classifier)
    return {
        "key": records.key_of(opened, num_samples, condition=condition),
        "format": experiment.settings["sample.format"],
    }


def _find_path(opened: Opened, record: dict[str, Any]) -> Path:
    """Returns the path of these samples, unless the chosen name belongs to other files."""
    wanted = opened.experiment.settings
    chosen, default = wanted["sample.name"], _default_name(opened.step, wanted["condition.label"])
    names = [chosen] if chosen else [default, f"{default}_{sha256_of_json(record)[:8]}"]
    for name in names:
        path = sample_files.target(
            opened.run.samples, name, record["format"], opened.experiment.source.kind
        )
        if _is_free(path, record):
            return path
    raise UserError(
        f"{path} exists and contains other samples or other files; choose another name with "
        "--config.sample.name"
    )


def _is_free(path: Path, record: dict[str, Any]) -> bool:
    """Whether a path is free or contains these samples, complete or unfinished."""
    for file in (_next_to(path, "json"), _next_to(path, "parts") / "manifest.json"):
        if file.is_file():
            held = read_json(file)
            return held == record or held.get("record") == record
    return not path.exists()


def _next_to(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


def _default_name(step: int, label: str) -> str:
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in label)[:100]
    return f"step_{step}_class_{safe}" if label else f"step_{step}"


def _draw(opened: Opened, experiment: Experiment, shards: Shards) -> None:
    """Draws the missing parts, and prints the time until the first one."""
    variables, constants = on_devices(experiment, opened.checkpoint.state)
    sample = Sampler(experiment)
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
            keep = {"refined": shards.count(first)}
            # The last part also has the full size, so that all run the same compiled program.
            part = sample(variables, constants, keep, first=first, full=shards.shard_size)
            if parallel.is_first_process():
                samples, is_image = part["refined"], experiment.source.kind == "images"
                shards.write(first, to_uint8(samples) if is_image else samples)
            bar.update(shards.count(first))
            if first == missing[0] and parallel.is_first_process():
                bar.write(f"first samples after {time.perf_counter() - _STARTED:.1f} s")


def _counted(parts: Iterator[np.ndarray], bar: Any) -> Iterator[np.ndarray]:
    for part in parts:
        yield part
        bar.update(len(part))


def _draw_picture(experiment: Experiment, starts: np.ndarray, shards: Shards, path: Path) -> None:
    enough = itertools.islice(shards.read(), -(-len(starts) // shards.shard_size))
    stored = np.concatenate(list(enough))[: len(starts)]
    samples = to_unit(stored) if stored.dtype == np.uint8 else stored
    if experiment.labels is not None and experiment.settings["condition.label"] == ALL:
        labels = experiment.labels(np.arange(len(samples)))
        figure = images.by_class(samples, labels, experiment.source.classes)
    else:
        figure = pictures.samples_and_data(experiment.source, starts, samples)
    pictures.save(figure, path)
