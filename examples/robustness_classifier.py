"""Uses a network of the PyTorch library `robustness`, the paper's classifier.

    python -m examples.robustness_classifier FILE.pt IMAGES.npz

This prints how many images are in each class. IMAGES.npz has an array of uint8 [N, H, W, 3], such
as samples of a run on CIFAR-10. `read` returns a function that `fdrl_jax.compose.condition`
accepts, for your own code. `examples/guidance_weight.py` guides samples of a run by such a file.

A checkpoint has the state dictionary of the library's `AttackerModel` under "model". PyTorch 2.6 or
newer reads it and executes nothing in it. The published files also contain objects of the library,
which are refused. Convert such a file where PyTorch and the library are installed:

    torch.save({"model": torch.load(OLD, pickle_module=dill, weights_only=False)["model"]}, NEW)
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fdrl_jax import networks

Logits = Callable[[jax.Array], jax.Array]


def read(path: Path) -> Logits:
    """Returns a function of images [B, H, W, 3] in [-1, 1] to logits [B, classes].

    The file is of a ResNet with bottleneck blocks, such as ResNet-50, of any width.

    Raises:
      ValueError: if tensors are missing or surplus; lists them.
    """
    import torch

    tensors = torch.load(path, map_location="cpu", weights_only=True)["model"]
    # The library stores copies of both parts under "module.attacker".
    model, normalizer = (
        {n.removeprefix(p): t.numpy() for n, t in tensors.items() if n.startswith(p)}
        for p in ("module.model.", "module.normalizer.")
    )
    found = (re.match(r"layer(\d+)\.(\d+)\.", name) for name in model)
    places = {(int(match[1]), int(match[2])) for match in found if match}
    blocks = np.bincount([stage for stage, _ in places])[1:].tolist()
    width, num_classes = len(model["conv1.weight"]), len(model["linear.weight"])
    net = networks.BottleneckResNet(tuple(blocks), width, num_classes)
    variables = networks.from_torch_state_dict(net, model)
    mean, std = (normalizer[f"new_{name}"].reshape(3) for name in ("mean", "std"))

    def logits(x: jax.Array) -> jax.Array:
        pixels = jnp.clip((x + 1.0) / 2.0, 0.0, 1.0)  # Clipped, as in that library.
        return jnp.asarray(net.apply(variables, (pixels - mean) / std))

    return logits


def all_logits(logits: Logits, x: np.ndarray) -> np.ndarray:
    """Returns the logits of many images in [-1, 1], [N, H, W, 3], in batches."""
    classify = jax.jit(logits)
    return np.concatenate([classify(batch) for batch in np.split(x, range(100, len(x), 100))])


def count(logits: Logits, file: Path) -> np.ndarray:
    """Prints and returns the number of images in each class."""
    with np.load(file) as stored:
        pixels = stored[stored.files[0]]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(
            f"{file} must have uint8 images [N, H, W, 3], got {pixels.dtype} {pixels.shape}"
        )
    found = all_logits(logits, pixels / np.float32(127.5) - 1.0)
    counts = np.bincount(found.argmax(axis=1), minlength=found.shape[1])
    for label, number in enumerate(counts):
        print(f"class {label}: {number:,} images")
    return counts


def main(argv: Sequence[str]) -> np.ndarray:
    """Classifies the given images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="of the library, see above")
    parser.add_argument("images", type=Path, help="an .npz of images to classify")
    options = parser.parse_args(argv)
    return count(read(options.checkpoint), options.images)


if __name__ == "__main__":
    main(sys.argv[1:])
