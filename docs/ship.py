"""Makes a small sampler from an export, as those that ship with the library.

    python -m docs.ship runs/mnist/export/NAME fdrl_jax/pretrained/mnist

Large arrays become int8 with a scale per output. A data-dependent prior keeps the leading
directions of each Gaussian, at the spatial frequencies where they vary most; all other variance is
kept per spatial frequency.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import fft

_MIN_SIZE = 5_000  # Smaller arrays are stored unchanged: they take little space.
_SPECTRUM = "prior/remainder_scale"  # Spans more decades than 8 bits hold, and is float16.
_NOTE = "These are the metrics of the run, before its arrays were rounded to 8 bits.\n\n"


def main() -> None:
    """Writes the small sampler."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, about in (("export", "folder of an export"), ("out", "new folder")):
        parser.add_argument(name, type=Path, help=about)
    parser.add_argument("--rank", type=int, default=192, help="most directions of a Gaussian")
    parser.add_argument("--frequencies", type=int, default=512, help="most spatial frequencies")
    options = parser.parse_args()
    config = json.loads((options.export / "config.json").read_text("utf-8"))
    arrays = load_file(options.export / "model.safetensors")
    arrays |= simplified(arrays, config, options.rank, options.frequencies)
    for part in ("network", "denoiser"):
        config.get(part, {})["dtype"] = "float32"
    config["settings"]["precision"] = "float32"
    options.out.mkdir(parents=True)
    file = options.out / "model.safetensors"
    save_file(rounded(arrays), file, {"format": "flax"})
    config.pop("config_sha256")  # It was the digest of the export.
    config["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (options.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    card = (options.export / "README.md").read_text("utf-8").partition("## Metrics\n\n")
    (options.out / "README.md").write_text("".join([*card[:2], _NOTE, card[2]]), "utf-8")


def rounded(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns large arrays as int8, `a`, and a factor per index of their last axis, `a.scale`."""
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim < 2 or array.size < _MIN_SIZE:
            found[name] = array
        elif name == _SPECTRUM:
            found[name] = array.astype(np.float16)
        else:
            largest = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
            scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(127)
            found |= {name: np.round(array / scale).astype(np.int8), f"{name}.scale": scale}
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def simplified(
    arrays: Mapping[str, np.ndarray], config: dict[str, Any], rank: int, num_frequencies: int
) -> dict[str, np.ndarray]:
    """Returns the changed arrays of a smaller data-dependent prior, if there is one."""
    if (factor := arrays.get("prior/factor")) is None:
        return {}
    shape = tuple(config["event_shape"])
    num = arrays["prior/weights"].shape[-1]
    if factor.shape[1] <= num * rank and len(factor) <= num_frequencies:
        return {}
    each = np.stack(np.split(factor.astype(np.float64), num, axis=1))  # [M, D, k]
    total = np.square(_cosines(each, shape)).sum(axis=2).reshape(num, *shape)
    total += np.square(arrays.get(_SPECTRUM, 0.0), dtype=np.float64)
    if each.shape[2] > rank:
        left, singular, _ = np.linalg.svd(each, full_matrices=False)
        each = left[..., :rank] * singular[:, None, :rank]
    coefficients = _cosines(each, shape)  # [M, D, k]
    held, small = np.square(coefficients).sum(axis=2), {}
    if len(factor) > num_frequencies:
        kept = np.sort(np.argsort(-held.sum(axis=0), kind="stable")[:num_frequencies])
        each, held = coefficients[:, kept], held * np.isin(np.arange(len(factor)), kept)
        small["prior/frequencies"] = kept.astype(np.int32)
    remainder = np.maximum(total - held.reshape(total.shape), 0.0)
    small[_SPECTRUM] = np.sqrt(remainder).astype(np.float32)
    return small | {"prior/factor": np.concatenate(list(each), axis=1).astype(np.float32)}


def _cosines(each: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the orthonormal cosine transform of directions, [M, D, k] of examples of a shape."""
    axes = range(1, len(shape) + 1)
    rows = each.reshape(len(each), *shape, -1)
    return np.asarray(fft.dctn(rows, axes=axes, norm="ortho")).reshape(each.shape)


if __name__ == "__main__":
    main()
