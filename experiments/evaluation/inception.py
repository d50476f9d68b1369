"""Inception metrics of one set of images against another, computed in a separate process."""

import contextlib
import importlib.util
import itertools
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import jax
import numpy as np
import PIL
import scipy

import fdrl_jax
from experiments.data import digest, to_uint8
from experiments.errors import UserError
from experiments.evaluation.image_sets import ImageSet, check
from experiments.evaluation.metrics import Estimate, Metric, with_count
from experiments.evaluation.protocols import PROTOCOLS, Protocol, check_weights, prefixed
from experiments.evaluation.spaces import FEWEST_FOR_NEIGHBOURS
from fdrl_jax.metrics import manifold_metrics

_BATCH_SIZE = 64
_KID_SUBSET_SIZE = 1_000  # The usual size; smaller if there are fewer images.


class Inception(NamedTuple):
    """Inception metrics to compute: files of weights by name of the protocol, some of `METRICS`.

    Each protocol computes the metrics that it supports.
    """

    weights: Mapping[str, str]
    metrics: Sequence[str]


def by_inception(
    samples: ImageSet, reference: ImageSet, networks: Inception, *, cache: str | Path = ""
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """Computes the metrics of Inception networks, and returns them with their protocols."""
    metrics: list[Metric] = []
    protocols = []
    for name, weights in networks.weights.items():
        protocol = PROTOCOLS[name]
        wanted = [m for m in networks.metrics if m in protocol.metrics]
        found, details = compute(samples, reference, protocol, weights, wanted, cache=cache)
        metrics += found
        protocols.append(details)
    return metrics, protocols


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compute metrics."""
    modules = (fdrl_jax, jax, np, scipy, PIL)
    return {m.__name__: m.__version__ for m in modules} | {"python": platform.python_version()}


def compute(
    samples: ImageSet,
    reference: ImageSet,
    protocol: Protocol,
    weights_file: str,
    metrics: Sequence[str],
    *,
    cache: str | Path = "",
) -> tuple[list[Metric], dict[str, Any]]:
    """Computes Inception metrics by torch-fidelity, and returns them with how they were computed.

    Images are streamed to a separate process, which stores only their features. Features of the
    reference are computed once and cached, by its pixels, the protocol and the weights.

    Raises:
      UserError: for missing weights or packages, too few images or images that do not fit the
        protocol, or a failed process.
    """
    sha256 = check_ready(protocol, weights_file)
    _check(samples, reference, protocol, metrics)
    (ours, _), (real, fingerprint) = samples.summary, reference.summary
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fdrl_jax"
    cache = Path(cache or os.environ.get("FDRL_CACHE_DIR") or user_cache)
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"inception-{digest(fingerprint, protocol.name, sha256)}.npy"
    drop_damaged(kept, real[0])
    subset_size = min(_KID_SUBSET_SIZE, ours[0], real[0])
    streamed = [samples] if kept.exists() else [samples, reference]
    with tempfile.TemporaryDirectory(prefix="fdrl_evaluate_") as folder:
        job: dict[str, Any] = {
            "protocol": protocol.name,
            "weights": str(Path(weights_file).resolve()),
            "metrics": list(metrics),
            "pixels": protocol.pixels,
            "samples_shape": ours,
            "reference_shape": real,
            "reference_features": str(kept.resolve()),
            "sample_features": str(Path(folder) / "features.npy"),
            "kid_subset_size": subset_size,
            "batch_size": _BATCH_SIZE,
            "result": str(Path(folder) / "result.json"),
        }
        batches = itertools.chain.from_iterable(images.batches() for images in streamed)
        is_float = protocol.pixels == "float32"
        pixels = (batch.astype(np.float32) if is_float else to_uint8(batch) for batch in batches)
        result = _run(job, pixels)
        features = np.load(job["sample_features"])
    found = {name: Estimate(*value) for name, value in result["metrics"].items()}
    if "density_coverage" in metrics:
        manifold = manifold_metrics(features, np.load(kept))
        found |= {"density": Estimate(manifold.density), "coverage": Estimate(manifold.coverage)}
    named = [
        Metric(with_count(prefixed(protocol, sha256, metric), ours[0]), metric, value)
        for metric, value in found.items()
    ]
    others = "" if sha256.startswith(protocol.sha256) else " with other weights"
    details = {
        "protocol": f"{protocol.name}{others}",
        "weights_file": Path(weights_file).name,
        "weights_sha256": sha256,
        "pixels": protocol.pixels,
        "resize_kernel": protocol.resize_kernel,
        "kid_subset_size": subset_size,
        "device": result["device"],
        "versions": result["versions"],
    }
    return named, details


def check_ready(protocol: Protocol, weights_file: str) -> str:
    """Returns the SHA-256 of the weights of a protocol, if its metrics can be computed here.

    Raises:
      UserError: for missing weights or packages.
    """
    sha256 = check_weights(protocol, weights_file)
    packages = ("torch", "torchvision", "torch_fidelity")
    needed = [name for name in packages if importlib.util.find_spec(name) is None]
    if needed:
        raise UserError(f"{', '.join(needed)} is not installed: pip install -e '.[eval]'")
    return sha256


def _check(
    samples: ImageSet, reference: ImageSet, protocol: Protocol, metrics: Sequence[str]
) -> None:
    if protocol.pixels == "float32" and samples.pixels == "uint8":
        raise UserError(
            f"{samples.where} was rounded to 256 levels, which protocol {protocol.name!r} forbids: "
            "use an .npz with float32 in [-1, 1] under arr_0, or --mode=evaluate on a run"
        )
    check(samples, reference)
    num = min(images.summary[0][0] for images in (samples, reference))
    by_neighbours = [m for m in metrics if m in ("precision_recall", "density_coverage")]
    if by_neighbours and num < FEWEST_FOR_NEIGHBOURS:
        names = ", ".join(by_neighbours)
        raise UserError(f"{names}: expected at least {FEWEST_FOR_NEIGHBOURS} images, got {num}")


def drop_damaged(kept: Path, num_images: int) -> None:
    """Removes cached features unless they are [num_images, 2048]."""
    if not kept.exists():
        return
    try:
        fine = np.load(kept, mmap_mode="r").shape == (num_images, 2048)
    except (OSError, ValueError, EOFError):
        fine = False
    if not fine:
        logging.getLogger("fdrl").warning("%s is damaged; computing it again", kept)
        kept.unlink()


def _run(job: dict[str, Any], pixels: Iterable[np.ndarray]) -> Any:
    command = [sys.executable, "-m", "experiments.evaluation.inception_process", json.dumps(job)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    # A process that has failed stops reading; its exit code and result say why.
    with contextlib.suppress(BrokenPipeError), done, cast(BinaryIO, done.stdin) as stream:
        for part in pixels:
            stream.write(np.ascontiguousarray(part).tobytes())
    if done.returncode:
        raise UserError(
            f"the process of the Inception metrics ended with exit code {done.returncode}; its "
            "error message is above"
        )
    result = json.loads(Path(job["result"]).read_text())
    if "error" in result:
        raise UserError(result["error"])
    return result
