"""The FID, in the features of torch-fidelity's Inception network, of images of 256 levels."""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.decode import to_uint8
from experiments.errors import UserError, first_line
from experiments.evaluation.metrics import Metric, measured
from experiments.files import sha256_of_file
from fdrl_jax.metrics import frechet_distance

_PACKAGES = ("torch", "torchvision", "torch-fidelity")
_BATCH_SIZE = 64
_FILE, _SHA256 = "weights-inception-2015-12-05-6726825d.pth", "6726825d"

Features = Callable[[np.ndarray], np.ndarray]  # Images [N, H, W, C] in [-1, 1] -> [N, 2048].


def describe(weights: str) -> dict[str, Any]:
    """Returns what determines the features, as values for JSON, for a file of weights."""
    if not Path(weights).is_file():
        raise UserError(
            f"evaluate.inception_weights={weights} does not exist: download {_FILE} from the "
            "releases of https://github.com/toshas/torch-fidelity (v0.2.0)"
        )
    if missing := [name for name in _PACKAGES if find_spec(name.replace("-", "_")) is None]:
        raise UserError(f"{missing[0]} is not installed: pip install -e '.[eval]'")
    if not (found := sha256_of_file(Path(weights))).startswith(_SHA256):
        raise UserError(
            f"evaluate.inception_weights={weights} is not {_FILE}: its SHA-256 begins with "
            f"{found[:8]}, so its distances could not be compared with published ones"
        )
    return {"sha256": found, "versions": {package: version(package) for package in _PACKAGES}}


def load(weights: str) -> Features:
    """Returns the network with the weights of a file; grey images become colour images."""
    import torch
    from torch_fidelity.utils import create_feature_extractor

    has_gpu = torch.cuda.is_available()
    try:
        # Refuses files with anything but tensors, because torch-fidelity would execute it.
        torch.load(weights, map_location="cpu", weights_only=True)
        network = create_feature_extractor(
            "inception-v3-compat",
            ["2048"],
            cuda=has_gpu,
            feature_extractor_weights_path=weights,
            verbose=False,
        )
    except Exception as error:  # torch and pickle may raise any error on other files.
        raise UserError(
            f"evaluate.inception_weights={weights} cannot be read: {first_line(error)}"
        ) from error

    def features(images: np.ndarray) -> np.ndarray:
        levels, found = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2), []
        for batch in levels.expand(-1, 3, -1, -1).split(_BATCH_SIZE):
            with torch.no_grad():
                found.append(np.asarray(network(batch.cuda() if has_gpu else batch)[0].cpu()))
        return np.concatenate(found)

    return features


def fid(
    features: Features, samples: Iterable[np.ndarray], reference: Iterable[np.ndarray]
) -> Metric:
    """Computes the FID of samples to real images, both as batches [B, H, W, C] in [-1, 1]."""
    ours, real = (np.concatenate([*map(features, batches)]) for batches in (samples, reference))
    return measured("fid", [frechet_distance(ours, real)], num=len(ours))
