"""Protocols of Inception metrics: a protocol fixes weights, input and resizing.

Values of different protocols are not comparable, so the protocol is part of the metric's name.
"""

from pathlib import Path
from typing import NamedTuple

from experiments.errors import UserError
from experiments.files import sha256_of_file

DEFAULT_METRICS = ("fid", "kid", "precision_recall", "density_coverage")
METRICS = (*DEFAULT_METRICS, "inception_score")


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
    key: str  # Setting for the file of weights.


STANDARD = Protocol(
    name="standard",
    prefix="",
    weights_file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
    source="the releases of https://github.com/toshas/torch-fidelity (v0.2.0)",
    metrics=METRICS,
    pixels="uint8",
    resize_kernel="bilinear of TensorFlow 1, no antialiasing",
    key="evaluate.inception_weights",
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
    key="evaluate.legacy_weights",
)
PROTOCOLS = {protocol.name: protocol for protocol in (STANDARD, LEGACY)}


def check_weights(protocol: Protocol, path: str) -> str:
    """Returns the SHA-256 of the weights of a protocol. Nothing is downloaded.

    Raises:
      UserError: if the file is missing; names it, its hash and where to get it.
    """
    if not path or not Path(path).is_file():
        missing = f"{path} does not exist" if path else "the weights of the network are missing"
        raise UserError(
            f"{missing}: the protocol {protocol.name!r} needs the file {protocol.weights_file} "
            f"(SHA-256 begins with {protocol.sha256}) from {protocol.source}; download it and set "
            f"--weights=FILE, or --config.{protocol.key}=FILE for a run"
        )
    return sha256_of_file(Path(path))


def prefixed(protocol: Protocol, sha256: str, metric: str) -> str:
    """Returns the name of a metric under a protocol, with weights of this SHA-256.

    It is `fid` for the standard protocol and `fid_legacy_fdrl` for that of the paper. Values with
    other weights are not comparable with published ones, so their name has the hash of the weights.
    """
    name = f"{metric}_{protocol.prefix}" if protocol.prefix else metric
    return name if sha256.startswith(protocol.sha256) else f"{name}_weights_{sha256[:8]}"
