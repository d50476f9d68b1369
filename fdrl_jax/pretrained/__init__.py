"""Trained samplers: those that ship with the package, exports of the program, and the Hub's.

A sampler is a folder of two files. `config.json` has the arguments of the functions of this package
that build its network, prior and flow, and `model.safetensors` has their arrays. Nothing in them is
executed.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.tree_util import Partial
from jax.typing import ArrayLike

from fdrl_jax import _keys, _prior_fit, divergences, networks, priors
from fdrl_jax._labels import one_or_nan
from fdrl_jax._names import nearest
from fdrl_jax.divergences import FDivergence
from fdrl_jax.langevin import check_count
from fdrl_jax.method import FDRL
from fdrl_jax.priors import Prior
from fdrl_jax.training import samplers
from fdrl_jax.training.problem import Constants, Estimator, Problem
from fdrl_jax.training.state import Variables

__all__ = ["Sampler", "pretrained"]

Array = jax.Array
ArraySampler = Callable[[Array, Variables, Constants, dict[str, Array]], Array]
_SHIPPED = Path(__file__).parent
_CONFIG, _ARRAYS = "config.json", "model.safetensors"
_NEEDED = ("divergence", "event_shape", "flow", "loss", "network", "prior")
_SMALLEST_RATIO = 1e-6  # An unconstrained ratio may be negative, and then has no logarithm.


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sampler:
    """A trained density ratio with the prior and the flow that it was trained for.

    It draws samples, and its parts are open to everything else in this package:

        sampler = fdrl.pretrained("mnist")
        images = sampler(key, 64)
        further = sampler.method.sample(key, images, sampler.estimator)  # flows them again
        log_ratio = sampler.log_ratio(images)

    Attributes:
      problem: estimator, loss, divergence, flow and prior.
      variables: the averaged variables of the network, as float32.
      prior_params: the arrays of the prior.
      config: how the sampler was trained, with all settings of its run.
      shift: what is added to samples of the network's unit, times `scale`, to get those of the
        data: means and standard deviations of the features of points, from `fit`.
      scale: see `shift`.
    """

    problem: Problem
    variables: Variables
    prior_params: Any
    config: Mapping[str, Any]
    shift: Any = 0.0
    scale: Any = 1.0

    def __call__(
        self,
        key: Array,
        num_samples: int,
        *,
        batch_size: int = 500,
        labels: ArrayLike | None = None,
    ) -> Array:
        """Draws samples (algorithm 2).

        Sample `i` depends only on the key and `i`, so a larger number starts with the same samples.
        With the key `training.rng.root_key(seed)` of the run, they are those of the program.

        Args:
          key: a JAX key.
          num_samples: number of samples, static.
          batch_size: samples per call of the compiled flow, which is compiled once per size.
          labels: the class of each sample, [num_samples], for a sampler that has a density ratio
            for each class, `problem.estimator.takes_labels`. Without it, sample `i` is of class
            `i % num_classes`. The names of the classes are `config["data"]["classes"]`.

        Returns:
          Samples, float32 [num_samples, ...]. Those of images may exceed
          [-1, 1].

        Raises:
          TypeError: for anything else than a key.
          ValueError: for a key of another generator than "threefry2x32", a number below 1, or
            labels that are out of range, of another number than the samples, or not needed.
        """
        return self._in_batches(self._draw, key, num_samples, batch_size, labels)

    def prior(
        self,
        key: Array,
        num_samples: int,
        *,
        batch_size: int = 500,
        labels: ArrayLike | None = None,
    ) -> Array:
        """Returns where the samples of this key and these labels start, `x_0`, as `__call__`."""
        return self._in_batches(self._start, key, num_samples, batch_size, labels)

    def path(self, key: Array, num_samples: int, *, labels: ArrayLike | None = None) -> Array:
        """Returns the samples of this key at every step of the flow, from the prior to the end.

        A denoiser, which some samplers have, is not applied. `labels` are those of `__call__`.

        Returns:
          `x_0 ... x_{K+κ}`, float32 [K + κ + 1, num_samples, ...].
        """
        _check_positive("num_samples", num_samples)
        batch = {"position": jnp.arange(num_samples), **self._labels(num_samples, labels)}
        return self._unit_of_data(self._path(*self._arguments(key), batch))

    def log_ratio(self, x: Array, labels: ArrayLike | None = None) -> Array:
        """Returns the estimate of `log q~/p` at `x`, [B, ...] to [B]: 0 where samples match data.

        A ratio below 1e-6, which a network trained with LSIF may return, counts as 1e-6. The ratio
        is that of data with the noise of training, `config["settings"]["data.dequantisation"]`. Add
        it to clean images, and to samples of a sampler with a denoiser. A sampler that has a ratio
        for each class needs the `labels` of `x`, [B].

        Raises:
          ValueError: if labels are missing, out of range or not needed; for other shapes or bytes.
        """
        if labels is None and self.problem.estimator.takes_labels:
            raise ValueError("this sampler has a ratio for each class: the labels of x are missing")
        x = jnp.asarray(x)
        is_bytes = len(self.event_shape) == 3 and not jnp.issubdtype(x.dtype, jnp.floating)
        if x.shape[1:] != self.event_shape or is_bytes:
            shape = ", ".join(map(str, self.event_shape))
            raise ValueError(
                f"x must be floating-point numbers, [B, {shape}], got {x.dtype} of shape {x.shape}"
            )
        x = jnp.asarray((x - self.shift) / self.scale, x.dtype)
        output = self._apply(self.variables, x, *self._labels(len(x), labels).values())
        is_log = self.method.output == "log_ratio"
        return output if is_log else jnp.log(jnp.maximum(output, _SMALLEST_RATIO))

    @property
    def method(self) -> FDRL:
        """The loss, the divergence and the flow."""
        return self.problem.method

    @property
    def estimator(self) -> Callable[[Array], Array]:
        """The network with its variables, `x [B, ...] -> [B]`, which returns `method.output`.

        If it has a ratio for each class, `(x, labels [B]) -> [B]`.

        It is a pytree of its arrays, so that `method.sample` compiles a flow along it once.
        """
        bound: Callable[[Array], Array] = Partial(  # type: ignore[no-untyped-call]
            self.problem.estimator.apply, self.variables
        )
        return bound

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return tuple(self.config["event_shape"])

    def __repr__(self) -> str:
        size = sum(np.size(a) for a in jax.tree.leaves(self.variables))
        method = self.method
        return (
            f"Sampler(event_shape={self.event_shape}, num_parameters={size:,}, "
            f"num_steps={method.num_steps + method.num_refine_steps})"
        )

    @functools.cached_property
    def _apply(self) -> Callable[[Variables, Array], Array]:
        return jax.jit(self.problem.estimator.apply)

    @functools.cached_property
    def _draw(self) -> ArraySampler:
        draw = samplers.make_sampler(self.problem)
        return jax.jit(lambda *arguments: draw(*arguments)["refined"])

    @functools.cached_property
    def _start(self) -> ArraySampler:
        draw = samplers.make_sampler(self.problem, ("prior",))
        return jax.jit(lambda *arguments: draw(*arguments)["prior"])

    @functools.cached_property
    def _path(self) -> ArraySampler:
        return jax.jit(samplers.make_path_sampler(self.problem))

    def _arguments(self, key: Array) -> tuple[Array, Variables, Constants]:
        if self.config["prior"]["name"] == "batch":
            raise ValueError(
                "this sampler starts from images, not from a prior: "
                "sampler.method.sample(key, images, sampler.estimator)"
            )
        return _keys.typed(key), self.variables, Constants((), self.prior_params)

    def _labels(self, num: int, labels: ArrayLike | None) -> dict[str, Array]:
        """Returns the part of a batch with the classes of examples, [num], if they matter."""
        if not self.problem.estimator.takes_labels:
            if labels is not None:
                raise ValueError("this sampler has one ratio for all classes, so it has no labels")
            return {}
        num_classes = self.config["network"]["num_outputs"]
        chosen = jnp.arange(num) % num_classes if labels is None else jnp.asarray(labels)
        if chosen.shape != (num,):
            raise ValueError(f"expected one label per example, ({num},), got {chosen.shape}")
        one_or_nan(chosen, num_classes)
        return {"label": chosen}

    def _in_batches(
        self,
        draw: ArraySampler,
        key: Array,
        num_samples: int,
        batch_size: int,
        labels: ArrayLike | None = None,
    ) -> Array:
        _check_positive("num_samples", num_samples)
        _check_positive("batch_size", batch_size)
        size = min(num_samples, batch_size)
        # The last batch is as large as the others, so that only one program is compiled.
        padded = -(-num_samples // size) * size
        classes = self._labels(num_samples, labels)
        batch = {name: jnp.resize(label, (padded,)) for name, label in classes.items()}
        batch["position"] = jnp.arange(padded)
        parts = [
            draw(*self._arguments(key), {n: a[first : first + size] for n, a in batch.items()})
            for first in range(0, padded, size)
        ]
        return self._unit_of_data(jnp.concatenate(parts)[:num_samples])

    def _unit_of_data(self, x: Array) -> Array:
        return jnp.asarray(self.scale * x + self.shift, x.dtype)


def _check_positive(name: str, value: int) -> None:
    check_count(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def pretrained(name: str | Path) -> Sampler:
    """Loads a trained sampler.

        sampler = fdrl.pretrained("mnist")
        images = sampler(jax.random.key(0), 64)  # float32 [64, 28, 28, 1], around [-1, 1]

    Args:
      name: a sampler that ships with the package, see docs/pretrained.md; the folder of an export
        of the program; or `OWNER/NAME`, a repository of the Hugging Face Hub with such an export,
        which needs the package `huggingface_hub` and, the first time, a network.

    Returns:
      The sampler.

    Raises:
      ValueError: for an unknown name, which lists the allowed ones; or for a folder that is not an
        export.
      ModuleNotFoundError: if `huggingface_hub` is needed and missing.
      OSError: if the repository cannot be downloaded.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = _folder(str(name))
    config = _read_config(folder)
    try:
        flat = _as_float32(load_file(folder / _ARRAYS))
    except SafetensorError as error:
        raise ValueError(_not_an_export(folder, f"{_ARRAYS}: {error}")) from error
    arrays = unflatten_dict(flat, sep="/")  # type: ignore[no-untyped-call]
    prior = _prior(config["prior"], config["event_shape"], arrays.get("prior", {}))
    denoiser = networks.Denoiser(**config["denoiser"]) if "denoiser" in config else None
    problem = Problem(
        method=FDRL(
            loss=config["loss"],
            divergence=_divergence(config["divergence"]),
            **config["flow"],
        ),
        estimator=Estimator.from_network(_network(config["network"])),
        prior_sample=prior.sample,
        denoise=denoiser.denoise if denoiser else None,
    )
    variables, prior_params = jax.tree.map(jnp.asarray, (arrays["network"], prior.params))
    return Sampler(problem, variables, prior_params, config)


def _folder(name: str) -> Path:
    names = sorted(path.parent.name for path in _SHIPPED.glob(f"*/{_CONFIG}"))
    if name in names:
        return _SHIPPED / name
    if Path(name).is_dir():
        return Path(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _download(name)
    raise ValueError(
        f"no sampler {name!r}{nearest(name, names) or '.'} Allowed: {', '.join(names)}, the folder "
        "of an export, or OWNER/NAME of the Hugging Face Hub"
    )


def _download(repository: str) -> Path:
    """Returns the folder of a repository in the local cache, which is filled first if needed."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"there is no folder {repository!r}, and loading it from the Hugging Face Hub needs "
            "huggingface_hub. Install it with: pip install huggingface_hub",
            name=error.name,
        ) from error
    try:
        return Path(snapshot_download(repository, allow_patterns=[_CONFIG, _ARRAYS]))
    except Exception as error:  # It raises errors of HTTP, of its cache and of the disk.
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"there is no folder {repository!r}, and no such repository could be loaded from the "
            f"Hugging Face Hub: {reason}"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text("utf-8"))
        missing = [key for key in _NEEDED if key not in config]
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(_not_an_export(folder, f"{_CONFIG}: {error}")) from error
    if missing or not (folder / _ARRAYS).is_file():
        lacking = f"{_CONFIG} has no {', '.join(missing)}" if missing else f"it has no {_ARRAYS}"
        raise ValueError(_not_an_export(folder, lacking))
    found: dict[str, Any] = config
    return found


def _not_an_export(folder: Path, reason: str) -> str:
    return f"{folder} is not a sampler that --mode=export of the program wrote: {reason}"


def _as_float32(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays as float32. One of int8, `a`, has a factor per last axis, `a.scale`."""
    return {
        name: array.astype(np.float32) * stored.get(f"{name}.scale", np.float32(1.0))
        for name, array in stored.items()
        if not name.endswith(".scale")
    }


def _network(arguments: Mapping[str, Any]) -> networks.MLP | networks.ResNet:
    others = {name: value for name, value in arguments.items() if name != "spec"}
    if "spec" in arguments:
        return networks.ResNet(networks.ResNetSpec(*arguments["spec"]), **others)
    return networks.MLP(**others)


def _divergence(arguments: str | Sequence[Any]) -> FDivergence:
    if isinstance(arguments, str):
        return divergences.get(arguments)
    return divergences.combine(*arguments)


def _prior(
    arguments: Mapping[str, Any], event_shape: Sequence[int], arrays: Mapping[str, np.ndarray]
) -> Prior:
    """Returns the prior: the function of `priors` by its name, with its other arguments."""
    others = {name: value for name, value in arguments.items() if name != "name"}
    if "frequencies" in arrays:  # Of a compact export, whose factor is [frequencies, k].
        arrays = dict(arrays)
        at = arrays.pop("frequencies").astype(int)
        rows = _prior_fit.from_cosines(arrays["factor"].T, at, tuple(event_shape))
        arrays["factor"] = rows.T
    if arguments["name"] == "mixture":
        return priors.mixture(arrays, event_shape, **others)
    makers: dict[str, Callable[..., Prior]] = {
        "normal": priors.normal,
        "uniform": priors.uniform,
        "batch": priors.batch,
    }
    return makers[arguments["name"]](**others)
