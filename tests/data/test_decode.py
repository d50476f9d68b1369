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


def test_sixteen_bit_grey_is_scaled_and_not_cut_off():
    levels = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    ours = decode(saved(Image.fromarray(levels)), PLAIN)
    np.testing.assert_array_equal(ours[0, :, 0], [0, 1, 128, 255])


def test_palettes_and_cmyk_become_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(saved(image), PLAIN), [[[255, 0, 0], [0, 0, 255]]])
    red = decode(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), PLAIN)[0, 0]
    assert red[0] > 200 > 60 > red[1:].max()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white_and_not_the_hidden_colour(mode):
    hidden = (10, 0) if mode == "LA" else (10, 20, 30, 0)
    assert (decode(saved(Image.new(mode, (2, 2), hidden)), PLAIN) == 255).all()


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
    for given, expected in ((0, channels), (1, 1), (3, 3)):
        assert decode(stored, Transform(channels=given)).shape == (4, 4, expected)


def test_images_that_already_fit_are_not_changed():
    pixels = picture(32, 32)
    for payload in (pixels, encoded(pixels), encoded(pixels, "WEBP", lossless=True)):
        np.testing.assert_array_equal(decode(payload, Transform(image_size=32)), pixels)
