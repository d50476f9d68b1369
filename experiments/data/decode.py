"""Decodes image files to uint8 pixels; a `ValueError` has the reason, without the name."""

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
_SIXTEEN_BIT = ("I", "I;16")
_GREY = ("1", "L", "LA", *_SIXTEEN_BIT)


class Transform(NamedTuple):
    """How a stored image becomes an example, in this order; fields are named as the settings."""

    center_crop: int = 0  # Side of a square that is cropped first; 0 for none (CelebA: 140).
    resize: int = 0  # Shorter side after resizing; 0 for `image_size` (Cat2dog: 84).
    image_size: int = 0  # Side of the square that is cropped last; 0 for no change.
    keep_aspect: bool = True  # `False` resizes to a square without a crop (the paper's LSUN).
    channels: int = 3  # 3 for colour, 1 for grey, 0 for the channels of the stored image.

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Returns uint8 [H, W, C]; resizes by Pillow as the authors, to sizes of torchvision."""
        if self.center_crop:
            image = _crop_centre(image, self.center_crop)
        if side := self.resize or self.image_size:
            size = (side, side)
            if self.keep_aspect:
                shorter = min(image.size)
                size = (int(side * image.width / shorter), int(side * image.height / shorter))
            if size != image.size:
                image = image.resize(size, Image.Resampling.BILINEAR)
        if self.image_size:
            image = _crop_centre(image, self.image_size)
        return np.atleast_3d(np.asarray(image, np.uint8))


def decode(payload: bytes | np.ndarray, transform: Transform) -> np.ndarray:
    """Decodes and transforms a PNG, JPEG or WebP file, or pixels [H, W], [H, W, 1] or [H, W, 3].

    Returns uint8 [H, W, 1 or 3]: on white, 16-bit grey as 8 bits, and upright by EXIF.
    """
    image = _open(payload) if isinstance(payload, bytes) else _from_array(payload)
    channels = transform.channels or (1 if image.mode in _GREY else 3)
    return transform(_to_mode(image, "L" if channels == 1 else "RGB"))


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Maps pixels in [-1, 1] to grey levels 0 to 255, with clipping."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def to_unit(grey_levels: Any) -> Any:
    """Maps grey levels 0 to 255 to [-1, 1], float32; for NumPy or JAX arrays."""
    return grey_levels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def _open(content: bytes) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.format == "PNG":
            image.verify()  # Loading does not check the checksums; this consumes the file.
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ValueError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except Exception as error:  # Decoders may raise any error, or a warning.
        raise ValueError(f"damaged or too large: {error}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"expected pixels of uint8, got {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1:] == (1,) else pixels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:  # `convert` would cut off all levels above 255.
        levels = (np.array(image, np.uint32) + 128) // 257
        image = Image.fromarray(levels.astype(np.uint8))
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _crop_centre(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if width < side or height < side:
        raise ValueError(f"{width} x {height} pixels, too small for a crop of {side}")
    # Halves are rounded to even, as in torchvision.
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
