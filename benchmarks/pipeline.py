"""Throughput of the data pipeline in images per second, by number of worker processes.

Run: python -m benchmarks.pipeline --data_dir=cifar10.zip [--workers 0 1 2] [--num_batches=100]
There are three cases: images of the size of CIFAR-10 in memory on the device, the same images
streamed from a zip, and JPEG files of the size of CelebA, 178 x 218 pixels, cropped and resized to
64 x 64. These JPEG files are enlarged images of --data_dir in a temporary folder.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from experiments.data import DataOptions, load

BATCH_SIZE = 64
NUM_JPEG = 2_000


def main() -> None:
    """Prints one line per case and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="folder or zip of images of 32 x 32")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[0, 1, 2], help="numbers of processes to try"
    )
    parser.add_argument("--num_batches", type=int, default=100, help="timed batches per case")
    arguments = parser.parse_args()
    small = DataOptions("folder", arguments.data_dir, random_flip=True)
    print(f"{'in memory, 32 x 32':32s} {in_memory(small, arguments.num_batches):10,.0f} images/s")
    streamed = small._replace(in_memory_megabytes=0)
    compare("zip, 32 x 32", streamed, arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_jpeg(small, Path(folder))
        celeba = streamed._replace(dir=folder, center_crop=140, image_size=64)
        compare("JPEG, 178 x 218 to 64 x 64", celeba, arguments)


def compare(name: str, options: DataOptions, arguments: argparse.Namespace) -> None:
    for workers in arguments.workers:
        rate = from_host(options._replace(num_workers=workers), arguments.num_batches)
        print(f"{name:32s} {rate:10,.0f} images/s, {workers} workers")


def in_memory(options: DataOptions, num_batches: int) -> float:
    source = load(options)
    draw, arrays = jax.jit(source.draw, static_argnums=1), jax.device_put(source.arrays)

    def batch(i: int) -> None:
        positions = np.arange(BATCH_SIZE, dtype=np.int32) + i * BATCH_SIZE
        jax.block_until_ready(draw(arrays, None, jax.random.key(0), positions))

    return rate(batch, num_batches)


def from_host(options: DataOptions, num_batches: int) -> float:
    open_feed = load(options).open_feed
    if open_feed is None:
        raise SystemExit("there are too few images for streaming")
    with open_feed(0, BATCH_SIZE, 0, 1) as take:
        return rate(lambda _: take(1), num_batches)


def rate(batch: Callable[[int], object], num_batches: int) -> float:
    """Images per second, without the first batches (compilation and the start of workers)."""
    for i in range(20):
        batch(i)
    started = time.perf_counter()
    for i in range(num_batches):
        batch(20 + i)
    return num_batches * BATCH_SIZE / (time.perf_counter() - started)


def write_jpeg(options: DataOptions, folder: Path) -> None:
    pixels = load(options).arrays["real"][:NUM_JPEG]
    for i, image in enumerate(pixels):
        large = Image.fromarray(image).resize((178, 218), Image.Resampling.BICUBIC)
        large.save(folder / f"{i:05d}.jpg", quality=90)


if __name__ == "__main__":
    main()
