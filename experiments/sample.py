"""Writes samples of a run to files, in parts that survive a kill; also class-conditional ones."""

import contextlib
import dataclasses
import itertools
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from experiments import classifier, draw, pictures, run
from experiments.command import Command
from experiments.data.decode import to_uint8, to_unit
from experiments.errors import UserError
from experiments.experiment import Experiment, in_turn, with_class_weights
from experiments.files import (
    locked,
    read_json,
    replacing,
    sha256_of_arrays,
    sha256_of_json,
    write_json,
)
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

    Samples are drawn in parts, which are kept until the end. If the program is killed, the same
    command resumes and writes the same files. Points are stored unchanged, and images as uint8.
    Existing samples are never replaced.
    """
    opened = run.open_checkpoint(command)
    model, wanted = opened.experiment, opened.experiment.settings
    _check_condition(command.changes, wanted)
    if wanted.condition.label:
        model = conditioned(model)
    num = command.num_samples or wanted.evaluate.num_samples
    if num > _MAX_SAMPLES:
        raise UserError(f"--num_samples={num:,}: at most {_MAX_SAMPLES:,} samples can be numbered")
    if wanted.sample.rejection:
        draw.check_rejection(model, num)
    record = _describe(opened, model, num)
    path = _find_path(opened, record)
    picture, record_file, parts = (_next_to(path, s) for s in ("picture.png", "json", "parts"))
    opened.run.samples.mkdir(exist_ok=True)
    is_first = parallel.is_first_process()
    # Next to the folder, which is temporary; hidden, because it stays among the samples.
    lock = parts.with_name(f".{parts.name}.lock")
    other = "choose another name with --config.sample.name"
    with locked(lock, str(parts), other) if is_first else contextlib.nullcontext():
        # Only complete samples have a record next to them.
        is_done = record_file.exists() and path.exists() and read_json(record_file) == record
        if parallel.same_on_all_processes(str(is_done)) and not is_done:
            if is_first:
                _Parts.create(parts, record, draw.batch_size(model, num), wanted)
            parallel.barrier("parts created")
            stored = _Parts(parts, record, num)
            _draw_parts(opened, model, stored)
            num_shown = min(num, pictures.num_shown(model.source))
            starts = draw.sample_starts(model, opened.state, num_shown)
            if is_first:
                unfinished = path.with_name(f".{path.name}.unfinished")
                _WRITERS[wanted.sample.format](unfinished, stored.read(), num)
                _draw_picture(model, starts, stored, picture)
                # Samples without a record are not ours, so the record is first.
                write_json(record_file, record)
                unfinished.rename(path)
        if is_first:
            shutil.rmtree(parts, ignore_errors=True)
    if is_first:
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


class _Parts:
    """Equal parts of a set of samples, each in a file whose name has its digest.

    A manifest describes the samples, so that parts with other settings are never mixed in.
    """

    def __init__(self, folder: Path, record: Flat, num_samples: int) -> None:
        self._files: dict[str, Path] = {}  # By first position, as `missing` found them.
        saved = read_json(folder / "manifest.json", record=dict, size=int)
        if saved["record"] != record:  # Begun by another program after this one chose the name.
            raise UserError(
                f"{folder} contains parts of other samples; choose another name with "
                "--config.sample.name"
            )
        self.num_samples, self.size, self.folder = num_samples, saved["size"], folder

    @staticmethod
    def create(folder: Path, record: Flat, size: int, wanted: Settings) -> None:
        """Begins a set of parts. If it exists, reports what changed since then."""
        manifest = folder / "manifest.json"
        if manifest.exists():
            run.report_changes(read_json(manifest, environment=dict)["environment"], wanted)
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        content = {"record": record, "size": size, "environment": run.environment(wanted)}
        write_json(manifest, content)

    def missing(self) -> dict[int, int]:
        """Returns the parts that are missing or damaged: first position and number of samples."""
        self._files = {file.name[:10]: file for file in self.folder.glob("*.npy")}
        missing = (first for first in self._firsts() if self._intact(first) is None)
        return {first: min(self.size, self.num_samples - first) for first in missing}

    def write(self, first: int, samples: np.ndarray) -> None:
        path = self.folder / f"{first:010d}_{sha256_of_arrays(samples)[:16]}.npy"
        with replacing(path) as file:
            np.save(file, samples)
        self._files[f"{first:010d}"] = path

    def read(self) -> Iterator[np.ndarray]:
        for first in self._firsts():
            part = self._intact(first)
            if part is None:
                raise UserError(f"{self.folder} was changed by another program; rerun to resume")
            yield part

    def _intact(self, first: int) -> np.ndarray | None:
        if (file := self._files.get(f"{first:010d}")) is None:
            return None
        with contextlib.suppress(ValueError, EOFError, FileNotFoundError):
            samples: np.ndarray = np.load(file, allow_pickle=False)
            if file.stem.endswith(sha256_of_arrays(samples)[:16]):
                return samples
        file.unlink(missing_ok=True)
        return None

    def _firsts(self) -> range:
        return range(0, self.num_samples, self.size)


def _draw_parts(opened: Opened, model: Experiment, parts: _Parts) -> None:
    """Draws the parts that are missing, and reports how many samples rejection accepts."""
    variables, constants = draw.on_devices(model, opened.state)
    sampler, is_image = draw.Sampler(model), model.source.kind == "images"
    missing = parts.missing()
    with tqdm(
        total=parts.num_samples,
        initial=parts.num_samples - sum(missing.values()),
        unit="sample",
        desc="sampling",
        smoothing=0.1,
        disable=not parallel.is_first_process(),
    ) as bar:
        for first, num in missing.items():
            # The last part also has the full size, so that all run the same compiled program.
            drawn = sampler(variables, constants, {"refined": num}, first=first, full=parts.size)[
                "refined"
            ]
            if not np.isfinite(drawn).all():
                shutil.rmtree(parts.folder, ignore_errors=True)
                raise UserError(
                    f"the samples of step {opened.step:,} are not finite numbers, so nothing was "
                    "written; choose an earlier --checkpoint or a smaller flow.step_size"
                )
            if parallel.is_first_process():
                parts.write(first, to_uint8(drawn) if is_image else drawn)
            bar.update(num)
    if parallel.is_first_process() and (share := sampler.share_accepted) is not None:
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
        # These samples, complete or unfinished.
        described = (_next_to(path, "json"), _next_to(path, "parts") / "manifest.json")
        held = next((read_json(file) for file in described if file.is_file()), None)
        is_ours = held is not None and record in (held, held.get("record"))
        if is_ours or (held is None and not path.exists()):
            return path
    raise UserError(
        f"{path} exists and contains other samples or other files; choose another name with "
        "--config.sample.name"
    )


def _next_to(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


def _write_npz(path: Path, parts: Iterator[np.ndarray], num_samples: int) -> None:
    part = next(parts)
    header = {
        "descr": np.lib.format.dtype_to_descr(part.dtype),
        "fortran_order": False,
        "shape": (num_samples, *part.shape[1:]),
    }
    with zipfile.ZipFile(path, "w") as archive, _member(archive, "arr_0.npy") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(part.tobytes())
        for part in parts:
            file.write(part.tobytes())


def _write_zip(path: Path, parts: Iterator[np.ndarray], num_samples: int) -> None:
    from PIL import Image

    digits = max(6, len(str(num_samples - 1)))
    images = (image for part in parts for image in part)
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(images):
            with _member(archive, f"{i:0{digits}d}.png") as file:
                pixels = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(pixels).save(file, "png")


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # Not compressed: PNG files are compressed already, and raw pixels hardly shrink.
    return archive.open(zipfile.ZipInfo(name, _DATE), "w", force_zip64=True)


# "npz" has one array `arr_0`, as in common evaluation programs, and "zip" one PNG file per sample.
# Equal samples always give equal bytes.
_WRITERS = {"npz": _write_npz, "zip": _write_zip}


def _draw_picture(model: Experiment, starts: np.ndarray, parts: _Parts, path: Path) -> None:
    enough = itertools.islice(parts.read(), -(-len(starts) // parts.size))
    stored = np.concatenate(list(enough))[: len(starts)]
    shown = to_unit(stored) if stored.dtype == np.uint8 else stored
    labels = np.zeros(0) if model.labels is None else model.labels(np.arange(len(shown)))
    if len(np.unique(labels)) > 1:
        figure = images.by_class(shown, labels, model.source.classes)
    else:
        figure = pictures.samples_and_data(model.source, starts, shown)
    pictures.save(figure, path)
