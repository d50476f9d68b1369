"""Makes a run of a checkpoint of the authors' program, which samples, evaluates and resumes.

Run: python -m examples.authors_weights ckpt.pt --config=cifar10 --workdir=runs/authors
  [--prior=FILE.pt] [--data_dir=DIR] [--config.KEY=VALUE ...]
The config must be for the same data and network. Loss, divergence, flow, batch and optimizer come
from the checkpoint. --prior is the authors' fitted data-dependent prior; without it, a prior that
needs data is fitted to yours. PyTorch 2.6 or newer reads the files and executes nothing in them.
Unlike the other examples, this one uses the program.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from examples.torch_weights import from_torch_state_dict
from experiments import experiment, main, precision, prior, run, settings, train
from experiments.data import Source, load
from experiments.errors import UserError
from experiments.prior import FittedPrior
from experiments.run import Run
from experiments.settings import Flat, Settings

# Their setting -> ours. They call a training step an epoch.
KEYS = {
    "learning_rate": "optimizer.learning_rate",
    "n_epochs": "train.num_steps",
    "scheduler_steps": "optimizer.boundaries",
    "train_batch_size": "train.batch_size",
    "loss_function": "loss.name",
    "f_divergence": "loss.divergence",
    "eta": "flow.step_size",
    "noise_factor": "flow.noise_scale",
    "n_flow_steps": "flow.num_steps",
    "ema_rate": "train.ema_rate",
}
# Their value -> ours.
VALUES = {"LSIF": "lsif", "LR": "lr", "Pearson": "pearson", "KL": "kl", "JS": "js", "logD": "logd"}


def read(path: Path) -> Any:
    """Reads a file of `torch.save`, which may contain tensors, plain containers and a Gaussian."""
    import torch

    with torch.serialization.safe_globals([torch.distributions.MultivariateNormal]):
        return torch.load(path, map_location="cpu", weights_only=True)


def arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of a state dictionary. Training on several GPUs adds "module."."""
    return {name.removeprefix("module."): t.float().numpy() for name, t in tensors.items()}


def adopted(theirs: Mapping[str, Any], model: Mapping[str, np.ndarray]) -> Flat:
    """Returns our settings, by dotted key, that follow from their settings and their tensors."""
    changes: Flat = {KEYS[key]: value for key, value in theirs.items() if key in KEYS}
    for key in ("loss.name", "loss.divergence"):
        changes[key] = VALUES[changes[key]]
    if theirs["loss_function"] == "KL":
        changes["loss.name"] = "ukl"
    kernels = [v.shape for name, v in model.items() if name.endswith(("weight", "weight_orig"))]
    if len(kernels[0]) == 2:
        changes["network.hidden_sizes"] = tuple(shape[0] for shape in kernels[:-1])
    else:
        changes["network.width"] = kernels[0][0]
    changes["network.attention"] = any("self_attn_module" in name for name in model)
    changes["network.spectral_norm"] = any(name.endswith("weight_u") for name in model)
    return {**changes, "optimizer.schedule": "piecewise"}


def read_prior(path: Path, event_shape: Sequence[int]) -> FittedPrior:
    """Reads their prior (eq. 8), a Gaussian of images in the order channels, rows, columns."""
    gaussian = read(path)
    mean, factor = gaussian.loc.numpy(), gaussian._unbroadcasted_scale_tril.numpy()
    order = np.arange(len(mean))
    if len(event_shape) == 3:
        height, width, channels = event_shape
        order = np.moveaxis(order.reshape(channels, height, width), 0, 2).ravel()
    return FittedPrior(mean[order].astype(np.float64), factor[order], 0.0, 1.0, 0)


def moments(optimizer: Mapping[str, Any], model: Mapping[str, np.ndarray], key: str) -> Any:
    """Returns a moment of their Adam by the names of the tensors of the model.

    PyTorch numbers the parameters in the order of the state dictionary. The vectors of spectral
    normalisation are none, and keep their place in the result.
    """
    names = (name for name in model if not name.endswith(("weight_u", "weight_v")))
    found = {name: optimizer["state"][i][key].numpy() for i, name in enumerate(names)}
    return {**model, **found}


def convert(file: Path, prior_file: Path | None, argv: Sequence[str]) -> Run:
    """Creates the run of a checkpoint; `argv` are the flags of the program."""
    command, _ = main.parse(argv)
    theirs = read(file)
    model, averaged = arrays(theirs["model"]), arrays(theirs["ema"])
    changes = {**(command.config or {}), **adopted(theirs["config"], model)}
    if prior_file:
        changes |= {"prior.name": "data_dependent", "prior.rank": 0}
    wanted = settings.from_config({**changes, **command.changes})
    source = load.load(train.data_options(wanted, command.data_dir))
    fitted = read_prior(prior_file, source.event_shape) if prior_file else _fit(wanted, source)
    ours = experiment.build(precision.resolve(wanted), source, fitted)

    def imported(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return from_torch_state_dict(ours.network, tensors)

    optimizer = theirs["optim"]
    mu, nu = (
        imported(moments(optimizer, model, key))["params"] for key in ("exp_avg", "exp_avg_sq")
    )
    state, num_updates = ours.init_state(), int(optimizer["state"][0]["step"])
    state = state._replace(
        step=jnp.int32(theirs["step"] + 1),  # Theirs is the index of the last step.
        variables=imported(model),
        ema_variables=imported(averaged),
        opt_state=optax.tree.set(state.opt_state, mu=mu, nu=nu, count=jnp.int32(num_updates)),
    )
    text = shlex.join(["python", "-m", "examples.authors_weights", str(file), *argv])
    return run.create_with_state(
        command.folder, wanted, source, fitted, state, text, command.data_dir
    )


def _fit(wanted: Settings, source: Source) -> FittedPrior | None:
    if wanted.prior.name != "data_dependent":
        return None
    return prior.fit_to(source, wanted.prior, None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the authors' checkpoint")
    parser.add_argument("--prior", type=Path, help="the authors' data-dependent prior")
    options, rest = parser.parse_known_args()
    try:
        created = convert(options.file, options.prior, rest)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"created: --workdir={created.root} can now sample, evaluate and resume")
