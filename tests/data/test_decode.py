"""Decoding and transforms: equal to the authors', and correct for all kinds of image files."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, picture, saved
from PIL import Image

from experiments.data.decode import Transform, decode

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "transforms.npz")
RECIPES = {
    "celeba": ((178, 218), Transform(center_crop=140, image_size=64)),
    "church_squeezed": ((200, 150), Transform(image_size=128, keep_aspect=False)),
    "church_cropped": ((200, 151), Transform(image_size=128)),
    "cat2dog": ((101, 131), Transform(resize=84, image_size=64)),
}
PLAIN = Transform()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_paper_equal_torchvision_within_one_grey_level(name):
    size, transform = RECIPES[name]
    ours = decode(picture(*size), transform)[::4, ::4].astype(int)
    assert np.abs(ours - GOLDEN[name].astype(int)).max() <= 1


PALETTE = Image.new("P", (2, 2), 1)
PALETTE.putpalette([255, 0, 0, 0, 0, 255])


@pytest.mark.parametrize(
    ("image", "form", "colour"),
    [
        (Image.fromarray(np.full((2, 2), 32_896, np.uint16)), "PNG", (128, 128, 128)),
        (Image.fromarray(np.full((2, 2), 257, np.uint16)), "PNG", (1, 1, 1)),
        (PALETTE, "PNG", (0, 0, 255)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (228, 28, 28)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "PNG", (255, 255, 255)),
        (Image.new("LA", (2, 2), (10, 0)), "PNG", (255, 255, 255)),
    ],
    ids=["grey16", "dark16", "palette", "cmyk", "transparent", "transparent_grey"],
)
def test_every_kind_of_image_has_the_colours_that_one_sees(image, form, colour):
    tolerance = 28 if form == "JPEG" else 0
    np.testing.assert_allclose(decode(saved(image, form), PLAIN)[0, 0], colour, atol=tolerance)


def test_a_photograph_is_turned_upright():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # To be rotated by 90 degrees, clockwise.
    ours = decode(saved(Image.fromarray(pixels), "PNG", exif=exif), PLAIN)
    assert (ours.shape, ours[:4].min(), ours[4:].max()) == ((8, 4, 3), 255, 0)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b"GIF89a not one of ours", "not a PNG, JPEG or WEBP image"),
        (encoded(picture(32, 32))[:300], "damaged"),
        (encoded(picture(32, 32)).replace(b"IDAT", b"IDAT\xff"), "damaged"),
        (encoded(picture(64, 64), "JPEG")[:700], "damaged"),
        (encoded(picture(64, 64), "WEBP")[:200], "damaged"),
        (np.zeros((4, 4, 3), np.float32), "expected pixels of uint8, got float32"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 \[0, 4, 3\]"),
    ],
    ids=["empty", "gif", "cut_png", "changed_png", "cut_jpeg", "cut_webp", "floats", "none"],
)
def test_a_file_that_is_not_an_image_is_refused_with_the_reason(payload, reason):
    with pytest.raises(ValueError, match=reason):
        decode(payload, PLAIN)


def test_a_bomb_beyond_the_limit_of_pillow_is_refused_by_its_header():
    header = b"IHDR" + struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = bytearray(encoded(picture(8, 8)))
    bomb[12:33] = header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(ValueError, match="too large"):
        decode(bytes(bomb), PLAIN)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("L", 1), ("LA", 1), ("1", 1), ("I;16", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)],
)
def test_with_channels_0_an_image_keeps_the_channels_it_is_stored_with(mode, channels):
    stored = saved(Image.new(mode, (4, 4)))
    found = [decode(stored, Transform(channels=given)).shape[-1] for given in (0, 1, 3)]
    assert found == [channels, 1, 3]


def test_images_that_already_fit_are_not_changed():
    pixels = picture(32, 32)
    for payload in (pixels, encoded(pixels), encoded(pixels, "WEBP", lossless=True)):
        np.testing.assert_array_equal(decode(payload, Transform(image_size=32)), pixels)
