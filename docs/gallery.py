"""Draws every picture of the documentation from scratch on a CPU, and writes docs/gallery.md.

Command: python -m docs.gallery [--only NAME ...] [--workdir=runs/gallery]
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

DOCS = Path(__file__).parent
IMAGES, PAGE, TIMES = DOCS / "images", DOCS / "gallery.md", DOCS / "gallery_times.json"
WORKDIR = "runs/gallery"
NUM_COLOURS = 128
MAIN = "python -m experiments.main"


class Entry(NamedTuple):
    """Pictures that one command draws.

    Attributes:
      name: for `--only`.
      command: what draws them; runs/gallery stands for the folder of `--workdir`.
      pictures: file in docs/images to (file that the command writes, below runs/gallery; caption).
      of_run: the entry whose run the command needs.
    """

    name: str
    command: str
    pictures: dict[str, tuple[str, str]]
    of_run: str = ""


ENTRIES = (
    Entry(
        "architecture",
        "python -m docs.draw_architecture runs/gallery/architecture.svg",
        {"architecture.svg": ("architecture.svg", "The way of the data through the packages.")},
    ),
    Entry(
        "swissroll",
        f"{MAIN} --config=configs/swissroll.py --workdir=runs/gallery/swissroll",
        {
            "swissroll.png": ("swissroll/pictures/samples.png", "Prior, samples and data."),
        },
    ),
    Entry(
        "digits",
        f"{MAIN} --config=configs/digits.py --workdir=runs/gallery/digits",
        {
            "digits_flow.png": (
                "digits/pictures/flow.png",
                "Each row is one digit on its way from the data-dependent prior.",
            ),
            "digits_samples.png": ("digits/pictures/samples.png", "Prior, samples and data."),
            "digits_curves.png": ("digits/pictures/curves.png", "A healthy run."),
        },
    ),
    Entry(
        "digits_curve",
        f"{MAIN} --workdir=runs/gallery/digits --mode=curve --num_samples=2000",
        {
            "digits_curve.png": (
                "digits/curves/length_step_2000.png",
                "Fréchet distance against the length of the flow (figure 8).",
            )
        },
        of_run="digits",
    ),
)


def main(argv: list[str]) -> None:
    """Draws the pictures asked for and writes the page."""
    parser = argparse.ArgumentParser("python -m docs.gallery", description=__doc__)
    parser.add_argument("--workdir", default=WORKDIR, help="folder of the runs")
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--page", action="store_true", help="write the page alone, draw nothing")
    arguments = parser.parse_args(argv)
    times = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    chosen = [entry for entry in ENTRIES if entry.name in arguments.only and not arguments.page]
    for entry in chosen:
        times[entry.name] = round(draw(entry, Path(arguments.workdir)))
        TIMES.write_text(json.dumps(times, indent=2, sort_keys=True) + "\n")
        print(f"{entry.name}: {times[entry.name]} s", flush=True)
    PAGE.write_text(page(times))


def draw(entry: Entry, workdir: Path) -> float:
    """Runs the command of an entry from scratch; returns the seconds that it took."""
    if not entry.of_run:
        shutil.rmtree(workdir / entry.name, ignore_errors=True)
    workdir.mkdir(parents=True, exist_ok=True)
    command = shlex.split(entry.command.replace(WORKDIR, str(workdir)))
    started = time.perf_counter()
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=DOCS.parent)
    seconds = time.perf_counter() - started
    collect(entry, workdir)
    return seconds


def collect(entry: Entry, workdir: Path) -> None:
    """Copies the pictures of an entry into docs/images: PNG in few colours."""
    for target, (drawn, _) in entry.pictures.items():
        if target.endswith(".svg"):
            shutil.copy(workdir / drawn, IMAGES / target)
            continue
        image = Image.open(workdir / drawn).convert("RGB")
        image.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(IMAGES / target, optimize=True)


def page(times: dict[str, int]) -> str:
    """Returns the gallery as a page: each picture with its command and its time."""
    parts = [
        "# Gallery\n\nEvery picture of this documentation, with the command that draws it and its "
        "time on two CPU cores. `make gallery` draws all of them from scratch, `make gallery "
        'GALLERY_ARGS="--only swissroll"` one. This page is written by `docs/gallery.py`.\n'
    ]
    for entry in ENTRIES:
        shown = [
            f"![{caption}](images/{target})\n\n{caption}\n"
            for target, (_, caption) in entry.pictures.items()
        ]
        took = f"{times[entry.name]} s" if entry.name in times else "not measured yet"
        after = f", after `{entry.of_run}`" if entry.of_run else ""
        command = f"```bash\n{entry.command}\n```\n\nTime: {took}{after}.\n"
        parts.append(f"## {entry.name}\n\n{command}\n" + "\n".join(shown))
    return "\n".join(parts)


if __name__ == "__main__":
    main(sys.argv[1:])
