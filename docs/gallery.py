"""Draws pictures of the documentation from scratch, by the commands in gallery.toml.

Command: python -m docs.gallery NAME [--out=runs/gallery] [--data SET=PATH ...]
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).parent


def entries() -> dict[str, Any]:
    """Returns the commands and pictures of each entry by its name."""
    return tomllib.loads((DOCS / "gallery.toml").read_text("utf-8"))


def commands(entry: dict[str, Any], out: str, data: dict[str, str]) -> list[list[str]]:
    """Returns the arguments of Python for each command of an entry."""

    def filled(word: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: data[found[1]], re.sub(r"\bOUT\b", out, word))

    return [["-m", *map(filled, shlex.split(command))] for command in entry["commands"]]


def collect(entry: dict[str, Any], out: Path) -> None:
    """Copies the pictures of an entry to docs/images, as PNG with 128 colours or as WebP."""
    for target, pattern in entry["pictures"].items():
        drawn = max(out.glob(pattern), key=lambda path: path.stat().st_mtime)
        if drawn.suffix == ".webp":  # Animated.
            shutil.copy(drawn, DOCS / "images" / target)
            continue
        image = Image.open(drawn).convert("RGB")
        if target.endswith(".png"):
            image = image.quantize(128, dither=Image.Dither.NONE)
        image.save(DOCS / "images" / target, optimize=True, quality=75)


def main() -> None:
    """Draws the pictures of an entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=entries())
    parser.add_argument("--out", default="runs/gallery", help="folder of the runs")
    parser.add_argument("--data", nargs="+", default=[], metavar="SET=PATH", help="sets of images")
    options = parser.parse_args()
    entry = entries()[options.name]
    data = dict(text.partition("=")[::2] for text in options.data)
    for arguments in commands(entry, options.out, data):
        subprocess.run([sys.executable, *arguments], check=True, cwd=DOCS.parent)
    collect(entry, Path(options.out))


if __name__ == "__main__":
    main()
