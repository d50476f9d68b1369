"""The judge: a classifier of images that no contestant saw, and its figures for samples."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from benchmarks.peers import fitting
from benchmarks.peers.data import Images, Split, draw
from experiments.data.decode import to_unit
from experiments.evaluation import memorisation
from fdrl_jax import metrics, networks
from fdrl_jax.priors import Batch
from fdrl_jax.training import adversarial, augmentation

_BATCH, _NUM_EPOCHS, _LEARNING_RATE, _MAX_SHIFT = 64, 20, 1e-3, 2
_SPEC = networks.ResNetSpec(32, ((64, 2), (64, 1), (128, 2), (128, 1)))
_APPLY_BATCH = 250


class Judge(NamedTuple):
    """A trained classifier.

    Attributes:
      network: the architecture.
      variables: its parameters.
      reference: features of the reference images, [N, D].
      accuracy: on the reference images.
    """

    network: networks.ResNet
    variables: Any
    reference: np.ndarray
    accuracy: float

    def figures(self, pixels: np.ndarray, labels: np.ndarray | None = None) -> dict[str, float]:
        """Returns the figures of images, [N, H, W, C] uint8.

        With their labels, [N], "class_accuracy" is the share that is assigned to its class.
        "frechet" is the squared Fréchet distance to the reference images in the features before the
        last layer, "top_probability" the mean probability of the most probable class, and
        "min_share" and "max_share" are the shares of the rarest and the most frequent class.
        """
        features, logits = _apply(self.network, self.variables, pixels)
        assigned = logits.argmax(axis=1)
        shares = np.bincount(assigned, minlength=logits.shape[1]) / len(logits)
        of_labels = {} if labels is None else {"class_accuracy": float(np.mean(assigned == labels))}
        return of_labels | {
            "frechet": metrics.frechet_distance(features, self.reference),
            "top_probability": float(jax.nn.softmax(logits).max(axis=1).mean()),
            "min_share": float(shares.min()),
            "max_share": float(shares.max()),
        }


def training_share(pixels: np.ndarray, images: Split, *, mirrored: bool = False) -> float:
    """Returns the share of images, [N, H, W, C] uint8, whose nearest real image was trained on.

    The real images are those of the contestants, and the reference images, which they never saw.
    Without copies, it is the share of the contestants' images among these, 7/8, whatever the
    sharpness of the images; if all are copies, it is 1. Distances are those of pixels. Where
    training shows `mirrored` images as well, the mirror images of both are real images, too.
    """

    def distances(real: np.ndarray) -> np.ndarray:
        starts = range(0, len(real), _APPLY_BATCH)
        batches = (np.asarray(to_unit(real[start : start + _APPLY_BATCH])) for start in starts)
        queries = np.asarray(to_unit(pixels))
        if mirrored:
            batches = (of for batch in batches for of in (batch, batch[:, :, ::-1]))
        return memorisation.nearest(queries, batches, 1).distances

    near, new = (distances(of.pixels) for of in (images.contestants, images.reference))
    return float(np.mean(near < new))


def load_or_train(file: Path, images: Split, dtype: DTypeLike) -> Judge:
    """Reads the parameters of the judge from an npz, or trains it and writes them.

    Args:
      file: of the parameters.
      images: the judge trains on the second part and is compared with the third.
      dtype: type of the convolutions.
    """
    num_classes = int(images.judge.labels.max()) + 1
    network = networks.resnet(_SPEC, num_outputs=num_classes, use_bias=True, dtype=dtype)
    variables = fitting.load_or_fit(file, images.judge, lambda: _train(network, images.judge))
    features, logits = _apply(network, variables, images.reference.pixels)
    accuracy = float(np.mean(logits.argmax(axis=1) == images.reference.labels))
    return Judge(network, variables, features, accuracy)


def _train(network: networks.ResNet, images: Images) -> Any:
    num_steps = _NUM_EPOCHS * len(images.pixels) // _BATCH
    is_grey = images.pixels.shape[-1] == 1

    def shifted(arrays: Images, _: Any, key: jax.Array, positions: jax.Array) -> Batch:
        batch = draw(arrays, key, positions, flip=not is_grey)
        shift_key = jax.random.fold_in(key, len(arrays.pixels))  # Not that of any position.
        moved = augmentation.shifted(shift_key, positions, batch["real"], _MAX_SHIFT)
        return {**batch, "real": moved}

    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps))
    train_step = adversarial.make_train_step(
        network.apply,
        attack=adversarial.l2_attack(0.0, 0),
        optimizer=optimizer,
        draw=shifted,
        batch_size=_BATCH,
        ema_ramp=True,
    )
    shape = (1, *images.pixels.shape[1:])

    def init(key: jax.Array) -> Any:
        return jax.jit(network.init)(key, jnp.zeros(shape))

    found = fitting.run_steps(train_step, init, optimizer, images, num_steps, "judge")
    return found.ema_variables


def _apply(
    network: networks.ResNet, variables: Any, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features [N, D] and logits [N, C]."""

    @jax.jit
    def of_batch(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = to_unit(batch)
        return network.apply(variables, x, features=True), network.apply(variables, x)

    features, logits = fitting.in_batches(of_batch, pixels)
    return features, logits
