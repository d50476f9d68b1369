"""Draws the pictures of the documentation from scratch, by the commands in gallery.toml.

Command: python -m docs.gallery [NAME ...] [--out=runs/gallery] [--data SET=PATH ...]
`--list` prints the commands. Without NAME, all pictures are drawn whose sets of images are given.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

DOCS = Path(__file__).parent


def entries() -> dict[str, dict]:
    """Returns the commands and pictures of each entry by its name."""
    return tomllib.loads((DOCS / "gallery.toml").read_text("utf-8"))


def commands(entry: dict, out: str, data: dict[str, str]) -> list[list[str]]:
    """Returns the arguments of Python for each command of an entry.

    Raises:
      KeyError: if the path of a set of images is missing.
    """

    def filled(word: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: data[found[1]], re.sub(r"\bOUT\b", out, word))

    return [["-m", *map(filled, shlex.split(command))] for command in entry["commands"]]


def collect(entry: dict, out: Path) -> None:
    """Copies the pictures of an entry to docs/images, as PNG with fewer colours or as WebP."""
    for target, pattern in entry["pictures"].items():
        drawn = max(out.glob(pattern), key=lambda path: path.stat().st_mtime)
        if drawn.suffix == ".webp":
            shutil.copy(drawn, DOCS / "images" / target)
            continue
        image = Image.open(drawn).convert("RGB")
        if target.endswith(".webp"):
            image.save(DOCS / "images" / target, quality=75, method=6)
        elif image.getchannel("R").tobytes() == image.getchannel("B").tobytes():
            grey = Image.fromarray(np.asarray(image.convert("L")) // 16 * 17)
            grey.save(DOCS / "images" / target, optimize=True)
        else:
            image = image.quantize(128, dither=Image.Dither.NONE)
            image.save(DOCS / "images" / target, optimize=True)


def main() -> None:
    """Draws the requested pictures."""
    found = entries()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(found))
    parser.add_argument("--list", action="store_true", help="print the commands, draw nothing")
    parser.add_argument("--out", default="runs/gallery", help="folder of the runs")
    parser.add_argument("--data", nargs="+", default=[], metavar="SET=PATH", help="images")
    options = parser.parse_args()
    if unknown := set(options.names) - set(found):
        parser.error(f"no entry {min(unknown)!r}; allowed: {', '.join(found)}")
    data = dict(text.partition("=")[::2] for text in options.data)
    for name in options.names or found:
        if options.list:
            print(name, *(f"\n  python -m {line}" for line in found[name]["commands"]), sep="")
            continue
        try:
            wanted = commands(found[name], options.out, data)
        except KeyError as missing:
            print(f"{name}: skipped, it needs --data {missing.args[0]}=FOLDER_OR_ZIP")
            continue
        for arguments in wanted:
            subprocess.run([sys.executable, *arguments], check=True, cwd=DOCS.parent)
        if wanted:  # Not of pictures whose programs are history.
            collect(found[name], Path(options.out))


if __name__ == "__main__":
    main()
