"""From the bytes of an image file to uint8 pixels: decoding, colours, crops and resizing.

Everything here raises `ValueError` with only the reason; the caller knows the file's name.
"""

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
# Pillow warns from here on and refuses at twice as many; one limit for all is easier to explain.
MAX_PIXELS = 89_478_485
# A resized image may have this many pixels even if it was smaller before.
_MAX_ENLARGED = 2**24
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_GREY = ("1", "L", "LA", "La", "I", *_SIXTEEN_BIT)


class Transform(NamedTuple):
    """How a stored image becomes an example, in this order (method section 8 of the paper).

    Attributes:
      center_crop: side of a square cut from the centre first; 0 for none. CelebA: 140.
      resize: length of the shorter side after resizing; 0 for `image_size`. Cat2dog: 84.
      image_size: side of the square cut from the centre last; 0 keeps images as they are.
      keep_aspect: `False` resizes straight to the square, whatever the shape (the paper's LSUN).
      channels: 3 for colour, 1 for grey, 0 for what each image is stored as.
    """

    center_crop: int = 0
    resize: int = 0
    image_size: int = 0
    keep_aspect: bool = True
    channels: int = 3

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Returns pixels, uint8 [H, W, C].

        Resizing is Pillow's bilinear kernel, widened when shrinking (antialiased), as in the
        authors' code; sizes are rounded as torchvision rounds them.

        Raises:
          ValueError: if the image is too small for its crop, or too large once it is resized.
        """
        if self.center_crop:
            image = _crop_centre(image, self.center_crop)
        if self.image_size:
            image = _crop_centre(self._resized(image), self.image_size)
        pixels = np.asarray(image, np.uint8)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def _resized(self, image: Image.Image) -> Image.Image:
        side = self.resize or self.image_size
        if self.keep_aspect:
            shorter = min(image.size)
            size = (int(side * image.width / shorter), int(side * image.height / shorter))
        else:
            size = (side, side)
        if size == image.size:
            return image
        # A line of pixels can have few of them and become huge when its shorter side is enlarged.
        most = min(MAX_PIXELS, max(image.width * image.height, _MAX_ENLARGED))
        if size[0] * size[1] > most:
            raise ValueError(
                f"{image.width} x {image.height} pixels would be resized to {size[0]} x {size[1]}, "
                f"more than {most:,} in total"
            )
        return image.resize(size, Image.Resampling.BILINEAR)


def decode(payload: bytes | np.ndarray, transform: Transform) -> np.ndarray:
    """Decodes and transforms one image.

    Grey and palette images, CMYK, transparency (shown on white), 16-bit grey (scaled, not cut off)
    and the rotation that a camera notes in EXIF are turned into plain upright 8-bit images.

    Args:
      payload: a PNG, JPEG or WebP file, or pixels: uint8 [H, W], [H, W, 1] or [H, W, 3].
      transform: crops, size and channels.

    Returns:
      Pixels, uint8 [H, W, C], where C is 1 or 3.

    Raises:
      ValueError: with the reason, if it is no image of such a format, is damaged, or too large.
    """
    image = _from_array(payload) if isinstance(payload, np.ndarray) else _open(payload)
    channels = transform.channels or (1 if image.mode in _GREY else 3)
    return transform(_to_mode(image, "L" if channels == 1 else "RGB"))


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Maps pixels in [-1, 1], which networks see, to grey levels 0 .. 255, with clipping."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def to_unit(grey_levels: Any) -> Any:
    """Maps grey levels 0 .. 255 to [-1, 1], float32; NumPy or JAX."""
    return grey_levels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def _open(content: bytes) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except Exception as error:  # Decoders raise what they like on damaged headers, or a warning.
        raise ValueError(f"cannot be opened: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,} in total"
        )
    try:
        if image.format == "PNG":
            # Loading does not compare the checksums of a PNG; verifying leaves nothing to load.
            image.verify()
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:
        raise ValueError(f"damaged: {error}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8, got {pixels.dtype}")
    if not pixels.size:
        raise ValueError(f"an image without a pixel, of shape {list(pixels.shape)}")
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1:] == (1,) else pixels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        levels = np.asarray(image).astype(np.float64)
        if levels.min() < 0 or levels.max() > 65_535:
            raise ValueError(f"mode {image.mode} with values beyond 16 bit")
        image = Image.fromarray(np.round(levels / 257.0).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("mode F: floating-point pixels have no fixed range")
    if image.mode in _ALPHA or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, coloured)
    if image.mode == mode:
        return image
    try:
        return image.convert(mode)
    except ValueError as error:
        raise ValueError(f"mode {image.mode} cannot be converted to {mode}") from error


def _crop_centre(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if (width, height) == (side, side):
        return image
    if width < side or height < side:
        raise ValueError(f"{width} x {height} pixels, too small for a crop of {side}")
    # Halves are rounded to even, as torchvision does.
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
