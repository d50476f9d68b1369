"""Metrics of Inception networks by torch-fidelity, under two protocols.

A protocol fixes weights, pixels and resizing. Values of different protocols are not comparable, so
the protocol is part of a metric's name. Nothing is downloaded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.decode import to_uint8
from experiments.errors import UserError, first_line
from experiments.evaluation.draws import FEWEST_FOR_NEIGHBOURS
from experiments.evaluation.manifold import manifold_metrics
from experiments.evaluation.metrics import Estimate, Metric, with_count
from experiments.files import sha256_of_file
from experiments.settings import Settings

DEFAULT_METRICS = ("fid", "kid", "precision_recall", "density_coverage")
METRICS = (*DEFAULT_METRICS, "inception_score")
_PACKAGES = ("torch", "torchvision", "torch-fidelity")
_BATCH_SIZE = 64
_KID_SUBSET_SIZE = 1_000  # The usual size; smaller if there are fewer images.
# `pixels [B, 3, H, W], a tensor on the device -> features by layer, [B, D]`.
_Network = Callable[[Any], dict[str, Any]]


class Protocol(NamedTuple):
    """A protocol of Inception metrics."""

    name: str  # On the command line.
    suffix: str  # Of the names of metrics.
    weights_file: str  # Name of the file of weights.
    sha256: str  # First digits of the SHA-256 of that file.
    source: str  # Where to get the file.
    metrics: tuple[str, ...]  # Some of `METRICS`.
    setting: str  # The setting of the section `evaluate` for the file of weights.


# Images of 256 levels, resized as in TensorFlow 1: bilinear without antialiasing.
STANDARD = Protocol(
    name="standard",
    suffix="",
    weights_file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
    source="the releases of https://github.com/toshas/torch-fidelity (v0.2.0)",
    metrics=METRICS,
    setting="inception_weights",
)
# The paper's protocol: floats that are not rounded, resized bilinearly without antialiasing and
# without aligned corners, and torchvision's network for ImageNet.
LEGACY = Protocol(
    name="fid_legacy_fdrl",
    suffix="_legacy_fdrl",
    weights_file="inception_v3_google-0cc3c7bd.pth",
    sha256="0cc3c7bd",
    source="torchvision, torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.url",
    metrics=("fid",),
    setting="legacy_weights",
)
PROTOCOLS = {protocol.name: protocol for protocol in (STANDARD, LEGACY)}


class ImageSet(NamedTuple):
    """Images of one size, which are read batch by batch and may not fit in memory."""

    name: str  # For messages.
    batches: Callable[[], Iterator[np.ndarray]]  # One pass, [B, H, W, C] in [-1, 1], float32.
    is_rounded: bool = True  # To 256 levels, as in files of images.


class Inception(NamedTuple):
    """Inception metrics to compute; each protocol computes those of `metrics` that it has."""

    weights: Mapping[str, str]  # Files of weights by name of the protocol.
    metrics: Sequence[str]  # Some of `METRICS`.

    def describe(self) -> dict[str, Any]:
        """Returns what determines the metrics, as values for JSON."""
        digests = {name: sha256_of_file(Path(file)) for name, file in self.weights.items()}
        return {"weights": digests, "metrics": list(self.metrics)}


def check_weights(settings: Settings) -> Inception | None:
    """Returns the metrics of the networks whose weights the settings name, if any."""
    given = {p.name: getattr(settings.evaluate, p.setting) for p in PROTOCOLS.values()}
    weights = {name: file for name, file in given.items() if file}
    for name, file in weights.items():
        check_ready(PROTOCOLS[name], file)
    score = ("inception_score",) if settings.evaluate.inception_score else ()
    return Inception(weights, (*DEFAULT_METRICS, *score)) if weights else None


def check_ready(protocol: Protocol, weights_file: str) -> None:
    """Raises a UserError that says where to get missing weights or packages of a protocol."""
    if not Path(weights_file).is_file():
        missing = f"{weights_file} does not exist" if weights_file else "weights are missing"
        raise UserError(
            f"{missing}: the protocol {protocol.name!r} needs the file {protocol.weights_file} "
            f"(SHA-256 begins with {protocol.sha256}) from {protocol.source}; download it and set "
            f"--weights=FILE, or --config.evaluate.{protocol.setting}=FILE for a run. Without it, "
            "--features=random_conv compares two sets"
        )
    for package in _PACKAGES:
        if find_spec(package.replace("-", "_")) is None:
            raise UserError(f"{package} is not installed: pip install -e '.[eval]'")


def unless_it_fails(
    samples: ImageSet, reference: ImageSet, networks: Inception, record: dict[str, Any]
) -> list[Metric]:
    """Computes metrics as `by_inception`; the record gets the protocols, or why there are none."""
    try:
        found, record["protocols"] = by_inception(samples, reference, networks)
    except Exception as error:  # PyTorch may raise any error. The other metrics are not lost.
        record["skipped"].append(f"Inception metrics: {first_line(error)}")
        return []
    return found


def by_inception(
    samples: ImageSet, reference: ImageSet, networks: Inception
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """Computes metrics of Inception networks, and returns them with a description per protocol."""
    metrics: list[Metric] = []
    described = []
    for name, weights in networks.weights.items():
        protocol, sha256 = PROTOCOLS[name], sha256_of_file(Path(weights))
        if protocol is LEGACY and samples.is_rounded:
            raise UserError(
                f"{samples.name} was rounded to 256 levels, which protocol {name!r} forbids: use "
                "an .npz with float32 in [-1, 1] under arr_0, or --mode=evaluate on a run"
            )
        wanted = [metric for metric in networks.metrics if metric in protocol.metrics]
        network = _network(protocol, weights)
        ours, real = (_features(network, images, protocol) for images in (samples, reference))
        num = len(ours["2048"])
        subset_size = min(_KID_SUBSET_SIZE, num, len(real["2048"]))
        for metric, value in _values(ours, real["2048"], wanted, subset_size).items():
            full_name = with_count(name_of(protocol, sha256, metric), num)
            metrics.append(Metric(full_name, metric, value))
        described.append(
            {
                "protocol": name,
                "weights_sha256": sha256,
                "kid_subset_size": subset_size,
                "versions": {package: version(package) for package in _PACKAGES},
            }
        )
    return metrics, described


def name_of(protocol: Protocol, sha256: str, metric: str) -> str:
    """Returns the name of a metric under a protocol, such as `fid` or `fid_legacy_fdrl`.

    Values with other weights are not comparable with published ones, so their name has the hash of
    the weights.
    """
    own = "" if sha256.startswith(protocol.sha256) else f"_weights_{sha256[:8]}"
    return f"{metric}{protocol.suffix}{own}"


def _values(
    samples: Mapping[str, Any], real: Any, wanted: Sequence[str], kid_subset_size: int
) -> dict[str, Estimate]:
    """Computes metrics of the features of samples, by layer, and of real images, [N, 2048]."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    ours = samples["2048"]
    if (num := min(len(ours), len(real))) < FEWEST_FOR_NEIGHBOURS:
        raise UserError(f"expected at least {FEWEST_FOR_NEIGHBOURS} images, got {num}")
    values: dict[str, Estimate] = {}
    if "fid" in wanted:
        statistics = [fid_features_to_statistics(features) for features in (ours, real)]
        found = fid_statistics_to_metric(*statistics, verbose=False)
        values["fid"] = Estimate(found["frechet_inception_distance"])
    if "kid" in wanted:
        found = kid_features_to_metric(ours, real, kid_subset_size=kid_subset_size, verbose=False)
        name = "kernel_inception_distance"
        values["kid"] = Estimate(found[f"{name}_mean"], found[f"{name}_std"])
    if "precision_recall" in wanted:
        found = prc_features_to_metric(ours, real, save_cpu_ram=True, verbose=False)
        values |= {name: Estimate(found[name]) for name in ("precision", "recall")}
    if "inception_score" in wanted:
        found, name = isc_features_to_metric(samples["logits_unbiased"]), "inception_score"
        values[name] = Estimate(found[f"{name}_mean"], found[f"{name}_std"])
    if "density_coverage" in wanted:
        manifold = manifold_metrics(ours.numpy(), real.numpy())
        values |= {name: Estimate(getattr(manifold, name)) for name in ("density", "coverage")}
    return values


def _network(protocol: Protocol, weights: str) -> _Network:
    """Returns the network of a protocol, with its weights, on the device."""
    import torch
    from torch_fidelity.utils import create_feature_extractor
    from torchvision.models import Inception3

    has_gpu = torch.cuda.is_available()
    try:
        # Rejects files with anything but tensors, because torch-fidelity would execute it.
        state = torch.load(weights, map_location="cpu", weights_only=True)
        if protocol is STANDARD:  # For uint8 pixels, with TensorFlow's weights.
            extractor = create_feature_extractor(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                cuda=has_gpu,
                feature_extractor_weights_path=weights,
                verbose=False,
            )
            return lambda pixels: extractor.convert_features_tuple_to_dict(extractor(pixels))
        network = Inception3(transform_input=False, init_weights=False)
        network.load_state_dict(state)
    except Exception as error:  # torch and pickle may raise any error on other files.
        what = f"{weights} does not contain weights of this network"
        raise UserError(f"{what}: {first_line(error)}") from error
    network.fc = torch.nn.Identity()  # Up to the last pooling, for floats in [-1, 1].
    network.eval().to("cuda" if has_gpu else "cpu")

    def features(pixels: Any) -> dict[str, Any]:
        resize = torch.nn.functional.interpolate
        large = resize(pixels, (299, 299), mode="bilinear", align_corners=False)
        return {"2048": network(large)}

    return features


def _features(network: _Network, images: ImageSet, protocol: Protocol) -> dict[str, Any]:
    """Returns features of images by layer, [N, D] on the host; grey images become colour images."""
    import torch
    from tqdm import tqdm

    parts: dict[str, list[Any]] = {}
    with tqdm(unit="image", desc="Inception features", leave=False) as bar:
        for batch in images.batches():
            levels = to_uint8(batch) if protocol is STANDARD else batch.astype(np.float32)
            for first in range(0, len(levels), _BATCH_SIZE):
                part = torch.from_numpy(levels[first : first + _BATCH_SIZE])
                pixels = part.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
                with torch.no_grad():
                    found = network(pixels.cuda() if torch.cuda.is_available() else pixels)
                for layer, features in found.items():
                    parts.setdefault(layer, []).append(features.cpu())
                bar.update(len(part))
    return {layer: torch.cat(features) for layer, features in parts.items()}
