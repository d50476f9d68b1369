"""Draws all pictures of the documentation from scratch on a CPU and writes docs/gallery.md.

Command: python -m docs.gallery [--only NAME ...] [--workdir=runs/gallery] [--data SET=PATH ...]
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

DOCS = Path(__file__).parent
IMAGES, PAGE, TIMES = DOCS / "images", DOCS / "gallery.md", DOCS / "gallery_times.json"
WORKDIR = "runs/gallery"
WEBP_QUALITY = 75
MAIN = "python -m experiments.main"


class Entry(NamedTuple):
    """Pictures that are drawn together.

    Attributes:
      name: for `--only`.
      command: draws the pictures, one or more lines; runs/gallery is replaced by `--workdir`.
      pictures: file in docs/images to (file that the command writes, below runs/gallery; caption).
      of_run: the entry whose run the command needs.
      needs_data: the set that `--data` must name, as nothing is downloaded; its name in the command
        is replaced by the path.
    """

    name: str
    command: str
    pictures: dict[str, tuple[str, str]]
    of_run: str = ""
    needs_data: str = ""


ENTRIES = (
    Entry(
        "architecture",
        "python -m docs.draw_architecture runs/gallery/architecture.svg",
        {"architecture.svg": ("architecture.svg", "Data flow through the packages.")},
    ),
    Entry(
        "swissroll",
        f"{MAIN} --config=configs/swissroll.py --workdir=runs/gallery/swissroll",
        {
            "swissroll.png": (
                "swissroll/evaluations/step_3000/samples.png",
                "Prior, samples and data.",
            ),
            "swissroll_ratio.png": (
                "swissroll/evaluations/step_3000/log_ratio.png",
                "The learnt log-ratio, and the drift that points to where samples are missing.",
            ),
            "swissroll_course.png": (
                "swissroll/evaluations/step_3000/course.png",
                "Samples over training (figure 4 of the paper).",
            ),
            "swissroll_flow.webp": (
                "swissroll/evaluations/step_3000/flow.webp",
                "Points that flow from the prior to the data, animated.",
            ),
        },
    ),
    Entry(
        "25gaussians",
        f"{MAIN} --config=configs/25gaussians.py --workdir=runs/gallery/25gaussians",
        {
            "25gaussians.png": (
                "25gaussians/evaluations/step_3000/samples.png",
                "25 Gaussians: prior, samples and data.",
            )
        },
    ),
    Entry(
        "digits",
        f"{MAIN} --config=configs/digits.py --workdir=runs/gallery/digits",
        {
            "digits_flow.png": (
                "digits/evaluations/step_1500/flow.png",
                "Each row is one digit on its way from the data-dependent prior.",
            ),
            "digits_samples.png": (
                "digits/evaluations/step_1500/samples.png",
                "Prior, samples and data.",
            ),
            "digits_curves.png": (
                "digits/evaluations/step_1500/curves.png",
                "Loss, mean ratio and norms of a healthy run.",
            ),
        },
    ),
    Entry(
        "digits_curve",
        f"{MAIN} --workdir=runs/gallery/digits --mode=curve --num_samples=2000",
        {
            "digits_curve.png": (
                "digits/curves/length_step_1500.png",
                "Fréchet distance against the length of the flow (figure 8).",
            )
        },
        of_run="digits",
    ),
    Entry(
        "classes",
        f"{MAIN} --mode=classifier --config=configs/digits_classifier.py "
        "--workdir=runs/gallery/classes\n"
        f"{MAIN} --workdir=runs/gallery/digits --mode=sample --num_samples=100 --class=all "
        "--classifier=runs/gallery/classes --config.sample.name=classes",
        {
            "digits_classes.png": (
                "digits/samples/classes.npz.picture.png",
                "Class-conditional samples of digits: a row for each digit.",
            )
        },
        of_run="digits",
    ),
    Entry(
        "translation",
        f"{MAIN} --config=configs/digits_pair.py --workdir=runs/gallery/translation",
        {
            "translation.png": (
                "translation/evaluations/step_1000/samples.png",
                "Unpaired translation: sources, translated images, and real images of the target.",
            )
        },
    ),
    Entry(
        "mnist",
        f"{MAIN} --mode=classifier --config=configs/mnist_classifier.py --data_dir=MNIST "
        "--workdir=runs/gallery/mnist/classifier\n"
        f"{MAIN} --config=configs/mnist.py --data_dir=MNIST --config.seed=1 "
        "--workdir=runs/gallery/mnist/run\n"
        f"{MAIN} --workdir=runs/gallery/mnist/run --mode=evaluate --data_dir=MNIST "
        "--classifier=runs/gallery/mnist/classifier",
        {
            "mnist_samples.png": (
                "mnist/run/evaluations/step_5000/samples.png",
                "MNIST: prior, samples and data.",
            ),
            "mnist_flow.png": (
                "mnist/run/evaluations/step_5000/flow.png",
                "MNIST: samples on their way from the data-dependent prior.",
            ),
            "mnist_neighbours.png": (
                "mnist/run/evaluations/step_5000/neighbours.png",
                "Samples of MNIST next to their nearest training images.",
            ),
        },
        needs_data="MNIST",
    ),
    Entry(
        "mnist_classes",
        f"{MAIN} --workdir=runs/gallery/mnist/run --mode=sample --num_samples=100 --class=all "
        "--classifier=runs/gallery/mnist/classifier --config.condition.weight=0.3 "
        "--config.sample.name=classes",
        {
            "mnist_classes.png": (
                "mnist/run/samples/classes.npz.picture.png",
                "Class-conditional samples of MNIST, guided by a classifier: a row for each digit.",
            )
        },
        of_run="mnist",
    ),
    Entry(
        "cifar10_small",
        f"{MAIN} --mode=classifier --config=configs/cifar10_classifier.py --data_dir=CIFAR10 "
        "--workdir=runs/gallery/cifar10_small/classifier\n"
        f"{MAIN} --config=configs/cifar10_small.py --data_dir=CIFAR10 --config.seed=1 "
        "--config.network.by_class=True --config.prior.num_components=4 "
        "--config.train.num_steps=20000 --workdir=runs/gallery/cifar10_small/run\n"
        f"{MAIN} --workdir=runs/gallery/cifar10_small/run --mode=evaluate --data_dir=CIFAR10 "
        "--classifier=runs/gallery/cifar10_small/classifier\n"
        f"{MAIN} --workdir=runs/gallery/cifar10_small/run --mode=sample --num_samples=100 "
        "--class=all --config.sample.name=classes",
        {
            "cifar10_small_samples.webp": (
                "cifar10_small/run/evaluations/step_20000/samples.png",
                "CIFAR-10 on a CPU, with labels: prior, samples and data.",
            ),
            "cifar10_small_flow.webp": (
                "cifar10_small/run/evaluations/step_20000/flow.png",
                "CIFAR-10 on a CPU: samples on their way from the data-dependent prior.",
            ),
            "cifar10_small_neighbours.webp": (
                "cifar10_small/run/evaluations/step_20000/neighbours.png",
                "Samples of CIFAR-10 next to their nearest training images.",
            ),
            "cifar10_by_class.webp": (
                "cifar10_small/run/samples/classes.npz.picture.png",
                "CIFAR-10 with a ratio for each class: a row for each class.",
            ),
        },
        needs_data="CIFAR10",
    ),
    Entry(
        "cifar10_classes",
        f"{MAIN} --mode=classifier --config=configs/cifar10_classifier.py "
        "--data_dir=CIFAR10 --config.attack.num_steps=3 --config.attack.epsilon=0.5 "
        '"--config.network.blocks=((32,2),(64,2),(128,1))" --config.network.use_bias=False '
        "--config.augment.max_shift=2 --config.train.num_steps=3000 "
        "--workdir=runs/gallery/cifar10_classes/classifier\n"
        f"{MAIN} --config=configs/cifar10_small.py:ddp --data_dir=CIFAR10 --config.seed=2 "
        "--workdir=runs/gallery/cifar10_classes/run\n"
        f"{MAIN} --workdir=runs/gallery/cifar10_classes/run --mode=sample --num_samples=100 "
        "--class=all --classifier=runs/gallery/cifar10_classes/classifier "
        "--config.condition.weight=0.15 "
        "--config.sample.name=classes",
        {
            "cifar10_classes.webp": (
                "cifar10_classes/run/samples/classes.npz.picture.png",
                "Class-conditional samples of CIFAR-10: a row for each class, with a classifier "
                "trained under attack.",
            )
        },
        needs_data="CIFAR10",
    ),
    Entry(
        "interpolation",
        "\n".join(
            f"{MAIN} --mode=import --sampler={name} --workdir=runs/gallery/interpolation/{name}\n"
            f"{MAIN} --workdir=runs/gallery/interpolation/{name} --mode=interpolate"
            for name in ("mnist", "cifar10")
        ),
        {
            "mnist_interpolation.png": (
                "interpolation/mnist/pictures/interpolation.png",
                "MNIST: between two points of a Gaussian of the prior, with common noise (figure "
                "7). Every other row is the prior.",
            ),
            "cifar10_interpolation.webp": (
                "interpolation/cifar10/pictures/interpolation.png",
                "CIFAR-10: between two points of a Gaussian of a class. The spherical path stays "
                "where the prior is; on the linear path, contrast is lost.",
            ),
        },
    ),
    Entry(
        "letters",
        f"{MAIN} --config=configs/folder.py --data_dir=LETTERS --config.data.image_size=28 "
        "--workdir=runs/gallery/letters",
        {
            "letters_samples.png": (
                "letters/evaluations/step_2000/samples.png",
                "Letters of 22 DejaVu fonts, by the recipe: prior, samples and data.",
            )
        },
        needs_data="LETTERS",
    ),
    Entry(
        "emoji",
        f"{MAIN} --config=configs/folder.py --data_dir=EMOJI --config.seed=2 "
        "--workdir=runs/gallery/emoji\n"
        f"{MAIN} --config=configs/folder.py --data_dir=EMOJI --config.data.image_size=64 "
        "--config.seed=1 --workdir=runs/gallery/emoji_64",
        {
            "emoji_samples.webp": (
                "emoji/evaluations/step_2000/samples.png",
                "Emoji of 32 x 32 pixels, by the recipe: prior, samples and data. They are of "
                "Noto (Apache License 2.0) and Twemoji (CC BY 4.0).",
            ),
            "emoji_64_samples.webp": (
                "emoji_64/evaluations/step_2000/samples.png",
                "The same at 64 x 64.",
            ),
        },
        needs_data="EMOJI",
    ),
    Entry(
        "density_chasm",
        "python -m examples.density_chasm --seeds 0 1 2 3 4 --out=runs/gallery/density_chasm",
        {
            "density_chasm.png": (
                "density_chasm/density_chasm.png",
                "The density chasm (figures 2 and 4): a stale estimator fails far away, "
                "flow-guided training does not.",
            )
        },
    ),
    Entry(
        "stale_and_guided",
        "python -m examples.stale_and_guided --out=runs/gallery/stale_and_guided",
        {
            "stale_and_guided.png": (
                "stale_and_guided/stale_and_guided.png",
                "Stale and flow-guided training on digits, from a uniform and from a "
                "data-dependent prior.",
            )
        },
    ),
    Entry(
        "stale_and_guided_mnist",
        "python -m examples.stale_and_guided --data=MNIST "
        "--out=runs/gallery/stale_and_guided_mnist",
        {
            "stale_and_guided_mnist.png": (
                "stale_and_guided_mnist/stale_and_guided.png",
                "The same on 3,000 images of MNIST.",
            )
        },
        needs_data="MNIST",
    ),
    Entry(
        "ratios",
        "python -m docs.ratio_pictures --out=runs/gallery/ratios",
        {
            "ratios_chasms.png": (
                "ratios/chasms.png",
                "Log-ratios of sets that a classifier separates: a bridge finds them where a "
                "single classifier fails.",
            ),
            "ratios_densities.png": (
                "ratios/densities.png",
                "A density of four modes, and estimates from a flow without noise.",
            ),
        },
    ),
    Entry(
        "improve_generator",
        "python -m examples.improve_generator --out=runs/gallery/improve_generator",
        {
            "improve_generator.png": (
                "improve_generator/improve_generator.png",
                "Samples of a generator, of a flow that was trained from them, and of refinement "
                "by a discriminator.",
            )
        },
    ),
    Entry(
        "race",
        "\n".join(
            "python -m benchmarks.peers --results benchmarks/peers/results.jsonl "
            f"benchmarks/peers/results_avx512.jsonl --name={name} "
            f"--picture=runs/gallery/race/{name}.png"
            for name in ("mnist-60k", "cifar10-50k")
        ),
        {
            "race_mnist.png": (
                "race/mnist-60k.png",
                "MNIST: the Fréchet distance of FDRL and of other models against their CPU seconds "
                "of training, at no more than 36 evaluations per sample.",
            ),
            "race_cifar10.png": ("race/cifar10-50k.png", "The same on CIFAR-10."),
        },
    ),
    Entry(
        "race_samples",
        "python -m benchmarks.peers --results benchmarks/peers/results.jsonl --data=CIFAR10 "
        "--name=cifar10-50k --samples=runs/gallery/race_samples/cifar10-50k.png",
        {
            "race_cifar10_samples.webp": (
                "race_samples/cifar10-50k.png",
                "CIFAR-10 after 100 CPU minutes on one core: samples of FDRL and of flow matching, "
                "and real images. The race keeps these samples in runs/peers.",
            )
        },
        needs_data="CIFAR10",
    ),
)


def main(argv: list[str]) -> None:
    """Draws the requested pictures and writes the page."""
    parser = argparse.ArgumentParser("python -m docs.gallery", description=__doc__)
    parser.add_argument("--workdir", default=WORKDIR, help="folder of the runs")
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--page", action="store_true", help="write only the page, draw nothing")
    sets = sorted({entry.needs_data for entry in ENTRIES if entry.needs_data})
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="SET=PATH",
        help=f"folders or zips of images, for {', '.join(sets)}",
    )
    arguments = parser.parse_args(argv)
    data = dict(text.partition("=")[::2] for text in arguments.data)
    if unknown := set(data) - set(sets):
        parser.error(f"--data: unknown set {min(unknown)!r}; allowed: {', '.join(sets)}")
    times = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    chosen = [entry for entry in ENTRIES if entry.name in arguments.only and not arguments.page]
    for entry in chosen:
        if entry.needs_data and entry.needs_data not in data:
            print(f"{entry.name}: skipped, it needs --data {entry.needs_data}=FOLDER_OR_ZIP")
            continue
        seconds = draw(entry, Path(arguments.workdir), data)
        times[entry.name] = round(seconds)
        TIMES.write_text(json.dumps(times, indent=2, sort_keys=True) + "\n")
        print(f"{entry.name}: {times[entry.name]} s", flush=True)
    PAGE.write_text(page(times))


def draw(entry: Entry, workdir: Path, data: Mapping[str, str]) -> float:
    """Runs the command of an entry from scratch and returns the time in seconds.

    Args:
      entry: what to draw.
      workdir: folder of the runs.
      data: paths of the sets that commands name.
    """
    shutil.rmtree(workdir / entry.name, ignore_errors=True)
    workdir.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    script = entry.command.replace(WORKDIR, str(workdir))
    if entry.needs_data:
        script = script.replace(f"={entry.needs_data}", f"={shlex.quote(data[entry.needs_data])}")
    for line in script.splitlines():
        subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True, cwd=DOCS.parent)
    seconds = time.perf_counter() - started
    collect(entry, workdir)
    return seconds


def collect(entry: Entry, workdir: Path) -> None:
    """Copies the pictures of an entry to docs/images, as PNG with fewer levels or as WebP."""
    for target, (drawn, _) in entry.pictures.items():
        if drawn.endswith((".svg", ".webp")):
            shutil.copy(workdir / drawn, IMAGES / target)
            continue
        image = Image.open(workdir / drawn).convert("RGB")
        if target.endswith(".webp"):  # Photographs need many colours.
            image.save(IMAGES / target, quality=WEBP_QUALITY, method=6)
            continue
        if image.getchannel("R").tobytes() == image.getchannel("B").tobytes():  # Grey.
            image = image.convert("L")
        compact(image).save(IMAGES / target, optimize=True)


def compact(image: Image.Image) -> Image.Image:
    """Rounds a picture to 16 levels of grey or to 128 colours, which halves its file."""
    if image.mode == "L":
        return Image.fromarray(np.asarray(image) // 16 * 17)
    return image.quantize(128, dither=Image.Dither.NONE)


def page(times: dict[str, int]) -> str:
    """Returns the page of the gallery: each picture with its command and time."""
    took = {e.name: f"{times[e.name]} s" if e.name in times else "not measured" for e in ENTRIES}
    parts = [
        "# Gallery\n\nThis page shows all pictures of the documentation with the commands that "
        "draw them.\nThe times were measured on two CPU cores that also did other work.\n"
        "`make gallery` draws the pictures that need no data from scratch,\n"
        '`make gallery GALLERY_ARGS="--data MNIST=FILE CIFAR10=FILE"` also others, and\n'
        '`make gallery GALLERY_ARGS="--only swissroll"` those of one entry.\n'
        "`docs/gallery.py` writes this page.\n",
        _thumbnails(),
        "| entry | shows | time |\n|---|---|---|",
    ]
    for entry in ENTRIES:
        captions = " ".join(caption for _, caption in entry.pictures.values())
        parts.append(f"| [{entry.name}](#{entry.name}) | {captions} | {took[entry.name]} |")
    parts.append("")
    for entry in ENTRIES:
        shown = [
            f"![{caption}](images/{target})\n\n{caption}\n"
            for target, (_, caption) in entry.pictures.items()
            if (IMAGES / target).exists()
        ]
        after = f", after `{entry.of_run}`" if entry.of_run else ""
        command = f"```bash\n{entry.command}\n```\n\nTime: {took[entry.name]}{after}.\n"
        parts.append(f"## {entry.name}\n\n{command}\n" + "\n".join(shown))
    return "\n".join(parts)


def _thumbnails(columns: int = 3) -> str:
    """Returns a table of all pictures, each a link to its entry."""
    cells = [
        f"[![{caption}](images/{target})](#{entry.name})"
        for entry in ENTRIES
        for target, (_, caption) in entry.pictures.items()
        if (IMAGES / target).exists()
    ]
    cells += [""] * (-len(cells) % columns)
    rows = ["| " * columns + "|", "|---" * columns + "|"]
    rows += [f"| {' | '.join(cells[i : i + columns])} |" for i in range(0, len(cells), columns)]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
