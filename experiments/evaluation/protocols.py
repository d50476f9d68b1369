"""How an Inception metric is taken: one name for weights, input and resizing together.

Numbers of two protocols do not compare, so the protocol is part of a metric's name.
"""

from pathlib import Path
from typing import NamedTuple

from experiments.errors import UserError
from experiments.files import sha256_of_file

METRICS = ("fid", "kid", "precision_recall", "density_coverage", "inception_score")


class Protocol(NamedTuple):
    """A protocol.

    Attributes:
      name: as on the command line.
      prefix: what metrics are called by in front: "" for the standard.
      weights_file: name of the file of weights that it is defined for.
      sha256: first digits of that file's hash.
      source: where the file comes from.
      metrics: what can be computed.
      pixels: "uint8" or "float32".
      resize_kernel: how images get to the network's 299 x 299 pixels.
      key: of a run's config, for the file of weights.
    """

    name: str
    prefix: str
    weights_file: str
    sha256: str
    source: str
    metrics: tuple[str, ...]
    pixels: str
    resize_kernel: str
    key: str

    @property
    def flag(self) -> str:
        """How to name the file of weights."""
        return f"--weights=FILE, or --config.{self.key}=FILE for a run"


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
# The paper's: floats that are never rounded, and torchvision's network with weights of ImageNet.
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


class Weights(NamedTuple):
    """The hash of a file of weights, and whether the protocol is defined for this file."""

    sha256: str
    genuine: bool


def check_weights(protocol: Protocol, path: str) -> Weights:
    """Finds and hashes a protocol's weights. Nothing is ever downloaded.

    Raises:
      UserError: naming the file that is needed, its hash and where it comes from.
    """
    if not path or not Path(path).is_file():
        missing = f"{path} does not exist" if path else "no weights of the network are given"
        raise UserError(
            f"{missing}: the protocol {protocol.name!r} needs the file {protocol.weights_file} "
            f"(SHA-256 begins with {protocol.sha256}) from {protocol.source}; fetch it by hand and "
            f"name it, {protocol.flag}"
        )
    sha256 = sha256_of_file(Path(path))
    return Weights(sha256, sha256.startswith(protocol.sha256))


def prefixed(protocol: Protocol, weights: Weights, metric: str) -> str:
    """Returns a metric's name under a protocol.

    `fid` of the standard, `fid_legacy_fdrl` of the paper's. With other weights than the protocol's
    the number is no FID that compares with anyone's, and the hash in its name says so.
    """
    name = f"{metric}_{protocol.prefix}" if protocol.prefix else metric
    return name if weights.genuine else f"{name}_weights_{weights.sha256[:8]}"
