"""Draws images with a sampler that ships with the library: no training and no data.

Run: python -m examples.pretrained_samples [--sampler=cifar10] [--num_samples=80]
  [--out=runs/cifar10.png]
It takes seconds on a CPU. A sampler with labels draws each class in turn, so that a column of ten
images has one class of CIFAR-10.
"""

import argparse
import time
from pathlib import Path

import jax
import matplotlib.image
import numpy as np

import fdrl_jax as fdrl

COLUMNS, SCALE = 10, 3  # Images per row; pixels of the picture per pixel of an image.


def save(images: np.ndarray, path: Path) -> np.ndarray:
    """Writes images [N, H, W, C] in [-1, 1] as rows on a white sheet, and returns them."""
    shown = np.clip(images / 2 + 0.5, 0, 1)
    margins = ((0, -len(images) % COLUMNS), (0, 1), (0, 1), (0, 0))
    padded = np.pad(shown, margins, constant_values=1.0)
    _, height, width, channels = padded.shape
    rows = padded.reshape(-1, COLUMNS, height, width, channels).swapaxes(1, 2)
    sheet = rows.reshape(-1, COLUMNS * width, channels).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(path, np.broadcast_to(sheet, (*sheet.shape[:2], 3)))
    return images


def main(argv: list[str] | None = None) -> np.ndarray:
    """Writes a picture of samples and returns them, [N, H, W, C]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sampler", default="mnist", help="as for fdrl_jax.pretrained")
    parser.add_argument("--num_samples", type=int, default=80)
    parser.add_argument("--out", type=Path, help="default: runs/SAMPLER.png")
    options = parser.parse_args(argv)
    out = options.out or Path("runs", f"{Path(options.sampler).name}.png")
    started = time.perf_counter()
    sampler = fdrl.pretrained(options.sampler)
    if len(sampler.event_shape) != 3:
        parser.error(f"--sampler={options.sampler} draws points, and this program shows images")
    images = save(np.asarray(sampler(jax.random.key(0), options.num_samples)), out)
    seconds = time.perf_counter() - started
    print(f"{len(images)} samples of {options.sampler!r}, {seconds:.0f} s: {out}")
    return images


if __name__ == "__main__":
    main()
