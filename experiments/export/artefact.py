"""Writes a sampler as StableHLO, with its arrays, a loader and what one should know of them."""

import contextlib
import datetime
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from experiments.build import Experiment
from experiments.errors import UserError
from experiments.files import replacing, sha256_of_file, write_json, write_text
from experiments.sampling.draw import batch_at, sampling_key
from fdrl_jax import samplers
from fdrl_jax.names import nearest
from fdrl_jax.problem import Constants
from fdrl_jax.state import TrainState

# Settings that hold paths of this machine.
_PATHS = (
    *("data.dir", "condition.classifier"),
    *("evaluate.inception_weights", "evaluate.legacy_weights"),
)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LIFETIME = (
    "JAX promises that an exported artefact can be read by versions up to six months newer than "
    "the one that wrote it, and up to three weeks older. Measured: an artefact of JAX 0.12 with a "
    "symbolic batch is not read by 0.10.2; the other way works. arrays.npz outlives the artefact; "
    "with a newer JAX, export the checkpoint again."
)
_README = """# A sampler of fdrl_jax

Step {step:,} of a training on `{name}`, for {platforms}. It needs JAX and `flatbuffers`, and
nothing of the program that trained it:

    python load_sampler.py --num_samples=1000 --out=samples.npz

or in Python: `from load_sampler import Sampler; samples = Sampler()(1000)`.
Sample `i` is the same however many are drawn.

| file | holds |
|---|---|
| `sampler.stablehlo` | the program, `jax.export`'s format, for any batch size |
| `arrays.npz` | parameters of the network ({weights}), and the prior's arrays; plain arrays |
| `load_sampler.py` | reads both and draws |
| `metadata.json` | settings, shapes, versions, hashes |

How long it lasts: {lifetime}
"""


def write(
    experiment: Experiment, train_state: TrainState, folder: Path, platforms: Sequence[str]
) -> None:
    """Exports the sampler of a train state into a folder.

    Args:
      experiment: the run.
      train_state: one replica.
      folder: made if missing; files of an earlier export are replaced.
      platforms: what it is to run on, of `PLATFORMS`.

    Raises:
      UserError: for an unknown platform or a folder that cannot be written.
    """
    for wanted in platforms or ("",):
        if wanted not in PLATFORMS:
            allowed = ", ".join(PLATFORMS)
            raise UserError(
                f"--platforms={wanted} is unknown{nearest(wanted, PLATFORMS) or '.'} "
                f"Allowed: {allowed}"
            )
    arrays, treedef = _flatten(train_state, experiment)
    exported = _export(experiment, arrays, treedef, platforms)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "sampler.stablehlo") as file:
            file.write(exported.serialize())
        with replacing(folder / "arrays.npz") as file:
            np.savez(file, **arrays)
        hashes = {
            name: sha256_of_file(folder / name) for name in ("sampler.stablehlo", "arrays.npz")
        }
        loader = Path(__file__).with_name("load_sampler.py").read_text("utf-8")
        write_text(folder / "load_sampler.py", loader)
        metadata = _metadata(experiment, int(train_state.step), exported, arrays)
        readme = _README.format(
            step=metadata["step"],
            name=experiment.source.name,
            platforms=", ".join(platforms),
            weights=experiment.settings["sample.weights"],
            lifetime=LIFETIME,
        )
        write_text(folder / "README.md", readme)
        # Last: an export that was cut short does not match its metadata, which the loader tells.
        write_json(folder / "metadata.json", {**metadata, "sha256": hashes})
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def _flatten(train_state: TrainState, experiment: Experiment) -> tuple[dict[str, Any], Any]:
    """Names each array that the sampler reads by its path; the tree is left to the artefact."""
    tree = {
        "network": experiment.sampling_variables(train_state),
        "prior": experiment.constants.prior,
    }
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in paths
    }
    return arrays, treedef


def _export(
    experiment: Experiment, arrays: dict[str, Any], treedef: Any, platforms: Sequence[str]
) -> jax.export.Exported:
    sampler, key = samplers.make_sampler(experiment.problem), sampling_key(experiment)
    names = list(arrays)

    def sample(arrays: dict[str, Any], batch: dict[str, Any]) -> Any:
        tree = jax.tree.unflatten(treedef, [arrays[name] for name in names])
        return sampler(key, tree["network"], Constants((), tree["prior"]), batch).refined

    example = batch_at(experiment, np.zeros(1, np.int32))
    (size,) = jax.export.symbolic_shape("batch")
    shapes = {
        name: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for name, a in example.items()
    }
    like = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
    with _without_source_paths():
        return jax.export.export(jax.jit(sample), platforms=list(platforms))(like, shapes)


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keeps the paths of this machine's source files out of lowered programs, which are shared."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _metadata(
    experiment: Experiment, step: int, exported: jax.export.Exported, arrays: dict[str, Any]
) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "numpy")
    return {
        "step": step,
        # The folder is made to be shared: where files are on this machine is nobody's business.
        "settings": {k: v for k, v in experiment.settings.items() if k not in _PATHS},
        "written": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "kind": experiment.source.kind,
        "event_shape": list(experiment.source.event_shape),
        "needs_source": experiment.source.starts is not None,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "outputs": [str(a) for a in exported.out_avals],
        "arrays": {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "lifetime": LIFETIME,
    }
