"""Converts the authors' checkpoints and priors to our settings, variables and optimizer moments.

Nothing here writes a file, opens data or creates a run.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from experiments.settings import Settings
from experiments.torch_file import TorchFileError, array, load, quoted, state_dict
from fdrl_jax import networks
from fdrl_jax.training.state import Variables

Tensors: TypeAlias = Mapping[str, np.ndarray]

_ENTRIES = ("step", "model", "ema", "optim", "config")
_BUFFERS = ("weight_u", "weight_v")  # Vectors of spectral normalisation: Adam skips them.

# Their key -> ours.
_KEYS = {
    "learning_rate": "optimizer.learning_rate",
    "n_epochs": "train.num_steps",  # They call a step an epoch.
    "scheduler_steps": "optimizer.boundaries",
    "scheduler_gamma": "optimizer.decay",
    "train_batch_size": "train.batch_size",
    "loss_function": "loss.name",
    "f_divergence": "loss.divergence",
    "eta": "flow.step_size",
    "noise_factor": "flow.noise_scale",
    "n_flow_steps": "flow.num_steps",
    "ema_rate": "train.ema_rate",
    "img_size": "data.image_size",
    "n_channels": "data.channels",
}
# Their value -> ours.
_VALUES = {
    "loss_function": {"LSIF": "lsif", "LR": "lr", "KL": "ukl"},
    "f_divergence": {"Pearson": "pearson", "KL": "kl", "JS": "js", "logD": "logd"},
}
# Their data set -> allowed values of our `data.name`.
_DATA_SETS = {
    "swissroll": ("swissroll",),
    "8gaussians": ("8gaussians",),
    "25gaussians": ("25gaussians",),
    "cifar10": ("tfds:cifar10", "folder", "npz"),
    "celeba": ("folder", "tfds:celeb_a", "npz"),
    "lsun_church": ("lsun", "folder", "npz"),
    "cat2dog": ("pair",),
}
# Settings that the tensors or --config determine, and those of their machine and folders.
_NOT_NEEDED = {
    *("model", "self_attn", "spectral_norm", "in_dim", "hidden_dim", "n_hidden_layers", "ema"),
    *("device", "data_dir", "exp_root_dir", "log_dir", "ckpt_dir", "config", "ckpt", "phase"),
    *("print_steps", "log_steps", "save_steps", "test_batch_size", "debug"),
    *("use_wandb", "wandb_id", "wandb_notes", "run_name"),
}


class AuthorsCheckpoint(NamedTuple):
    """A converted checkpoint of the authors' program, with our settings, flat.

    `left_out` are their settings without a counterpart, as "name=value". `mu` and `nu` are Adam's
    running means of the gradient and of its square, with the structure of the parameters.
    """

    settings: Settings
    left_out: list[str]
    num_steps: int
    variables: Variables
    ema_variables: Variables
    num_updates: int
    mu: Any
    nu: Any


def read_checkpoint(path: Path, ours: Mapping[str, Any]) -> AuthorsCheckpoint:
    """Reads and converts a training checkpoint, a `.pt` file; nothing in it is executed.

    Settings that theirs lack are `ours`, flat, of our config for the same data.

    Raises:
      UserError: if the file is damaged, is not such a checkpoint, or belongs to other data.
    """
    entries = load(path)
    with _named(path):
        if not isinstance(entries, dict):
            raise ValueError(f"it contains a {type(entries).__name__} instead of a checkpoint")
        missing = [key for key in _ENTRIES if key not in entries]
        if missing:
            raise ValueError(
                f"it is not a checkpoint of the authors' program: it lacks {', '.join(missing)}"
            )
        model, ema = (state_dict(entries[name], name) for name in ("model", "ema"))
        num_updates, mu, nu = _adam(entries["optim"], model)
        network_settings, network = _network(model)
        settings, left_out = _translated(entries["config"], ours)
        variables = functools.partial(networks.from_torch_state_dict, network)
        return AuthorsCheckpoint(
            settings={**settings, **network_settings},
            left_out=left_out,
            num_steps=_count(entries["step"], "step") + 1,  # Theirs is the index of the last step.
            variables=variables(model),
            ema_variables=variables(ema),
            num_updates=num_updates,
            # Moments lack the vectors of spectral normalisation; those of the model fill the gaps.
            mu=variables({**model, **mu})["params"],
            nu=variables({**model, **nu})["params"],
        )


def read_prior(path: Path, event_shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Reads the data-dependent prior, a pickled `MultivariateNormal` (eq. 8).

    Nothing in the `.pt` file is executed. The shape is that of an example, [H, W, C] for images.

    Returns:
      Mean [D] and covariance [D, D] of examples flattened in our order of axes.

    Raises:
      UserError: if the file is damaged, contains anything else, or has a prior of another size.
    """
    prior = load(path)
    with _named(path):
        if type(prior).__name__ != "MultivariateNormal":
            raise ValueError(
                f"it contains a {type(prior).__name__} instead of a MultivariateNormal"
            )
        mean, factor = (
            array(vars(prior).get(name), name) for name in ("loc", "_unbroadcasted_scale_tril")
        )
        size = math.prod(event_shape)
        if mean.shape != (size,) or factor.shape != (size, size):
            raise ValueError(
                f"its mean {mean.shape} and Cholesky factor {factor.shape} do not fit the data "
                f"{tuple(event_shape)} of {size} dimensions"
            )
        if not (np.isfinite(mean).all() and np.isfinite(factor).all()):
            raise ValueError("its mean or Cholesky factor is not finite")
        if np.triu(factor, 1).any() or np.diagonal(factor).min() <= 0.0:
            raise ValueError("its Cholesky factor is not lower triangular and positive")
    order = np.arange(size)
    if len(event_shape) == 3:  # They flatten images in the order channels, rows, columns.
        height, width, channels = event_shape
        order = np.moveaxis(order.reshape(channels, height, width), 0, 2).ravel()
    rows = factor[order]
    return mean[order], rows @ rows.T


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise TorchFileError(f"{path}: {error}") from error


def _translated(theirs: object, ours: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Returns our settings, flat, and their settings without a counterpart."""
    if not isinstance(theirs, dict) or not all(isinstance(key, str) for key in theirs):
        raise ValueError("its entry config is not a dictionary of settings by name")
    settings: Settings = {**ours, "optimizer.schedule": "piecewise"}
    left_out = []
    for key, value in sorted(theirs.items()):
        if key == "dataset" and isinstance(value, str) and value in _DATA_SETS:
            if ours["data.name"] not in _DATA_SETS[value]:
                raise ValueError(
                    f"it was trained on {value!r}, but the config has "
                    f"data.name={ours['data.name']!r}; use --config=configs/{value}.py"
                )
        elif key in _KEYS:
            settings[_KEYS[key]] = _value(key, value)
        elif key not in _NOT_NEEDED:
            left_out.append(f"{quoted(key)[1:-1]}={quoted(value) if _is_plain(value) else '...'}")
    return settings, left_out


def _value(key: str, value: object) -> object:
    if key in _VALUES:
        known = _VALUES[key]
        if not isinstance(value, str) or value not in known:
            shown = quoted(value) if _is_plain(value) else type(value).__name__
            raise ValueError(f"unknown {key} {shown}; known: {', '.join(known)}")
        return known[value]
    numbers = value if isinstance(value, list) else [value]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"its setting {key} is not a number or a list of numbers")
    return tuple(value) if isinstance(value, list) else value


def _is_plain(value: object) -> bool:
    # Printing a hostile nested container could take for ever.
    return value is None or isinstance(value, str | int | float)


def _network(model: Tensors) -> tuple[Settings, networks.MLP | networks.ResNet]:
    """Finds the network whose tensors have these names and shapes."""
    shapes = {name: values.shape for name, values in model.items()}
    spectral_norm = any(name.endswith(_BUFFERS) for name in shapes)
    kernel = "weight_orig" if spectral_norm else "weight"
    settings: Settings = {"network.spectral_norm": spectral_norm, "network.use_bias": False}
    if any(name.startswith("mlp.") for name in shapes):
        kernels = [shape for name, shape in shapes.items() if name.endswith(f".{kernel}")]
        sizes = tuple(shape[0] for shape in kernels[:-1])
        chosen = {"network.name": "mlp", "network.hidden_sizes": sizes}
        return settings | chosen, networks.MLP(sizes, spectral_norm)
    attention = any(name.startswith("self_attn_module.") for name in shapes)
    stem = shapes.get(f"conv1.{kernel}", ())
    for name in networks.SPECS if len(stem) == 4 else ():
        net = networks.resnet(name, width=stem[0], spectral_norm=spectral_norm, attention=attention)
        if networks.torch_shapes(net, stem[1]) == shapes:
            chosen = {"network.name": name, "network.width": stem[0]}
            return settings | chosen | {"network.attention": attention}, net
    first = ", ".join(f"{quoted(name)} {shape}" for name, shape in list(shapes.items())[:3])
    raise ValueError(
        f"its tensors match none of the networks {', '.join(('mlp', *networks.SPECS))}: "
        f"{len(shapes)} tensors, {first}, ..."
    )


def _adam(optimizer: object, model: Tensors) -> tuple[int, Tensors, Tensors]:
    """Returns the number of updates, and Adam's two moments by the names of the parameters.

    PyTorch numbers the parameters in the order of the state dictionary, without buffers. It has no
    state for parameters that were never updated.
    """
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    names = dict(enumerate(name for name in model if not name.endswith(_BUFFERS)))
    if not isinstance(states, dict) or not states.keys() <= names.keys():
        raise ValueError(f"its optimizer state does not match its {len(names)} parameters")
    counts: set[int] = set()
    mu, nu = ({name: np.zeros_like(model[name]) for name in names.values()} for _ in range(2))
    for index, state in states.items():
        name = names[index]
        if not isinstance(state, dict) or not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
            raise ValueError(f"its optimizer state of {quoted(name)} is not a state of Adam")
        counts.add(_count(state["step"], "step of the optimizer"))
        for moment, key in ((mu, "exp_avg"), (nu, "exp_avg_sq")):
            moment[name] = array(state[key], f"optimizer's {key} of {quoted(name)}")
    if len(counts) > 1:
        raise ValueError(f"its optimizer's step counts differ: {sorted(counts)}")
    return max(counts, default=0), mu, nu


def _count(value: object, name: str) -> int:
    number = value if isinstance(value, int) else array(value, name)
    if np.ndim(number) or not float(number).is_integer() or number < 0:
        raise ValueError(f"its {name} is not a count")
    return int(number)
