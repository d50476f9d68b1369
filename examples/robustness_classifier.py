"""Classifies images with a network of the PyTorch library `robustness`, the paper's classifier.

Run: python -m examples.robustness_classifier CHECKPOINT.pt IMAGES.npz
IMAGES.npz has an array of uint8 [N, H, W, 3], such as samples of a run on CIFAR-10. Prints how many
images are in each class. `read` returns a function that `fdrl_jax.compose.condition` accepts, for
class-conditional samples in your own code.

A checkpoint has the state dictionary of the library's `AttackerModel` under "model". PyTorch 2.6 or
newer reads it and executes nothing in it. The published files also contain objects of the library,
which are refused. Convert such a file where PyTorch and the library are installed:

    torch.save({"model": torch.load(OLD, pickle_module=dill, weights_only=False)["model"]}, NEW)
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fdrl_jax import networks


def read(path: Path) -> Callable[[jax.Array], jax.Array]:
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


def main(argv: Sequence[str]) -> np.ndarray:
    """Prints and returns the number of images in each class."""
    checkpoint, file = argv
    with np.load(file) as stored:
        images = stored[stored.files[0]]
    classify = jax.jit(read(Path(checkpoint)))
    batches = np.split(images, range(100, len(images), 100))
    logits = np.concatenate([classify(batch / 127.5 - 1.0) for batch in batches])
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    for label, count in enumerate(counts):
        print(f"class {label}: {count:,} images")
    return counts


if __name__ == "__main__":
    main(sys.argv[1:])
