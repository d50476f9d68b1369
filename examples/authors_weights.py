"""Draws samples with a checkpoint of the authors' PyTorch program.

    python -m examples.authors_weights ckpt.pt --out=runs/authors.npz
    python -m examples.authors_weights ckpt.pt --network=resnet32 --prior=prior.pt --out=FILE.npz

Loss, divergence, flow and the averaged parameters come from the checkpoint, and `--prior` is the
authors' fitted data-dependent prior. PyTorch 2.6 or newer reads both files and executes nothing in
them. `read` returns parts that work with all of the library.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import fdrl_jax as fdrl

LOSSES = {"LSIF": "lsif", "LR": "lr", "KL": "ukl"}
DIVERGENCES = {"Pearson": "pearson", "KL": "kl", "JS": "js", "logD": "logd"}
LEAVES = {"kernel": "weight", "u": "weight_u", "v": "weight_v"}


def load(path: Path) -> Any:
    """Reads a file of `torch.save`, which may contain tensors, plain containers and a Gaussian."""
    import torch

    with torch.serialization.safe_globals([torch.distributions.MultivariateNormal]):
        return torch.load(path, map_location="cpu", weights_only=True)


def variables_of(net: Any, tensors: Mapping[str, Any], event_shape: tuple[int, ...]) -> Any:
    """Returns the variables of a network from PyTorch's tensors by name."""
    arrays = {name.removeprefix("module."): np.asarray(t) for name, t in tensors.items()}
    template = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *event_shape)))

    def take(path: tuple[Any, ...], wanted: jax.ShapeDtypeStruct) -> jax.Array:
        _, *modules, leaf = (entry.key for entry in path)
        name = ".".join([re.sub(r"_(\d+)$", r".\1", m) for m in modules] + [LEAVES.get(leaf, leaf)])
        # PyTorch keeps the kernel before spectral normalisation as weight_orig.
        array = arrays.pop(f"{name}_orig") if f"{name}_orig" in arrays else arrays.pop(name, None)
        if array is None:
            raise ValueError(f"the checkpoint has no tensor {name!r}")
        if array.ndim > 1:  # [out, in, k, k] there, [k, k, in, out] here.
            array = np.moveaxis(array, (0, 1), (-1, -2))
        if array.shape != wanted.shape:
            raise ValueError(f"{name} has the shape {array.shape}, expected {wanted.shape}")
        return jnp.asarray(array, jnp.float32)

    variables = jax.tree.map_with_path(take, template)
    if arrays:
        raise ValueError(f"the network has no place for {', '.join(sorted(arrays))}")
    return variables


def read(path: Path, network: str = "mlp") -> tuple[fdrl.FDRL, Partial, tuple[int, ...]]:
    """Returns the method, the averaged estimator, and the shape of a sample of a checkpoint."""
    stored = load(path)
    theirs, tensors = stored["config"], stored["ema"]
    kernels = [t.shape for name, t in tensors.items() if name.endswith(("weight", "weight_orig"))]
    normalised = any(name.endswith("weight_u") for name in tensors)
    if network == "mlp":
        event_shape: tuple[int, ...] = (kernels[0][1],)
        net = fdrl.networks.MLP([shape[0] for shape in kernels[:-1]], normalised)
    else:
        event_shape = (theirs["img_size"], theirs["img_size"], theirs["n_channels"])
        net = fdrl.networks.resnet(
            network,
            width=kernels[0][0],
            spectral_norm=normalised,
            attention=any("self_attn_module" in name for name in tensors),
        )
    method = fdrl.FDRL(
        loss=LOSSES[theirs["loss_function"]],
        divergence=DIVERGENCES[theirs["f_divergence"]],
        num_steps=theirs["n_flow_steps"],
        step_size=theirs["eta"],
        noise_scale=theirs["noise_factor"],
    )
    return method, Partial(net.apply, variables_of(net, tensors, event_shape)), event_shape


def draw_prior(key: jax.Array, num: int, event_shape: tuple[int, ...], file: Path | None) -> Any:
    """Draws from the authors' prior (eq. 8), or without a file a normal or uniform one."""
    if file is None and len(event_shape) == 1:
        return jax.random.normal(key, (num, *event_shape))
    if file is None:
        return jax.random.uniform(key, (num, *event_shape), minval=-1.0, maxval=1.0)
    gaussian = load(file)
    mean, factor = gaussian.loc.numpy(), gaussian._unbroadcasted_scale_tril.numpy()
    points = mean + np.asarray(jax.random.normal(key, (num, len(mean)))) @ factor.T
    height, width, channels = event_shape  # Theirs are [channels, height, width].
    return np.moveaxis(points.reshape(num, channels, height, width), 1, -1)


def main(argv: list[str] | None = None) -> np.ndarray:
    """Writes samples and returns them, [N, ...]."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--network", default="mlp", help="mlp, resnet32, resnet64, ...")
    parser.add_argument("--prior", type=Path, help="the authors' data-dependent prior")
    parser.add_argument("--num_samples", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=Path("runs/authors.npz"))
    options = parser.parse_args(argv)
    method, estimator, event_shape = read(options.checkpoint, options.network)
    prior_key, flow_key = jax.random.split(jax.random.key(0))
    x0 = draw_prior(prior_key, options.num_samples, event_shape, options.prior)
    x0 = x0 if len(event_shape) == 1 else x0.clip(-1.0, 1.0)  # As in the authors' program.
    samples = np.asarray(method.sample(flow_key, x0, estimator))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(options.out, samples)
    print(f"{len(samples)} samples: {options.out}")
    return samples


if __name__ == "__main__":
    main()
