"""Writes samples of a run to files, in batches; also class-conditional ones."""

import dataclasses
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments import classifier, draw, pictures, run
from experiments.command import Command
from experiments.data.decode import to_uint8, to_unit
from experiments.errors import UserError
from experiments.experiment import Experiment, in_turn, with_class_weights
from experiments.files import read_json, replacing, sha256_of_arrays, sha256_of_json, write_json
from experiments.pictures import flow, images
from experiments.run import Opened
from experiments.settings import Flat, Settings
from fdrl_jax import compose
from fdrl_jax._names import nearest
from fdrl_jax.langevin import Potential
from fdrl_jax.priors import Batch
from fdrl_jax.training import parallel
from fdrl_jax.training.state import Variables

ALL = "all"  # The label of samples of all classes in turn.
_MAX_SAMPLES = 2**31  # Positions of samples are int32.
# All members of a zip get this date, the earliest possible, so that files do not depend on time.
_DATE = (1980, 1, 1, 0, 0, 0)


def sample(command: Command) -> None:
    """Writes samples to `samples/NAME.npz`, or as PNG files in a zip, with a record and a picture.

    Samples are drawn and written in batches. If the program is killed, the same command writes the
    same files. Points are stored unchanged, and images as uint8. Existing samples are never
    replaced.
    """
    opened = run.open_checkpoint(command)
    model, wanted = opened.experiment, opened.experiment.settings
    _check_condition(command.changes, wanted)
    if wanted.condition.label:
        model = conditioned(model)
    num = command.num_samples or draw.available(model, wanted.evaluate.num_samples)
    if num > _MAX_SAMPLES:
        raise UserError(f"--num_samples={num:,}: at most {_MAX_SAMPLES:,} samples can be numbered")
    if wanted.sample.rejection:
        draw.check_rejection(model, num)
    draw.batch_at(model, np.array([num - 1]))  # Raises an error if no image is stored for it.
    record = _describe(opened, model, num)
    path = _find_path(opened, record)
    picture, record_file = (path.with_name(f"{path.name}.{s}") for s in ("picture.png", "json"))
    opened.run.samples.mkdir(exist_ok=True)
    # Only complete samples have a record next to them, which `_find_path` has compared.
    is_done = record_file.exists() and path.exists()
    if not parallel.first_process_says(is_done):
        starts = draw.sample_starts(model, opened.state, min(num, pictures.num_shown(model.source)))
        shown = np.zeros_like(starts)
        batches = _batches(opened, model, num, shown)
        if parallel.is_first_process():
            with replacing(path) as file:
                _WRITERS[wanted.sample.format](file, batches, num)
                _draw_picture(model, starts, shown, picture)
                # Samples without a record are not ours, so the record is first.
                write_json(record_file, record)
        else:
            deque(batches, maxlen=0)  # Draws its share of each batch.
    if parallel.is_first_process():
        print(f"{num:,} samples of step {opened.step:,}: {path}")
        print(f"picture: {picture}\nrecord: {record_file}")


def interpolate(command: Command) -> None:
    """Writes a picture of samples along paths in the prior, with common noise (fig. 7)."""
    opened = run.open_checkpoint(command)
    if opened.experiment.source.kind != "images":
        raise UserError("--mode=interpolate is for images, but the data of this run are points")
    if parallel.is_first_process():
        figure = flow.interpolations(draw.interpolations(opened.experiment, opened.state))
        print(f"picture: {pictures.save(figure, opened.run.pictures / 'interpolation.png')}")


def conditioned(
    model: Experiment, guide: tuple[classifier.Apply, Variables] | None = None
) -> Experiment:
    """Returns the experiment with the class-conditional samples that its settings ask for.

    An experiment with a ratio for each class needs no classifier. Otherwise, the classifier is that
    of the settings, or `guide`: the function `(variables, images [B, H, W, C] in [-1, 1]) ->
    logits [B, classes]`, and its variables. A mixture then starts with components of the class.
    """
    options, source = model.settings.condition, model.source
    labels = labels_of(options.label, source.classes)
    if guide is None and not options.classifier:
        if model.problem.estimator.takes_labels:
            return dataclasses.replace(model, labels=labels)
        raise UserError(
            f"--class={options.label} needs --classifier: the folder of a classifier, from "
            "--mode=classifier; or a run that was trained with network.by_class"
        )
    path = Path(options.classifier)
    apply, variables = guide or classifier.open_to_guide(path, source.classes, source.event_shape)
    model = with_class_weights(model, lambda x: apply(variables, x))
    problem = model.problem

    def condition(estimator: Potential, arrays: Any, batch: Batch) -> Potential:
        return compose.condition(
            estimator,
            lambda x: apply(arrays, x),
            batch["label"],
            options.weight,
            output=problem.output,
            input_range=(-1.0, 1.0),
        )

    shortened = problem.flow._replace(num_refine_steps=options.num_refine_steps)
    return dataclasses.replace(
        model,
        problem=problem._replace(flow=shortened, condition=condition),
        constants=model.constants._replace(classifier=variables),
        labels=labels,
    )


def labels_of(name: str, classes: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `positions -> labels` for a class by name or number, or for all in turn."""
    if not classes:
        raise UserError(f"--class={name}: the data have no classes")
    if name == ALL:
        return in_turn(len(classes))
    if name in classes:
        label = classes.index(name)
    elif name.isdecimal() and int(name) < len(classes):
        label = int(name)
    else:
        raise UserError(
            f"--class={name} is not a class of the data{nearest(name, classes) or '.'} Allowed: "
            f"{', '.join(classes)}, a number from 0 to {len(classes) - 1}, or {ALL}"
        )
    return lambda positions: np.full(len(positions), label, np.int32)


def _batches(
    opened: Opened, model: Experiment, num: int, shown: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the samples as they are stored, and copies the first ones to `shown`, [M, ...]."""
    variables, constants = draw.on_devices(model, opened.state)
    sampler, size = draw.Sampler(model), draw.batch_size(model, num)
    is_first, is_image = parallel.is_first_process(), model.source.kind == "images"
    with tqdm(
        total=num, unit="sample", desc="sampling", smoothing=0.1, disable=not is_first
    ) as bar:
        for first in range(0, num, size):
            # The last batch also has the full size, so that all run the same compiled program.
            keep = {"refined": min(size, num - first)}
            x = sampler(variables, constants, keep, first=first, full=size)["refined"]
            if not np.isfinite(x).all():
                raise UserError(
                    f"the samples of step {opened.step:,} are not finite numbers, so nothing was "
                    "written; choose an earlier --checkpoint or a smaller flow.step_size"
                )
            stored = to_uint8(x) if is_image else x
            part = shown[first : first + size]
            part[:] = (to_unit(stored) if is_image else stored)[: len(part)]
            yield stored
            bar.update(len(x))
    if is_first and (share := sampler.share_accepted) is not None:
        print(f"sample.rejection accepts {share:.0%} of the samples at the first attempt")


def _check_condition(changes: Flat, wanted: Settings) -> None:
    """Raises an error for changes that have no effect with a class, or without one."""
    label = wanted.condition.label
    is_guided = label and (wanted.condition.classifier or not wanted.network.by_class)
    if is_guided and "flow.num_refine_steps" in changes:
        raise UserError(
            f"flow.num_refine_steps has no effect with --class={label}; set "
            "condition.num_refine_steps"
        )
    unused = [key for key in changes if key.startswith("condition.") and key != "condition.label"]
    if unused and not label:
        raise UserError(f"{', '.join(unused)}: needs --class=NAME or --class={ALL}")
    if unused and not is_guided:
        raise UserError(f"{', '.join(unused)}: needs --classifier")


def _describe(opened: Opened, model: Experiment, num_samples: int) -> Flat:
    """Returns everything that determines the samples, and their format."""
    condition: Flat = {}
    if model.problem.condition is not None:
        condition = dataclasses.asdict(model.settings.condition)
        # The identity of the classifier, not its path.
        condition["classifier"] = sha256_of_arrays(model.constants.classifier)
    elif label := model.settings.condition.label:
        condition = {"label": label}
    return {
        "key": run.key_of(opened, num_samples, condition=condition),
        "format": model.settings.sample.format,
    }


def _find_path(opened: Opened, record: Flat) -> Path:
    """Returns the path of these samples, unless the chosen name belongs to other files."""
    wanted, kind = opened.experiment.settings, opened.experiment.source.kind
    if kind == "points" and record["format"] != "npz":
        raise UserError(f"sample.format={record['format']!r} is for images; use 'npz' for points")
    label = "".join(c if c.isalnum() or c in "._-" else "_" for c in wanted.condition.label)[:100]
    usual = f"step_{opened.step}{f'_class_{label}' if label else ''}"
    usual_names = [usual, f"{usual}_{sha256_of_json(record)[:8]}"]
    for name in [wanted.sample.name] if wanted.sample.name else usual_names:
        path = opened.run.samples / f"{name}.{record['format']}"
        described = path.with_name(f"{path.name}.json")
        is_ours = described.is_file() and read_json(described) == record
        if is_ours or not (described.is_file() or path.exists()):
            return path
    raise UserError(
        f"{path} exists and contains other samples or other files; choose another name with "
        "--config.sample.name"
    )


def _write_npz(file: IO[bytes], batches: Iterator[np.ndarray], num_samples: int) -> None:
    part = next(batches)
    header = {
        "descr": np.lib.format.dtype_to_descr(part.dtype),
        "fortran_order": False,
        "shape": (num_samples, *part.shape[1:]),
    }
    with zipfile.ZipFile(file, "w") as archive, _member(archive, "arr_0.npy") as array:
        np.lib.format.write_array_header_1_0(array, header)
        array.write(part.tobytes())
        for part in batches:
            array.write(part.tobytes())


def _write_zip(file: IO[bytes], batches: Iterator[np.ndarray], num_samples: int) -> None:
    digits = max(6, len(str(num_samples - 1)))
    images = (image for part in batches for image in part)
    with zipfile.ZipFile(file, "w") as archive:
        for i, image in enumerate(images):
            with _member(archive, f"{i:0{digits}d}.png") as member:
                pixels = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(pixels).save(member, "png")


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # Not compressed: PNG files are compressed already, and raw pixels hardly shrink.
    return archive.open(zipfile.ZipInfo(name, _DATE), "w", force_zip64=True)


# "npz" has one array `arr_0`, as in common evaluation programs, and "zip" one PNG file per sample.
# Equal samples always give equal bytes.
_WRITERS = {"npz": _write_npz, "zip": _write_zip}


def _draw_picture(model: Experiment, starts: np.ndarray, shown: np.ndarray, path: Path) -> None:
    labels = np.zeros(0) if model.labels is None else model.labels(np.arange(len(shown)))
    if len(np.unique(labels)) > 1:
        figure = images.by_class(shown, labels, model.source.classes)
    else:
        figure = pictures.samples_and_data(model.source, starts, shown)
    pictures.save(figure, path)
