"""The separate process that computes Inception features and metrics by torch-fidelity.

Run: `python -m experiments.evaluation.inception_process JOB`, where the job is JSON. PyTorch is
imported only here, so that it never shares a process, and the memory of a GPU, with JAX.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from experiments.errors import first_line
from experiments.files import replacing


def main(job: dict[str, Any]) -> None:
    """Does a job of `experiments/evaluation/inception.py`, and writes its result."""
    try:
        network = build_network(job)
    except Exception as error:  # torch and pickle may raise any error on other files.
        what = f"{job['weights']} does not contain weights of this network"
        result = {"error": f"{what}: {first_line(error)}"}
    else:
        result = _compute(job, network)
    Path(job["result"]).write_text(json.dumps(result))


def _compute(job: dict[str, Any], network: Any) -> dict[str, Any]:
    """Returns metrics by name, [value] or [value, spread], with versions and the device."""
    import torch
    import torch_fidelity
    import torchvision
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    layers = extract(network, job, job["samples_shape"], sys.stdin.buffer)
    samples, wanted = layers["2048"], job["metrics"]
    np.save(job["sample_features"], samples.numpy())
    reference = _reference(job, network)
    metrics: dict[str, list[float]] = {}
    if "fid" in wanted:
        statistics = [fid_features_to_statistics(x) for x in (samples, reference)]
        found = fid_statistics_to_metric(*statistics, verbose=False)
        metrics["fid"] = [found["frechet_inception_distance"]]
    if "kid" in wanted:
        size = job["kid_subset_size"]
        found = kid_features_to_metric(samples, reference, kid_subset_size=size, verbose=False)
        metrics["kid"] = [found[f"kernel_inception_distance_{part}"] for part in ("mean", "std")]
    if "precision_recall" in wanted:
        found = prc_features_to_metric(samples, reference, save_cpu_ram=True, verbose=False)
        metrics |= {"precision": [found["precision"]], "recall": [found["recall"]]}
    if "inception_score" in wanted:
        found = isc_features_to_metric(layers["logits_unbiased"])
        metrics["inception_score"] = [found[f"inception_score_{part}"] for part in ("mean", "std")]
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, torch_fidelity)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"metrics": metrics, "versions": versions, "device": device}


def build_network(job: dict[str, Any]) -> Any:
    """Returns the network of a job's protocol, with its weights, on the device."""
    import torch
    from torch_fidelity.utils import create_feature_extractor

    # Rejects files with anything but tensors, because torch-fidelity would execute it.
    state = torch.load(job["weights"], map_location="cpu", weights_only=True)
    if job["protocol"] != "standard":
        return _legacy_network(state)
    return create_feature_extractor(  # With TensorFlow's weights, for uint8 images.
        "inception-v3-compat",
        ["2048", "logits_unbiased"] if "inception_score" in job["metrics"] else ["2048"],
        cuda=torch.cuda.is_available(),
        feature_extractor_weights_path=job["weights"],
        verbose=False,
    )


def _legacy_network(state: dict[str, Any]) -> Any:
    """The network of torchvision up to its last pooling, for floats in [-1, 1]."""
    import torch
    from torch.nn.functional import interpolate
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torchvision.models import Inception3

    class Legacy(FeatureExtractorBase):
        def __init__(self) -> None:
            super().__init__("legacy", ["2048"])
            self.network = Inception3(transform_input=False, init_weights=False)

        def forward(self, images: Any) -> tuple[Any]:
            large = interpolate(images, (299, 299), mode="bilinear", align_corners=False)
            return (self.network(large),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("2048",)

    legacy = Legacy()
    legacy.network.load_state_dict(state)
    legacy.network.fc = torch.nn.Identity()
    return legacy.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def extract(
    network: Any, job: dict[str, Any], shape: Sequence[int], stream: BinaryIO
) -> dict[str, Any]:
    """Returns features of the images in a stream, by layer, [N, D], with a progress bar.

    The stream has the pixels of images [N, H, W, C], image by image; grey images get three equal
    channels.
    """
    import torch
    from tqdm import tqdm

    num, *size = shape
    dtype = np.dtype(job["pixels"])
    num_bytes = int(np.prod(size)) * dtype.itemsize
    parts: dict[str, list[Any]] = {}
    with tqdm(total=num, unit="image", desc="Inception features", leave=False) as bar:
        for first in range(0, num, job["batch_size"]):
            count = min(job["batch_size"], num - first)
            payload = stream.read(count * num_bytes)
            pixels = np.frombuffer(bytearray(payload), dtype).reshape(count, *size)
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
            if torch.cuda.is_available():
                batch = batch.cuda()
            with torch.no_grad():
                found = network.convert_features_tuple_to_dict(network(batch))
            for layer, features in found.items():
                parts.setdefault(layer, []).append(features.cpu())
            bar.update(count)
    return {layer: torch.cat(features) for layer, features in parts.items()}


def _reference(job: dict[str, Any], network: Any) -> Any:
    """Features of the reference, from the cache or computed and cached."""
    import torch

    kept = Path(job["reference_features"])
    if not kept.exists():
        found = extract(network, job, job["reference_shape"], sys.stdin.buffer)
        with replacing(kept) as file:
            np.save(file, found["2048"].numpy())
    return torch.from_numpy(np.load(kept))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
