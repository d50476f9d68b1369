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


def load(path: Path) -> Any:
    """Reads a file of `torch.save`, which may contain tensors, plain containers and a Gaussian."""
    import torch

    with torch.serialization.safe_globals([torch.distributions.MultivariateNormal]):
        return torch.load(path, map_location="cpu", weights_only=True)


def from_torch_state_dict(net: Any, tensors: Mapping[str, Any]) -> Any:
    """Returns a network's variables from arrays by PyTorch's names (`layer1.0.conv1.weight`).

    Raises:
      ValueError: if the arrays do not fit; lists each one that is missing, surplus or misshapen.
    """
    kernels = (np.shape(t) for name, t in tensors.items() if re.match(r"(conv1|mlp\.0)\.w", name))
    input_features = next((shape[1] for shape in kernels if len(shape) > 1), 1)
    expected = torch_shapes(net, input_features)
    found = {name: np.shape(tensor) for name, tensor in tensors.items()}
    if found != expected:
        differing = (n for n in expected | found if found.get(n) != expected.get(n))
        pairs = (f"{n}: expected {expected.get(n)}, got {found.get(n)}" for n in differing)
        raise ValueError("the tensors do not fit the network: " + "; ".join(pairs))

    def converted(name: str) -> jax.Array:
        array = np.asarray(tensors[name], np.float32)  # [out, in, k, k] there.
        return jnp.asarray(np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array)

    return jax.tree.map(converted, _names(_template(net, input_features)))


def torch_shapes(net: Any, input_features: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of the authors' network, by PyTorch's name."""
    template = _template(net, input_features)
    shapes = [leaf.shape for leaf in jax.tree.leaves(template)]
    ours = zip(jax.tree.leaves(_names(template)), shapes, strict=True)
    return {name: (*s[:-3:-1], *s[:-2]) if len(s) > 1 else s for name, s in ours}


def _template(net: Any, input_features: int) -> Any:
    shape = () if isinstance(net, fdrl.networks.MLP) else (8, 8)  # No variable depends on the size.
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape, input_features)))


def _names(template: Any) -> Any:
    # PyTorch keeps the vectors of spectral normalisation next to the raw kernel.
    kernel = "weight_orig" if "spectral" in template else "weight"
    leaves = {"kernel": kernel, "u": "weight_u", "v": "weight_v"}

    def name(path: tuple[Any, ...], _: Any) -> str:
        _, *modules, leaf = (entry.key for entry in path)
        # layer1_0 here is layer1.0 there.
        parts = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
        return ".".join((*parts, leaves.get(leaf, leaf)))

    return jax.tree.map_with_path(name, template)


def read(path: Path, network: str = "mlp") -> tuple[fdrl.FDRL, Partial, tuple[int, ...]]:
    """Returns the method, the averaged estimator, and the shape of a sample of a checkpoint."""
    stored = load(path)
    theirs = stored["config"]
    tensors = {name.removeprefix("module."): tensor for name, tensor in stored["ema"].items()}
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
    return method, Partial(net.apply, from_torch_state_dict(net, tensors)), event_shape


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
