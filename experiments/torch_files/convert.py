"""From a checkpoint of the authors' PyTorch program to a workdir of ours."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from experiments import build, schema
from experiments.build import Experiment, fitted_prior
from experiments.errors import UserError
from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir, write_json
from experiments.torch_files import (
    GaussianPrior,
    TorchCheckpoint,
    TorchFileError,
    adam_moments,
    read_checkpoint,
    read_gaussian_prior,
)
from fdrl_jax import networks, parallel
from fdrl_jax.state import TrainState

# Their key -> ours, and what becomes of the value.
_LOSSES = {"LSIF": "lsif", "LR": "lr", "KL": "ukl"}
_DIVERGENCES = {"Pearson": "pearson", "KL": "kl", "JS": "js", "logD": "logd"}
_KEYS = {
    "learning_rate": "optimizer.learning_rate",
    "n_epochs": "train.num_steps",  # They call a step an epoch.
    "scheduler_steps": "optimizer.boundaries",
    "scheduler_gamma": "optimizer.decay",
    "batch_size": "train.batch_size",
    "loss_function": "loss.name",
    "f_divergence": "loss.divergence",
    "eta": "flow.step_size",
    "noise_factor": "flow.noise_scale",
    "n_flow_steps": "flow.num_steps",
    "ema_rate": "train.ema_rate",
}
# Told by the tensors themselves, by the machine, or by --config.
_TOLD_ELSEWHERE = {"in_dim", "hidden_dim", "n_hidden_layers", "spectral_norm", "ema", "device"}


def convert(
    config: Mapping[str, Any],
    file: Path,
    workdir: Workdir,
    command: str,
    prior_file: Path | None = None,
) -> list[str]:
    """Writes a workdir that samples, evaluates and trains on from an authors' checkpoint.

    Network, loss, divergence, flow and optimizer come from the file; the rest, such as where the
    data lie, from the config.

    Args:
      config: a config of ours for the same data.
      file: the `.pt` file. It is read without PyTorch, and what it holds is never executed.
      workdir: a folder without checkpoints.
      command: what the user typed, for the record.
      prior_file: the `.pt` file of their data-dependent prior, if that is to be taken over.

    Returns:
      Their settings that have no counterpart here, as "name=value".

    Raises:
      UserError: if the file cannot be read or does not fit, or the workdir has checkpoints.
    """
    if workdir.checkpoints.is_dir() and any(workdir.checkpoints.iterdir()):
        raise UserError(f"--workdir={workdir.root} has checkpoints already; name an empty folder")
    try:
        checkpoint = read_checkpoint(file)
        settings, unknown = translate(checkpoint, schema.flatten(config))
        given = None if prior_file is None else read_gaussian_prior(prior_file)
        if given is not None:
            settings |= {"prior.name": "data_dependent", "prior.rank": 0}
        experiment = build.experiment(schema.unflatten(settings), fit_prior=False)
        train_state = _train_state(checkpoint, experiment)
        moments = None if given is None else channels_last(given, experiment.source.event_shape)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} does not exist") from None
    except TorchFileError as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"--checkpoint={file}: {error}") from error
    workdir.create()
    store = Checkpoints(workdir.checkpoints, experiment.num_checkpoints)
    with contextlib.closing(store):
        store.save(train_state, experiment.settings)
    if not parallel.is_first_process():
        return unknown
    if moments is not None:
        jitter = settings["prior.jitter"]
        fitted_prior.adopt(experiment.source, jitter, workdir.prior, *moments)
    write_json(workdir.config, {"command": command, "settings": experiment.settings})
    return unknown


def channels_last(
    prior: GaussianPrior, event_shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Reorders mean [D] and covariance [D, D] from channels, rows, columns to ours, HWC.

    Raises:
      ValueError: if the prior is not of this size.
    """
    if len(prior.mean) != math.prod(event_shape):
        raise ValueError(
            f"the prior has {len(prior.mean)} dimensions, the data {tuple(event_shape)}"
        )
    order = np.arange(len(prior.mean))
    if len(event_shape) == 3:
        height, width, channels = event_shape
        order = order.reshape(channels, height, width).transpose(1, 2, 0).ravel()
    return prior.mean[order], prior.covariance[np.ix_(order, order)]


def translate(
    checkpoint: TorchCheckpoint, ours: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Translates the authors' settings.

    Args:
      checkpoint: as read.
      ours: flat settings of ours, for what theirs do not tell.

    Returns:
      Flat settings of ours, and those of theirs without a counterpart, as "name=value".

    Raises:
      ValueError: if the tensors are of no known network, or a loss or divergence is unknown.
    """
    theirs = dict(checkpoint.config)
    settings: dict[str, Any] = {**ours, **_network_settings(checkpoint.model)}
    settings["optimizer.schedule"] = "piecewise"
    names = {"loss_function": _LOSSES, "f_divergence": _DIVERGENCES}
    for key in _KEYS.keys() & theirs.keys():
        value = theirs.pop(key)
        if key in names:
            if value not in names[key]:
                raise ValueError(f"unknown {key} {value!r}; known: {', '.join(names[key])}")
            value = names[key][value]
        settings[_KEYS[key]] = tuple(value) if isinstance(value, list) else value
    data = theirs.pop("dataset", ours["data.name"])
    if data != ours["data.name"]:
        raise ValueError(
            f"it was trained on {data!r}, but the config is for {ours['data.name']!r}; "
            "name the config of its data with --config"
        )
    return settings, [f"{k}={v}" for k, v in sorted(theirs.items()) if k not in _TOLD_ELSEWHERE]


def _network_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Finds the network whose tensors have these names and shapes."""
    shapes = {name: array.shape for name, array in model.items()}
    spectral_norm = any(name.endswith("weight_u") for name in shapes)
    kernel = "weight_orig" if spectral_norm else "weight"
    settings: dict[str, Any] = {"network.spectral_norm": spectral_norm}
    if any(name.startswith("mlp.") for name in shapes):
        kernels = [shape for name, shape in shapes.items() if name.endswith(f".{kernel}")]
        sizes = tuple(shape[0] for shape in kernels[:-1])
        return {**settings, "network.name": "mlp", "network.hidden_sizes": sizes}
    attention = any(name.startswith("self_attn_module.") for name in shapes)
    stem = shapes.get(f"conv1.{kernel}", (0, 0))
    for name in networks.SPECS if stem[0] else ():
        net = networks.resnet(name, width=stem[0], spectral_norm=spectral_norm, attention=attention)
        if networks.torch_shapes(net, stem[1]) == shapes:
            chosen = {"network.name": name, "network.width": stem[0]}
            return {**settings, **chosen, "network.attention": attention}
    known = ", ".join(("mlp", *networks.SPECS))
    raise ValueError(f"its tensors are of none of the networks {known}: {_summary(shapes)}")


def _summary(shapes: Mapping[str, tuple[int, ...]]) -> str:
    first = [f"{name} {shape}" for name, shape in list(shapes.items())[:3]]
    return f"{len(shapes)} tensors, {', '.join(first)}, ..."


def _train_state(checkpoint: TorchCheckpoint, experiment: Experiment) -> TrainState:
    def variables(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return networks.from_torch_state_dict(experiment.network, tensors)

    moments = adam_moments(checkpoint)
    train_state = experiment.init_state()
    # The moments have no vectors of spectral normalisation; the model's only fill their place.
    mu, nu = (variables({**checkpoint.model, **part})["params"] for part in moments[1:])
    count = jnp.asarray(moments.num_updates, jnp.int32)
    opt_state = optax.tree.set(train_state.opt_state, mu=mu, nu=nu, count=count)
    return train_state._replace(
        step=jnp.asarray(checkpoint.step + 1, jnp.int32),
        variables=variables(checkpoint.model),
        ema_variables=variables(checkpoint.ema),
        opt_state=opt_state,
    )
