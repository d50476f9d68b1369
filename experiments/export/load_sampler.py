"""Draws samples with the exported sampler of this folder. Needs only jax and flatbuffers.

Command: python load_sampler.py --num_samples=1000 --out=samples.npz
Python:  from load_sampler import Sampler; x = Sampler()(1000)
Sample `i` does not depend on how many are drawn. The training program draws the same samples.
"""

import argparse
import hashlib
import json
from pathlib import Path

import jax
import jax.export
import numpy as np


class Sampler:
    """The compiled sampler with its arrays; `metadata` describes its origin."""

    def __init__(self, folder: str | Path = Path(__file__).parent) -> None:
        """Reads an exported folder; a ValueError names a damaged file or an unsuitable JAX."""
        folder = Path(folder)
        self.metadata = json.loads((folder / "metadata.json").read_text())
        for name, expected in self.metadata["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise ValueError(f"{folder / name} is damaged or not from this export")
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            self._arrays = {name: jax.device_put(file[name]) for name in file.files}
        try:
            content = bytearray((folder / "sampler.stablehlo").read_bytes())
            exported = jax.export.deserialize(content)
        except Exception as error:  # The reader may raise any error for an unknown format.
            raise ValueError(
                f"JAX {jax.__version__} cannot read the artefact, written by JAX "
                f"{self.metadata['versions']['jax']}: {error}. {self.metadata['lifetime']}"
            ) from error
        self._call = jax.jit(exported.call)

    def __call__(
        self,
        num_samples: int,
        first: int = 0,
        source: np.ndarray | None = None,
        batch_size: int = 500,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draws the samples with indices `first` to `first + num_samples - 1`.

        Args:
          num_samples: number of samples.
          first: index of the first sample; all indices must be below 2**31.
          source: images to start from, float32 [num_samples, H, W, C] in [-1, 1], for a sampler
            that translates images (`metadata["needs_source"]`); `None` for other samplers.
          batch_size: samples per batch.
          labels: the class of each sample, [num_samples], as an index into `metadata["by_class"]`,
            for a sampler that has a density ratio for each class; `None` for all classes in turn,
            and for other samplers.

        Returns:
          Refined samples, float32 [num_samples, ...]. Images may slightly exceed [-1, 1].
        """
        if num_samples < 1 or first < 0 or first + num_samples > 2**31:
            raise ValueError(f"indices out of range: {first} to {first + num_samples - 1}")
        if self.metadata["needs_source"] != (source is not None):
            needs = "needs" if self.metadata["needs_source"] else "does not accept"
            raise ValueError(f"this sampler {needs} images to start from (source)")
        shape = (num_samples, *self.metadata["event_shape"])
        if source is not None and np.shape(source) != shape:
            raise ValueError(f"source must have the shape {shape}, got {np.shape(source)}")
        entries = self._labels(num_samples, first, labels)
        if source is not None:
            entries["source"] = np.asarray(source, np.float32)
        parts = []
        for start in range(0, num_samples, batch_size):
            # The last batch is as large as the others, so that only one program is compiled.
            numbers = np.arange(start, start + min(batch_size, num_samples))
            numbers = np.minimum(numbers, num_samples - 1)
            batch = {name: array[numbers] for name, array in entries.items()}
            batch["position"] = (first + numbers).astype(np.int32)
            parts.append(np.asarray(self._call(self._arrays, batch))[: num_samples - start])
        return np.concatenate(parts)

    def _labels(self, num: int, first: int, labels: np.ndarray | None) -> dict[str, np.ndarray]:
        num_classes = len(self.metadata["by_class"])
        if not num_classes:
            if labels is not None:
                raise ValueError("this sampler does not accept labels: it has one density ratio")
            return {}
        if labels is None:
            labels = (first + np.arange(num)) % num_classes
        if np.shape(labels) != (num,) or not np.isin(labels, range(num_classes)).all():
            allowed = f"{num} numbers from 0 to {num_classes - 1}"
            raise ValueError(f"labels must be {allowed}, got {labels}")
        return {"label": np.asarray(labels, np.int32)}


def to_stored(samples: np.ndarray, kind: str) -> np.ndarray:
    """Returns samples as the training program stores them: images as uint8, points unchanged."""
    if kind == "points":
        return samples
    return np.clip(np.round((samples + 1.0) * 127.5), 0, 255).astype(np.uint8)


def main() -> None:
    """Writes samples to an .npz, as `arr_0`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_samples", type=int, default=100)
    parser.add_argument("--source", help=".npy of images to start from, float32 in [-1, 1]")
    parser.add_argument("--label", type=int, help="number of a class, for a sampler of classes")
    parser.add_argument("--out", default="samples.npz")
    arguments = parser.parse_args()
    sampler = Sampler()
    source = np.load(arguments.source, allow_pickle=False) if arguments.source else None
    label = arguments.label
    labels = None if label is None else np.full(arguments.num_samples, label)
    samples = sampler(arguments.num_samples, source=source, labels=labels)
    np.savez_compressed(arguments.out, arr_0=to_stored(samples, sampler.metadata["kind"]))
    print(f"{arguments.num_samples:,} samples: {arguments.out}")


if __name__ == "__main__":
    main()
