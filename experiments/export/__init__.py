"""A trained sampler as a folder that needs JAX and nothing of this program.

It holds the sampler as StableHLO, its arrays, a loader, and what one should know of them.
"""

import dataclasses
import datetime
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from experiments import divergence_formula, draw, run, settings
from experiments.command import Command
from experiments.errors import UserError
from experiments.experiment import Experiment
from experiments.export import card
from experiments.files import (
    replacing,
    sha256_of_file,
    unfinished_folder,
    write_json,
    write_text,
)
from fdrl_jax.training import parallel, samplers
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import TrainState

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LIFETIME = (
    "JAX guarantees that an exported artefact can be read by versions up to six months newer than "
    "the one that wrote it, and up to three weeks older. In tests, versions about ten months newer "
    "could not read it. An artefact of JAX 0.12 with a symbolic batch size could not be read by "
    "0.10.2, but the other direction worked. model.safetensors and arrays.npz do not expire. For a "
    "newer JAX, export the checkpoint again."
)
_HASHED = ("sampler.stablehlo", "arrays.npz", "model.safetensors")
_PROMISED = datetime.timedelta(days=182)  # The six months of `LIFETIME`.


def export(command: Command) -> None:
    """Writes StableHLO, safetensors, a loader and a model card to `export/step_N` of the run.

    If settings of the flow differ from those of the run, the folder has another name. An earlier
    export is replaced when the new one is complete.
    """
    if not command.platforms or {*command.platforms} - {*PLATFORMS}:
        given = ",".join(command.platforms)
        raise UserError(f"--platforms={given}: allowed are {', '.join(PLATFORMS)}")
    opened = run.open_checkpoint(command)
    if not parallel.is_first_process():
        return
    key = run.key_of(opened, None)
    folder = opened.run.exports / run.name_of(opened, key)
    evaluation = opened.run.newest_evaluation(key)
    opened.run.exports.mkdir(exist_ok=True)
    with unfinished_folder(opened.run.exports) as temporary:
        unfinished = temporary / folder.name
        write(opened.experiment, opened.state, unfinished, command.platforms, evaluation)
        if folder.exists():
            folder.rename(temporary / "earlier")
        unfinished.rename(folder)
    print(f"sampler of step {opened.step:,}: {folder}")
    print(f"note: {LIFETIME}")
    loader = shlex.quote(str(folder / "load_sampler.py"))
    print(f"try: python {loader} --num_samples=100 --out=samples.npz")


def write(
    model: Experiment,
    state: TrainState,
    folder: Path,
    platforms: Sequence[str],
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Exports the sampler of a train state into a new folder, with the record of its evaluation."""
    tree = {"network": model.sampling_variables(state)}
    if model.constants.prior:
        tree["prior"] = model.constants.prior
    flat = sorted(flatten_dict(tree, sep="/").items())
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in flat}
    exported = _export(model, arrays, platforms)
    folder.mkdir(parents=True)
    with replacing(folder / "sampler.stablehlo") as file:
        file.write(exported.serialize())
    with replacing(folder / "arrays.npz") as file:
        np.savez(file, **arrays)
    with replacing(folder / "model.safetensors") as file:
        # safetensors writes the buffer of an array as it is, so the array must be contiguous.
        ordered = {name: np.array(array, order="C") for name, array in arrays.items()}
        file.write(save(ordered, {"format": "flax"}))
    write_json(folder / "config.json", _arguments(model))
    loader = Path(__file__).with_name("load_sampler.py").read_text("utf-8")
    write_text(folder / "load_sampler.py", loader)
    metadata = _metadata(model, int(state.step), exported, arrays)
    write_text(folder / "README.md", card.write(model, metadata, evaluation))
    hashes = {name: sha256_of_file(folder / name) for name in _HASHED}
    write_json(folder / "metadata.json", {**metadata, "sha256": hashes})


def _export(
    model: Experiment, arrays: dict[str, Any], platforms: Sequence[str]
) -> jax.export.Exported:
    sampler, key = samplers.make_sampler(model.problem), model.root_key

    def sample(arrays: dict[str, Any], batch: dict[str, Any]) -> Any:
        tree = unflatten_dict(arrays, sep="/")
        constants = Constants((), tree.get("prior", ()))  # Most priors have no arrays.
        return sampler(key, tree["network"], constants, batch).refined

    example = draw.batch_at(model, np.zeros(1, np.int32))
    (size,) = jax.export.symbolic_shape("batch")
    shapes = {
        name: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for name, a in example.items()
    }
    like = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
    # The lowered program is shared, so it should contain no paths of this machine.
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        return jax.export.export(jax.jit(sample), platforms=list(platforms))(like, shapes)
    finally:
        jax.config.update(name, before)


def _arguments(model: Experiment) -> dict[str, Any]:
    """Returns the arguments of library functions that rebuild the sampler, as values for JSON."""
    network = model.network
    fields = [f.name for f in dataclasses.fields(network) if f.name not in ("parent", "name")]
    return {
        "kind": model.source.kind,
        "event_shape": list(model.source.event_shape),
        "network": {name: getattr(network, name) for name in fields},
        "prior": model.prior_arguments,
        "loss": model.settings.loss.name,
        "divergence": divergence_formula.describe(model.settings.loss.divergence),
        "flow": model.problem.flow._asdict(),
        "seed": model.settings.seed,
        "settings": settings.shareable(model.settings),
    }


def _metadata(
    model: Experiment, step: int, exported: jax.export.Exported, arrays: dict[str, Any]
) -> dict[str, Any]:
    today = datetime.datetime.now(datetime.UTC).date()
    return {
        "step": step,
        "settings": settings.shareable(model.settings),
        "written": today.isoformat(),
        "expires": (today + _PROMISED).isoformat(),
        "kind": model.source.kind,
        "event_shape": list(model.source.event_shape),
        "needs_source": model.source.starts is not None,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "outputs": [str(a) for a in exported.out_avals],
        "arrays": {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        },
        "lifetime": LIFETIME,
    }
