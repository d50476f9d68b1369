"""Metrics of Inception networks by torch-fidelity, under two protocols.

A protocol fixes weights, pixels and resizing. Values of different protocols are not comparable, so
the protocol is part of a metric's name. Nothing is downloaded.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.decode import to_uint8
from experiments.data.formats import digest
from experiments.errors import UserError, first_line
from experiments.evaluation.draws import FEWEST_FOR_NEIGHBOURS
from experiments.evaluation.metrics import Estimate, Metric, with_count
from experiments.files import replacing, sha256_of_file
from experiments.settings import Settings
from fdrl_jax.metrics import manifold_metrics

DEFAULT_METRICS = ("fid", "kid", "precision_recall", "density_coverage")
METRICS = (*DEFAULT_METRICS, "inception_score")
_PACKAGES = ("torch", "torchvision", "torch-fidelity")
_MEAN_AND_STD = ("mean", "std")  # In names of torch-fidelity.
_BATCH_SIZE = 64
_KID_SUBSET_SIZE = 1_000  # The usual size; smaller if there are fewer images.
# `pixels [B, 3, H, W], a tensor on the device -> features by layer, [B, D]`.
_Network = Callable[[Any], dict[str, Any]]


class Protocol(NamedTuple):
    """A protocol of Inception metrics."""

    name: str  # On the command line.
    prefix: str  # Of the names of metrics; "" for the standard protocol.
    weights_file: str  # Name of the file of weights.
    sha256: str  # First digits of the SHA-256 of that file.
    source: str  # Where to get the file.
    metrics: tuple[str, ...]  # Some of `METRICS`.
    pixels: str  # "uint8" or "float32".
    resize_kernel: str  # How images are resized to the 299 x 299 pixels of the network.
    setting: str  # The setting of the section `evaluate` for the file of weights.


STANDARD = Protocol(
    name="standard",
    prefix="",
    weights_file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
    source="the releases of https://github.com/toshas/torch-fidelity (v0.2.0)",
    metrics=METRICS,
    pixels="uint8",
    resize_kernel="bilinear of TensorFlow 1, no antialiasing",
    setting="inception_weights",
)
# The paper's protocol: floats that are not rounded, and torchvision's network for ImageNet.
LEGACY = Protocol(
    name="fid_legacy_fdrl",
    prefix="legacy_fdrl",
    weights_file="inception_v3_google-0cc3c7bd.pth",
    sha256="0cc3c7bd",
    source="torchvision, torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.url",
    metrics=("fid",),
    pixels="float32",
    resize_kernel="bilinear of PyTorch, align_corners=False, no antialiasing",
    setting="legacy_weights",
)
PROTOCOLS = {protocol.name: protocol for protocol in (STANDARD, LEGACY)}


class ImageSet(NamedTuple):
    """Images of one size, which are read batch by batch and may not fit in memory."""

    name: str  # For messages.
    batches: Callable[[], Iterator[np.ndarray]]  # One pass, [B, H, W, C] in [-1, 1], float32.
    is_rounded: bool = True  # To 256 levels, as in files of images.
    fingerprint: str = ""  # A hash of the images, under which features are cached; "" for no cache.


class Inception(NamedTuple):
    """Inception metrics to compute; each protocol computes those of `metrics` that it has."""

    weights: Mapping[str, str]  # Files of weights by name of the protocol.
    metrics: Sequence[str]  # Some of `METRICS`.

    def describe(self) -> dict[str, Any]:
        """Returns what determines the metrics, as values for JSON."""
        digests = {name: sha256_of_file(Path(file)) for name, file in self.weights.items()}
        return {"weights": digests, "metrics": list(self.metrics)}


def check_weights(settings: Settings) -> Inception | None:
    """Returns the metrics of the networks whose weights the settings name, if any.

    Raises:
      UserError: for missing weights or packages.
    """
    given = {p.name: getattr(settings.evaluate, p.setting) for p in PROTOCOLS.values()}
    weights = {name: file for name, file in given.items() if file}
    for name, file in weights.items():
        check_ready(PROTOCOLS[name], file)
    score = ("inception_score",) if settings.evaluate.inception_score else ()
    return Inception(weights, (*DEFAULT_METRICS, *score)) if weights else None


def check_ready(protocol: Protocol, weights_file: str) -> None:
    """Checks that the metrics of a protocol can be computed here.

    Raises:
      UserError: for missing weights or packages; says where to get them.
    """
    if not weights_file or not Path(weights_file).is_file():
        missing = f"{weights_file} does not exist" if weights_file else "weights are missing"
        raise UserError(
            f"{missing}: the protocol {protocol.name!r} needs the file {protocol.weights_file} "
            f"(SHA-256 begins with {protocol.sha256}) from {protocol.source}; download it and set "
            f"--weights=FILE, or --config.evaluate.{protocol.setting}=FILE for a run"
        )
    for package in _PACKAGES:
        if find_spec(package.replace("-", "_")) is None:
            raise UserError(f"{package} is not installed: pip install -e '.[eval]'")


def by_inception(
    samples: ImageSet, reference: ImageSet, networks: Inception, *, cache: str = ""
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """Computes metrics of Inception networks, and returns them with a description per protocol.

    Features of the reference are cached in a folder, by default `~/.cache/fdrl_jax`.

    Raises:
      UserError: for wrong weights, or for images that are too few or do not fit the protocol.
    """
    metrics: list[Metric] = []
    described = []
    for name, weights in networks.weights.items():
        protocol, sha256 = PROTOCOLS[name], sha256_of_file(Path(weights))
        if protocol.pixels == "float32" and samples.is_rounded:
            raise UserError(
                f"{samples.name} was rounded to 256 levels, which protocol {name!r} forbids: use "
                "an .npz with float32 in [-1, 1] under arr_0, or --mode=evaluate on a run"
            )
        wanted = [metric for metric in networks.metrics if metric in protocol.metrics]
        network = _network(protocol, weights, with_classes="inception_score" in wanted)
        layers = _features(network, samples, protocol)
        real = _cached(network, reference, protocol, sha256, cache)
        num = len(layers["2048"])
        subset_size = min(_KID_SUBSET_SIZE, num, len(real))
        for metric, value in _values(layers, real, wanted, subset_size).items():
            full_name = with_count(prefixed(protocol, sha256, metric), num)
            metrics.append(Metric(full_name, metric, value))
        others = "" if sha256.startswith(protocol.sha256) else " with other weights"
        described.append(
            {
                "protocol": f"{name}{others}",
                "weights_file": Path(weights).name,
                "weights_sha256": sha256,
                "pixels": protocol.pixels,
                "resize_kernel": protocol.resize_kernel,
                "kid_subset_size": subset_size,
                "versions": {package: version(package) for package in _PACKAGES},
            }
        )
    return metrics, described


def prefixed(protocol: Protocol, sha256: str, metric: str) -> str:
    """Returns the name of a metric under a protocol, with weights of this SHA-256.

    It is `fid` for the standard protocol and `fid_legacy_fdrl` for that of the paper. Values with
    other weights are not comparable with published ones, so their name has the hash of the weights.
    """
    name = f"{metric}_{protocol.prefix}" if protocol.prefix else metric
    return name if sha256.startswith(protocol.sha256) else f"{name}_weights_{sha256[:8]}"


def _values(
    samples: Mapping[str, Any], reference: Any, wanted: Sequence[str], kid_subset_size: int
) -> dict[str, Estimate]:
    """Computes metrics of features [N, 2048] of samples, by layer, and of real images."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    ours = samples["2048"]
    num = min(len(ours), len(reference))
    by_neighbours = {"precision_recall", "density_coverage"} & set(wanted)
    if by_neighbours and num < FEWEST_FOR_NEIGHBOURS:
        names = ", ".join(sorted(by_neighbours))
        raise UserError(f"{names}: expected at least {FEWEST_FOR_NEIGHBOURS} images, got {num}")
    values: dict[str, Estimate] = {}
    if "fid" in wanted:
        statistics = [fid_features_to_statistics(x) for x in (ours, reference)]
        found = fid_statistics_to_metric(*statistics, verbose=False)
        values["fid"] = Estimate(found["frechet_inception_distance"])
    if "kid" in wanted:
        size = kid_subset_size
        found = kid_features_to_metric(ours, reference, kid_subset_size=size, verbose=False)
        values["kid"] = Estimate(*(found[f"kernel_inception_distance_{x}"] for x in _MEAN_AND_STD))
    if "precision_recall" in wanted:
        found = prc_features_to_metric(ours, reference, save_cpu_ram=True, verbose=False)
        values |= {name: Estimate(found[name]) for name in ("precision", "recall")}
    if "inception_score" in wanted:
        found = isc_features_to_metric(samples["logits_unbiased"])
        values["inception_score"] = Estimate(
            *(found[f"inception_score_{x}"] for x in _MEAN_AND_STD)
        )
    if "density_coverage" in wanted:
        manifold = manifold_metrics(ours.numpy(), reference.numpy())
        values |= {name: Estimate(getattr(manifold, name)) for name in ("density", "coverage")}
    return values


def _network(protocol: Protocol, weights: str, *, with_classes: bool) -> _Network:
    """Returns the network of a protocol, with its weights, on the device."""
    import torch
    from torch_fidelity.utils import create_feature_extractor

    try:
        # Rejects files with anything but tensors, because torch-fidelity would execute it.
        state = torch.load(weights, map_location="cpu", weights_only=True)
        if protocol is LEGACY:
            return _legacy_network(state)
        extractor = create_feature_extractor(  # With TensorFlow's weights, for uint8 images.
            "inception-v3-compat",
            ["2048", "logits_unbiased"] if with_classes else ["2048"],
            cuda=torch.cuda.is_available(),
            feature_extractor_weights_path=weights,
            verbose=False,
        )
    except Exception as error:  # torch and pickle may raise any error on other files.
        what = f"{weights} does not contain weights of this network"
        raise UserError(f"{what}: {first_line(error)}") from error
    return lambda images: extractor.convert_features_tuple_to_dict(extractor(images))


def _legacy_network(state: dict[str, Any]) -> _Network:
    """The network of torchvision up to its last pooling, for floats in [-1, 1]."""
    import torch
    from torchvision.models import Inception3

    network = Inception3(transform_input=False, init_weights=False)
    network.load_state_dict(state)
    network.fc = torch.nn.Identity()
    network.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def features(images: Any) -> dict[str, Any]:
        resize = functools.partial(torch.nn.functional.interpolate, mode="bilinear")
        return {"2048": network(resize(images, (299, 299), align_corners=False))}

    return features


def _features(network: _Network, images: ImageSet, protocol: Protocol) -> dict[str, Any]:
    """Returns features of images by layer, [N, D] on the host; grey images become colour images."""
    import torch
    from tqdm import tqdm

    parts: dict[str, list[Any]] = {}
    with tqdm(unit="image", desc="Inception features", leave=False) as bar:
        for batch in images.batches():
            levels = to_uint8(batch) if protocol.pixels == "uint8" else batch.astype(np.float32)
            for first in range(0, len(levels), _BATCH_SIZE):
                part = torch.from_numpy(levels[first : first + _BATCH_SIZE])
                pixels = part.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
                with torch.no_grad():
                    found = network(pixels.cuda() if torch.cuda.is_available() else pixels)
                for layer, features in found.items():
                    parts.setdefault(layer, []).append(features.cpu())
                bar.update(len(part))
    return {layer: torch.cat(features) for layer, features in parts.items()}


def _cached(
    network: _Network, reference: ImageSet, protocol: Protocol, sha256: str, cache: str
) -> Any:
    """Returns the features of real images, [N, 2048], from the cache or computed and cached."""
    import torch

    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fdrl_jax"
    folder = Path(cache or os.environ.get("FDRL_CACHE_DIR") or usual)
    kept = folder / f"inception-{digest(reference.fingerprint, protocol.name, sha256)}.npy"
    if reference.fingerprint and kept.exists():
        with contextlib.suppress(OSError, ValueError, EOFError):  # A damaged file is replaced.
            return torch.from_numpy(np.load(kept))
    features = _features(network, reference, protocol)["2048"]
    if reference.fingerprint:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as file:
            np.save(file, features.numpy())
    return features
