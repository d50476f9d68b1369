"""Uses a network of the PyTorch library `robustness`, the paper's classifier.

    python -m examples.robustness_classifier FILE.pt IMAGES.npz
    python -m examples.robustness_classifier FILE.pt --workdir=runs/cifar10 --weights 0 0.1

The first command prints how many images are in each class. IMAGES.npz has an array of uint8
[N, H, W, 3], such as samples of a run on CIFAR-10. The second one draws samples of a run for all
classes in turn, guided by the network, and prints for each weight how many samples the network
assigns to their class (figure 9a of the paper). It writes the samples and a picture, with a row per
class, to --out. This command uses the program; the classes of its data must be in the order of the
network's. `read` returns a function that `fdrl_jax.compose.condition` accepts, for your own code.

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

from experiments import draw, run, sample
from experiments.command import Command
from experiments.data.decode import to_uint8, to_unit
from experiments.pictures import images, save
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
    found = all_logits(logits, to_unit(pixels))
    counts = np.bincount(found.argmax(axis=1), minlength=found.shape[1])
    for label, number in enumerate(counts):
        print(f"class {label}: {number:,} images")
    return counts


def guide(
    logits: Logits, workdir: Path, weights: Sequence[float], num_samples: int, out: Path
) -> np.ndarray:
    """Draws samples of all classes with each weight; prints and returns the shares in their class.

    The weight 0 does not guide, so its share is that of chance.
    """
    out.mkdir(parents=True, exist_ok=True)
    shares = []
    for weight in weights:
        changes = {"condition.label": sample.ALL, "condition.weight": weight}
        opened = run.open_checkpoint(Command(mode="sample", folder=workdir, changes=changes))
        model = sample.conditioned(opened.experiment, (lambda _, x: logits(x), ()))
        drawn = draw.Sampler(model)(
            *draw.on_devices(model, opened.state), {"refined": num_samples}, progress=True
        )["refined"]
        labels = np.arange(num_samples) % len(model.source.classes)
        shares.append(np.mean(all_logits(logits, drawn).argmax(axis=1) == labels))
        print(f"weight {weight:g}: {shares[-1]:.1%} of {num_samples:,} samples are in their class")
        np.savez(out / f"weight_{weight:g}.npz", to_uint8(drawn))
        figure = images.by_class(drawn, labels, model.source.classes)
        save(figure, out / f"weight_{weight:g}.png")
    return np.array(shares)


def main(argv: Sequence[str]) -> np.ndarray:
    """Classifies the given images, or samples of a run that the network guides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path, help="of the library, see above")
    add("images", type=Path, nargs="?", help="an .npz of images to classify")
    add("--workdir", type=Path, help="a run, whose samples the network guides")
    add("--weights", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    add("--num_samples", type=int, default=100, help="of each weight, of all classes together")
    add("--out", type=Path, default=Path("runs/robustness_classifier"))
    options = parser.parse_args(argv)
    if (options.images is None) == (options.workdir is None):
        parser.error("give either IMAGES.npz or --workdir")
    logits = read(options.checkpoint)
    if options.images is not None:
        return count(logits, options.images)
    return guide(logits, options.workdir, options.weights, options.num_samples, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
