"""Small images for tests, each one different."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.data import load
from experiments.data.decode import to_uint8
from experiments.settings import Data


def picture(width: int, height: int, number: int = 0) -> np.ndarray:
    """Slanted stripes and steps, uint8 [H, W, 3], computed in integers, so equal everywhere."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    levels = [(x * x * 3 + y * 5) // 16, (x * y + y * y) // 24, (7 * x + 11 * y) // 5]
    return (np.stack(levels, -1) + number * np.array([29, 53, 97])).astype(np.uint8)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def encoded(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    return saved(Image.fromarray(pixels), form, **options)


def write_folder(root: Path, names: list[str], size: int = 8) -> Path:
    """Writes a PNG for each name; image `i` is `picture(size, size, i)`."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(size, size, number)))
    return root


def numbered(num: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{i:03d}.png" for i in range(num)]


def open_folder(where, **options):
    return load(Data(name="folder", dir=str(where), **options))


def all_images(source) -> set[bytes]:
    pixels = np.concatenate([source.train(), source.held_out(1_000, 0)])
    return {image.tobytes() for image in to_uint8(pixels)}


def pictures(num: int) -> set[bytes]:
    return {picture(8, 8, i).tobytes() for i in range(num)}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")
