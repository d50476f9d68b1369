"""A trained sampler as a folder that needs nothing of this program.

It has the arguments and the arrays that `fdrl_jax.pretrained` builds the sampler from, and what one
should know of them; and, unless it is compact, the sampler as StableHLO with a loader that needs
only JAX.
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
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from experiments import draw, run, settings
from experiments.command import Command
from experiments.errors import UserError
from experiments.experiment import Experiment
from experiments.export import card, compact
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
# The functions of `fdrl_jax.priors` by the names of the setting, where these differ.
_PRIORS = {"data_dependent": "gaussian", "source": "batch"}
_PROMISED = datetime.timedelta(days=182)  # The six months of `LIFETIME`.


def export(command: Command) -> None:
    """Writes safetensors, StableHLO, a loader and a model card to `export/step_N` of the run.

    A compact export, `export/step_N_compact`, has arrays of 8 bits and no StableHLO. If settings of
    the flow differ from those of the run, the folder has another name. An earlier export is
    replaced when the new one is complete.
    """
    if not command.platforms or {*command.platforms} - {*PLATFORMS}:
        given = ",".join(command.platforms)
        raise UserError(f"--platforms={given}: allowed are {', '.join(PLATFORMS)}")
    opened = run.open_checkpoint(command)
    if opened.experiment.settings.sample.rejection:
        raise UserError(
            "sample.rejection: an exported sampler does not reject samples; add "
            "--config.sample.rejection=False"
        )
    if not parallel.is_first_process():
        return
    key = run.key_of(opened, None)
    name = run.name_of(opened, key) + "_compact" * command.compact
    folder = opened.run.exports / name
    evaluation = opened.run.newest_evaluation(key)
    opened.run.exports.mkdir(exist_ok=True)
    with unfinished_folder(opened.run.exports) as temporary:
        unfinished = temporary / folder.name
        if command.compact:
            write_compact(
                opened.experiment,
                opened.state,
                unfinished,
                evaluation,
                rank=command.prior_rank,
                num_frequencies=command.prior_frequencies,
            )
        else:
            write(opened.experiment, opened.state, unfinished, command.platforms, evaluation)
        if folder.exists():
            folder.rename(temporary / "earlier")
        unfinished.rename(folder)
    print(f"sampler of step {opened.step:,}: {folder}")
    if not command.compact:
        print(f"note: {LIFETIME}")
        loader = shlex.quote(str(folder / "load_sampler.py"))
        print(f"try: python {loader} {card.flags(opened.experiment)}")
    print(f"in Python: sampler = fdrl_jax.pretrained({str(folder)!r})")


def write(
    model: Experiment,
    state: TrainState,
    folder: Path,
    platforms: Sequence[str],
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Exports the sampler of a train state into a new folder, with the record of its evaluation."""
    arrays = _arrays(model, state)
    exported = _export(model, arrays, platforms)
    folder.mkdir(parents=True)
    with replacing(folder / "sampler.stablehlo") as file:
        file.write(exported.serialize())
    with replacing(folder / "arrays.npz") as file:
        np.savez(file, **arrays)
    loader = Path(__file__).with_name("load_sampler.py").read_text("utf-8")
    write_text(folder / "load_sampler.py", loader)
    _write_arguments(model, state, arrays, folder)
    metadata = _metadata(model, int(state.step), exported, arrays)
    write_text(folder / "README.md", card.write(model, state, evaluation, metadata))
    hashed = ("sampler.stablehlo", "arrays.npz", "model.safetensors")
    hashes = {name: sha256_of_file(folder / name) for name in hashed}
    write_json(folder / "metadata.json", {**metadata, "sha256": hashes})


def write_compact(
    model: Experiment,
    state: TrainState,
    folder: Path,
    evaluation: Mapping[str, Any] | None = None,
    *,
    rank: int,
    num_frequencies: int,
) -> None:
    """Exports only what `fdrl_jax.pretrained` reads, in 8 bits, and the model card.

    For the prior's rank and number of frequencies, see `compact.simplified`.
    """
    model = compact.simplified(model, rank, num_frequencies)
    folder.mkdir(parents=True)
    _write_arguments(model, state, compact.rounded(_arrays(model, state)), folder)
    write_text(folder / "README.md", card.write(model, state, evaluation))


def _arrays(model: Experiment, state: TrainState) -> dict[str, Any]:
    """Returns the arrays that samples are drawn with, by name, in order."""
    tree = {"network": model.sampling_variables(state)}
    if model.constants.prior:
        tree["prior"] = model.constants.prior
    flat = sorted(flatten_dict(tree, sep="/").items())
    return {name: np.asarray(array) for name, array in flat}


def _write_arguments(
    model: Experiment, state: TrainState, arrays: Mapping[str, Any], folder: Path
) -> None:
    with replacing(folder / "model.safetensors") as file:
        # safetensors writes the buffer of an array as it is, so the array must be contiguous.
        ordered = {name: np.array(array, order="C") for name, array in arrays.items()}
        file.write(save(ordered, {"format": "flax"}))
    write_json(folder / "config.json", {"step": int(state.step), **_arguments(model)})


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
    prior = model.settings.prior.name
    denoiser = {"denoiser": _fields(model.denoiser)} if model.denoiser else {}
    return {
        "data": run.describe_data(model.source),
        "event_shape": list(model.source.event_shape),
        "network": _fields(model.network),
        **denoiser,
        "prior": {"name": _PRIORS.get(prior, prior), **model.prior_arguments},
        "loss": model.settings.loss.name,
        "divergence": model.settings.loss.divergence,
        "flow": model.problem.flow._asdict(),
        "seed": model.settings.seed,
        "settings": settings.shareable(model.settings),
    }


def _fields(module: nn.Module) -> dict[str, Any]:
    """Returns the attributes of a Flax module."""
    names = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
    return {name: getattr(module, name) for name in names}


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
        "by_class": list(model.source.classes) if model.settings.network.by_class else [],
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
