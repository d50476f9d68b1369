"""A trained sampler as a folder that needs JAX and nothing of this program.

It holds the sampler as StableHLO, its arrays, a loader, and what one should know of them.
"""

import dataclasses
import datetime
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from experiments import divergence_formula, settings
from experiments.build import Experiment
from experiments.errors import UserError
from experiments.export import card
from experiments.files import replacing, sha256_of_file, write_json, write_text
from experiments.sampling.draw import batch_at
from fdrl_jax._names import nearest
from fdrl_jax.training import samplers
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


def write(
    experiment: Experiment,
    train_state: TrainState,
    folder: Path,
    platforms: Sequence[str],
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Exports the sampler of a train state into a folder.

    Files of an earlier export are replaced. The model card shows the record of an evaluation of
    this state.

    Raises:
      UserError: for an unknown platform or a folder that cannot be written.
    """
    for wanted in platforms or ("",):
        if wanted not in PLATFORMS:
            # JAX's own name for two of them.
            hint = "; did you mean 'cuda'?" if wanted == "gpu" else nearest(wanted, PLATFORMS)
            raise UserError(
                f"--platforms={wanted} is unknown{hint or '.'} Allowed: {', '.join(PLATFORMS)}"
            )
    tree = {"network": experiment.sampling_variables(train_state)}
    if experiment.constants.prior:
        tree["prior"] = experiment.constants.prior
    flat = sorted(flatten_dict(tree, sep="/").items())
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in flat}
    exported = _export(experiment, arrays, platforms)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "sampler.stablehlo") as file:
            file.write(exported.serialize())
        with replacing(folder / "arrays.npz") as file:
            np.savez(file, **arrays)
        with replacing(folder / "model.safetensors") as file:
            # safetensors writes the buffer of an array as it is, so the array must be contiguous.
            ordered = {name: np.array(array, order="C") for name, array in arrays.items()}
            file.write(save(ordered, {"format": "flax"}))
        write_json(folder / "config.json", _arguments(experiment))
        hashes = {name: sha256_of_file(folder / name) for name in _HASHED}
        loader = Path(__file__).with_name("load_sampler.py").read_text("utf-8")
        write_text(folder / "load_sampler.py", loader)
        metadata = _metadata(experiment, int(train_state.step), exported, arrays)
        write_text(folder / "README.md", card.write(experiment, metadata, evaluation))
        # Written last: the loader then detects an export that was interrupted.
        write_json(folder / "metadata.json", {**metadata, "sha256": hashes})
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def _export(
    experiment: Experiment, arrays: dict[str, Any], platforms: Sequence[str]
) -> jax.export.Exported:
    sampler, key = samplers.make_sampler(experiment.problem), experiment.root_key

    def sample(arrays: dict[str, Any], batch: dict[str, Any]) -> Any:
        tree = unflatten_dict(arrays, sep="/")
        constants = Constants((), tree.get("prior", ()))  # Most priors have no arrays.
        return sampler(key, tree["network"], constants, batch).refined

    example = batch_at(experiment, np.zeros(1, np.int32))
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


def _arguments(experiment: Experiment) -> dict[str, Any]:
    """Returns the arguments of library functions that rebuild the sampler, as values for JSON."""
    network = experiment.network
    fields = [f.name for f in dataclasses.fields(network) if f.name not in ("parent", "name")]
    return {
        "kind": experiment.source.kind,
        "event_shape": list(experiment.source.event_shape),
        "network": {name: getattr(network, name) for name in fields},
        "prior": experiment.prior_arguments,
        "loss": experiment.settings["loss.name"],
        "divergence": divergence_formula.describe(experiment.settings["loss.divergence"]),
        "flow": experiment.problem.flow._asdict(),
        "seed": experiment.settings["seed"],
        "settings": settings.shareable(experiment.settings),
    }


def _metadata(
    experiment: Experiment, step: int, exported: jax.export.Exported, arrays: dict[str, Any]
) -> dict[str, Any]:
    today = datetime.datetime.now(datetime.UTC).date()
    return {
        "step": step,
        "settings": settings.shareable(experiment.settings),
        "written": today.isoformat(),
        "expires": (today + _PROMISED).isoformat(),
        "kind": experiment.source.kind,
        "event_shape": list(experiment.source.event_shape),
        "needs_source": experiment.source.starts is not None,
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
