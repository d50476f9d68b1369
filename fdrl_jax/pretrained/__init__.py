"""Trained samplers: those that ship with the package, exports of the program, and the Hub's.

A sampler is a folder of two files. `config.json` has the arguments of the functions of this package
that build its network, prior and flow, and `model.safetensors` has their arrays. Nothing in them is
executed.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.tree_util import Partial
from jax.typing import ArrayLike

from fdrl_jax import _checks, _keys, _prior_fit, networks, priors
from fdrl_jax._arrays import as_floating
from fdrl_jax.method import FDRL
from fdrl_jax.priors import Prior
from fdrl_jax.training import samplers
from fdrl_jax.training.problem import Constants, Estimator, Problem
from fdrl_jax.training.state import Variables

__all__ = ["Sampler", "pretrained"]
__dir__ = __all__.copy

Array = jax.Array
Labels = ArrayLike | str | Sequence[str]
_SHIPPED = Path(__file__).parent
_CONFIG, _ARRAYS = "config.json", "model.safetensors"
_SMALLEST_RATIO = 1e-6  # An unconstrained ratio may be negative, and then has no logarithm.
_MAX_PIXEL = 3.0  # More than noisy images in [-1, 1] have, and less than bytes.
_MAX_STEPS, _MAX_SIZE = 100_000, 10**7  # Of a flow, and numbers of a sample.


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sampler:
    """A trained density ratio with the prior and the flow that it was trained for.

    Sample `i` depends only on the key and `i`, so a larger number starts with the same samples.

    Attributes:
      problem: method, estimator, prior and denoiser.
      variables: the averaged variables of the network, as float32.
      prior_params: the arrays of the prior.
      config: how the sampler was trained, with all settings of its run.
      shift, scale: the data are `scale * x + shift` of the samples of the flow: means and standard
        deviations of points that `fit` has standardised.
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
        labels: Labels | None = None,
        clip: bool = True,
        batch_size: int = 500,
    ) -> Array:
        """Draws samples (algorithm 2), float32 [num_samples, ...].

        With the key `training.rng.root_key(seed)` of the run, they are those of the program.

        Args:
          key: a JAX key of the generator "threefry2x32".
          num_samples: number of samples, static.
          labels: for a sampler with a density ratio for each class: the class of each sample,
            [num_samples], or of all, by number or by its name in `config["data"]["classes"]`.
            Without it, sample `i` is of class `i % num_classes`.
          clip: whether images are clipped to [-1, 1], the range of the data.
          batch_size: samples per call of the compiled flow, which is compiled once per size.

        Raises:
          TypeError, ValueError: for another key, a number below 1, or labels that do not fit.
        """
        x = self._draw("refined", key, num_samples, labels, batch_size)
        return jnp.clip(x, -1.0, 1.0) if clip and len(self.event_shape) == 3 else x

    def prior(self, key: Array, num_samples: int, *, labels: Labels | None = None) -> Array:
        """Returns where the samples of this key and these labels start, `x_0`, as `__call__`."""
        return self._draw("prior", key, num_samples, labels)

    def path(self, key: Array, num_samples: int, *, labels: Labels | None = None) -> Array:
        """Returns `x_0 ... x_{K+κ}`, neither denoised nor clipped, [K + κ + 1, N, ...]."""
        return self._draw("path", key, num_samples, labels)

    def log_ratio(self, x: Array, labels: Labels | None = None) -> Array:
        """Returns the estimate of `log q~/p` at `x`, [B, ...] to [B]: 0 where samples match data.

        The ratio is that of data with the noise of training, `config["settings"]` under
        "data.dequantisation": add it to clean images, and to denoised samples. A ratio below 1e-6
        counts as 1e-6. A sampler that has a ratio for each class needs the `labels` of `x`.

        Raises:
          ValueError: for other shapes, images far outside of [-1, 1], or labels that do not fit.
        """
        if labels is None and self.problem.estimator.takes_labels:
            raise ValueError("this sampler has a ratio for each class: the labels of x are missing")
        x = jnp.asarray(x)
        if x.shape[1:] != self.event_shape:
            shape = f"[B, {', '.join(map(str, self.event_shape))}]"
            raise ValueError(f"x must have the shape {shape}, got {x.shape}")
        if x.ndim == 4:
            _checks.check_images("x", x, _MAX_PIXEL)
        x = as_floating(x)
        x = jnp.asarray((x - self.shift) / self.scale, x.dtype)
        output = self._apply(self.variables, x, *self._labels(len(x), labels).values())
        if self.method.output == "log_ratio":
            return output
        return jnp.log(jnp.maximum(output, _SMALLEST_RATIO))

    @property
    def method(self) -> FDRL:
        """The loss, the divergence and the flow."""
        return self.problem.method

    @property
    def estimator(self) -> Callable[[Array], Array]:
        """The network as a pytree, `x [B, ...] -> method.output [B]`, or of `(x, labels [B])`."""
        apply = self.problem.estimator.apply
        bound: Callable[[Array], Array] = Partial(apply, self.variables)  # type: ignore[no-untyped-call]
        return bound

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return tuple(self.config["event_shape"])

    def __repr__(self) -> str:
        size = sum(np.size(a) for a in jax.tree.leaves(self.variables))
        return (
            f"Sampler(event_shape={self.event_shape}, num_parameters={size:,}, "
            f"num_steps={self.method.num_steps + self.method.num_refine_steps})"
        )

    @functools.cached_property
    def _apply(self) -> Callable[..., Array]:
        return jax.jit(self.problem.estimator.apply)

    @functools.cached_property
    def _run(self) -> Callable[..., Array]:
        def run(what: str, *arguments: Any) -> Array:
            if what == "path":
                return samplers.make_path_sampler(self.problem)(*arguments)
            return samplers.make_sampler(self.problem, (what,))(*arguments)[what]

        return jax.jit(run, static_argnums=0)

    def _draw(
        self, what: str, key: Array, num: int, labels: Labels | None, batch_size: int = 500
    ) -> Array:
        _checks.check_count("num_samples", num, 1)
        _checks.check_count("batch_size", batch_size, 1)
        if self.config["prior"]["name"] == "batch":
            raise ValueError(
                "this sampler starts from images, not from a prior: "
                "sampler.method.sample(key, images, sampler.estimator)"
            )
        size = min(num, batch_size)
        padded = -(-num // size) * size  # All batches have the same size.
        batch = {name: jnp.resize(a, (padded,)) for name, a in self._labels(num, labels).items()}
        batch["position"] = jnp.arange(padded)
        arguments = (what, _keys.typed(key), self.variables, Constants((), self.prior_params))
        parts = [
            self._run(*arguments, {name: a[first : first + size] for name, a in batch.items()})
            for first in range(0, padded, size)
        ]
        axis = 1 if what == "path" else 0
        x = jax.lax.slice_in_dim(jnp.concatenate(parts, axis), 0, num, axis=axis)
        return jnp.asarray(self.scale * x + self.shift, x.dtype)

    def _labels(self, num: int, labels: Labels | None) -> dict[str, Array]:
        if not self.problem.estimator.takes_labels:
            if labels is not None:
                raise ValueError("this sampler has one ratio for all classes, so it has no labels")
            return {}
        num_classes = self.config["network"]["num_outputs"]
        if labels is None:
            return {"label": jnp.arange(num) % num_classes}
        if not isinstance(labels, jax.Array) and np.asarray(labels).dtype.kind in "US":
            names = list(self.config.get("data", {}).get("classes", ()))
            for name in np.ravel(labels):
                _checks.check_name("class", str(name), names)
            labels = np.vectorize(names.index, otypes=[np.int32])(labels)
        chosen = jnp.asarray(labels)
        chosen = jnp.full(num, chosen) if chosen.ndim == 0 else chosen
        if chosen.shape != (num,):
            raise ValueError(f"expected one label per example, ({num},), got {chosen.shape}")
        _checks.one_or_nan(chosen, num_classes)
        return {"label": chosen}


def pretrained(name: str | Path) -> Sampler:
    """Loads a trained sampler.

        sampler = fdrl.pretrained("mnist")
        images = sampler(jax.random.key(0), 64)  # float32 [64, 28, 28, 1] in [-1, 1]

    Args:
      name: a sampler that ships with the package, see docs/pretrained.md; the folder of an export;
        or `OWNER/NAME`, a repository of the Hugging Face Hub with one, for `huggingface_hub`.

    Raises:
      ValueError: for an unknown name, or a folder that is not an intact export.
      ModuleNotFoundError, OSError: if `huggingface_hub` is missing, or downloads nothing.
    """
    name, names = str(name), sorted(path.parent.name for path in _SHIPPED.glob(f"*/{_CONFIG}"))
    if Path(name).is_dir() and name not in names:
        folder = Path(name)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        folder = _download(name)
    else:
        folder = _SHIPPED / name
        others = ", the folder of an export, or OWNER/NAME of the Hugging Face Hub"
        _checks.check_name("sampler", name, names, others)
    if (folder / "run.json").is_file():
        raise ValueError(
            f"{folder} is a run, not a sampler. Export it first: "
            f"python -m experiments.main --workdir={folder} --mode=export"
        )
    try:
        return _load(folder)
    except Exception as error:  # The files may contain anything.
        kind = type(error)
        prefix = {ValueError: "", KeyError: "it has no "}.get(kind, f"{kind.__name__}: ")
        raise ValueError(
            f"{folder} is not a sampler that --mode=export of the program wrote: {prefix}{error}"
        ) from error


def _download(repository: str) -> Path:
    missing = f"there is no folder {repository!r}, and "
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=[_CONFIG, _ARRAYS]))
    except ModuleNotFoundError as error:
        hint = "the Hugging Face Hub needs a package: pip install huggingface_hub"
        raise ModuleNotFoundError(missing + hint, name=error.name) from error
    except Exception as error:  # It raises errors of HTTP, of its cache and of the disk.
        reason = str(error).strip().partition("\n")[0]
        raise OSError(f"{missing}nothing came from the Hugging Face Hub: {reason}") from error


def _load(folder: Path) -> Sampler:
    from safetensors.numpy import load

    config: dict[str, Any] = json.loads((folder / _CONFIG).read_text("utf-8"))
    described = json.dumps({k: config[k] for k in config if k != "config_sha256"}, sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()
    if config.get("config_sha256", digest) != digest:
        raise ValueError(f"{_CONFIG} has changed; to edit it, remove its config_sha256")
    stored = (folder / _ARRAYS).read_bytes()
    if config.get("sha256", digest := hashlib.sha256(stored).hexdigest()) != digest:
        raise ValueError(f"{_ARRAYS} has changed: its SHA-256 is not that of {_CONFIG}")
    given = load(stored)
    # An array of int8, `a`, has a factor per last axis, `a.scale`.
    flat = {
        name: array.astype(np.float32) * given.get(f"{name}.scale", np.float32(1.0))
        for name, array in given.items()
        if not name.endswith(".scale")
    }
    for name, array in flat.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{_ARRAYS}: {name} has values that are not finite")
    event_shape, classes = tuple(config["event_shape"]), config.get("data", {}).get("classes", [])
    if not all(type(n) is int and n > 0 for n in event_shape) or math.prod(event_shape) > _MAX_SIZE:
        raise ValueError(f"event_shape must be positive sizes, got {event_shape}")
    if not all(isinstance(name, str) for name in classes):
        raise ValueError(f"the names of classes must be text, got {classes}")
    method = FDRL(loss=config["loss"], divergence=config["divergence"], **config["flow"])
    if method.num_steps + method.num_refine_steps > _MAX_STEPS:
        raise ValueError(f"the flow has more than {_MAX_STEPS:,} steps")
    denoiser = networks.Denoiser(**config["denoiser"]) if "denoiser" in config else None
    of_net = dict(config["network"])
    spec = networks.ResNetSpec(*of_net.pop("spec")) if "spec" in of_net else None
    depth = len(spec.blocks if spec else of_net["hidden_sizes"])
    if max(depth, denoiser.depth if denoiser else 0) > len(flat):  # Before they are built.
        raise ValueError(f"the networks have more layers than {_ARRAYS} has arrays")
    net = networks.resnet(spec, **of_net) if spec else networks.MLP(**of_net)

    def init(key: Array) -> dict[str, Any]:
        variables: Any = net.init(key, jnp.zeros((1, *event_shape)))
        with_denoiser = denoiser.add_params(variables, key, event_shape) if denoiser else variables
        return {"network": with_denoiser}

    shapes = flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")  # type: ignore[no-untyped-call]
    expected = {name: array.shape for name, array in shapes.items()}
    found = {name: array.shape for name, array in flat.items() if name.startswith("network/")}
    for name in expected | found:
        if (shape := expected.get(name)) != found.get(name):
            raise ValueError(f"{_ARRAYS}: {name} must have shape {shape}, got {found.get(name)}")
    arrays: dict[str, Any] = unflatten_dict(flat, sep="/")  # type: ignore[no-untyped-call]
    prior = _prior(event_shape, arrays.get("prior", {}), **config["prior"])
    denoise = denoiser.denoise if denoiser else None
    problem = Problem(method, Estimator.from_network(net), prior.sample, denoise=denoise)
    variables, prior_params = jax.tree.map(jnp.asarray, (arrays["network"], prior.params))
    sampler = Sampler(problem, variables, prior_params, config)
    if config["prior"]["name"] != "batch":
        starts = jax.eval_shape(lambda key: sampler.prior(key, 1), jax.random.key(0))
        if starts.shape[1:] != event_shape:
            raise ValueError(f"samples of the prior have shape {starts.shape[1:]}")
    return sampler


def _prior(
    shape: tuple[int, ...], arrays: Mapping[str, np.ndarray], name: str, **others: Any
) -> Prior:
    _checks.check_name("prior", name, ("mixture", "normal", "uniform", "batch"))
    if name != "mixture":
        made: Prior = getattr(priors, name)(**others)
        return made
    if "frequencies" in arrays:  # The factor is [frequencies, k] and not [D, k].
        at, rows = arrays["frequencies"].astype(int), arrays["factor"].T
        factor = _prior_fit.from_cosines(rows, at, shape).T
        arrays = {k: v for k, v in arrays.items() if k != "frequencies"} | {"factor": factor}
    return priors.mixture(arrays, shape, **others)
