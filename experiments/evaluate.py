r"""Compare one set of images with another: `python -m experiments.evaluate SAMPLES REFERENCE`.

A set is a folder or a zip of images, an .npz (arr_0: uint8 [N, H, W, C], or float32 in [-1, 1]), or
tfds:NAME:SPLIT. The metrics are printed as a table. --out=FILE.json also writes them as JSON, with
the hashes of both sets and the versions of packages.

Examples:
  FID, KID, precision, recall, density and coverage, by torch-fidelity (pip install -e '.[eval]'):
    python -m experiments.evaluate samples.npz tfds:cifar10:train \
      --weights=weights-inception-2015-12-05-6726825d.pth --out=fid.json
  The paper's protocol, on samples that were never rounded:
    python -m experiments.evaluate floats.npz real.npz --protocol=fid_legacy_fdrl \
      --weights=inception_v3_google-0cc3c7bd.pth
  Without pretrained weights, with fixed random filters or your own feature space:
    python -m experiments.evaluate samples/ real.zip --features=random_conv
    python -m experiments.evaluate samples/ real.zip --features=my_module:my_features
  Are the samples copies of the training set?
    python -m experiments.evaluate samples/ train/ --features=random_conv --held_out=test/ \
      --picture=neighbours.png
"""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import Parser, UserError
from experiments.evaluation import metrics
from experiments.evaluation.protocols import DEFAULT_METRICS, METRICS, PROTOCOLS
from experiments.files import read_json, write_json
from fdrl_jax._names import nearest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; an error of the user is printed in one line."""
    try:
        arguments = _parse(argv)
        result = _evaluate(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.out:
        write_json(Path(arguments.out), result)
    print(metrics.table(metrics.from_json(result["metrics"])))
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("python -m experiments.evaluate", description=__doc__, argument_default="")
    parser.add_argument("samples", metavar="SAMPLES", help="images to evaluate")
    parser.add_argument("reference", metavar="REFERENCE", help="real images")
    parser.add_argument("--protocol", default="standard", help=", ".join(PROTOCOLS))
    parser.add_argument("--weights", help="file of the Inception network's weights")
    parser.add_argument(
        "--metrics",
        help=f"metrics of the Inception network, separated by commas: {', '.join(METRICS)}; by "
        "default those of the protocol, without inception_score",
    )
    parser.add_argument(
        "--features", help="feature spaces, separated by commas: random_conv or MODULE:FUNCTION"
    )
    parser.add_argument("--image_size", type=int, default=0, help="resize both sets to this square")
    parser.add_argument("--data_dir", help="where TFDS sets are")
    parser.add_argument("--held_out", help="a set that training never saw")
    parser.add_argument(
        "--picture",
        help="file for a picture of samples next to the nearest images of REFERENCE; needs "
        "--held_out",
    )
    parser.add_argument("--cache_dir", help="folder for cached features of references")
    parser.add_argument("--out", help="file for the result as JSON")
    arguments = parser.parse_args(argv)
    _check_named("protocol", [arguments.protocol], PROTOCOLS)
    of_protocol = PROTOCOLS[arguments.protocol].metrics
    usual = ",".join(metric for metric in DEFAULT_METRICS if metric in of_protocol)
    arguments.metrics = (arguments.metrics or usual).split(",")
    _check_named("metrics", arguments.metrics, of_protocol)
    if arguments.image_size < 0:
        raise UserError(f"--image_size={arguments.image_size} must be a number of pixels")
    for flag in ("out", "picture"):
        if value := getattr(arguments, flag):
            path = Path(value)
            if not path.parent.is_dir():
                raise UserError(f"--{flag}: the folder {path.parent} does not exist")
            if path.is_dir() or not os.access(path.parent, os.W_OK):
                raise UserError(f"--{flag}={path} cannot be written")
    if arguments.picture:
        if not arguments.held_out:
            raise UserError(
                "--picture shows the nearest images of REFERENCE, whose search needs --held_out"
            )
        from matplotlib.backend_bases import FigureCanvasBase

        formats = FigureCanvasBase.get_supported_filetypes()
        _check_named("picture", [Path(arguments.picture).suffix[1:]], formats)
    return arguments


def _check_named(flag: str, values: Sequence[str], allowed: Collection[str]) -> None:
    for value in values:
        if value not in allowed:
            hint = nearest(value, allowed)
            raise UserError(f"--{flag}: unknown {value!r}{hint}; allowed: {', '.join(allowed)}")


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    # Importing readers of data takes seconds, too long for --help or a mistyped flag.
    from experiments.evaluation import image_sets, inception, memorisation, spaces

    protocol = PROTOCOLS[arguments.protocol]
    by_features = [name for name in arguments.features.split(",") if name]
    named = spaces.named(by_features)
    if arguments.weights or not by_features:
        try:
            inception.check_ready(protocol, arguments.weights)  # Before minutes of reading images.
        except UserError as error:
            other = ", or --features=random_conv, which needs no weights"
            raise UserError(f"{error}{other * (not arguments.weights)}") from error
    weights = {protocol.name: arguments.weights} if arguments.weights else {}
    sets = {}
    as_written = {"samples": "SAMPLES", "reference": "REFERENCE", "held_out": "--held_out"}
    for name, label in as_written.items():
        if where := getattr(arguments, name):
            try:
                sets[name] = image_sets.load(where, arguments.data_dir, arguments.image_size)
            except UserError as error:
                # The readers are those of a run, whose data are in data.dir.
                raise UserError(str(error).replace("data.dir=", f"{label}=", 1)) from error
    sets = image_sets.alike(sets)
    image_sets.check(*sets.values(), channels=bool(by_features or arguments.held_out))
    samples, reference, held_out = sets["samples"], sets["reference"], sets.pop("held_out", None)
    networks = inception.Inception(weights, arguments.metrics)
    found, used = inception.by_inception(samples, reference, networks, cache=arguments.cache_dir)
    for label, function in named.items():
        scores = spaces.scores(function(samples.unit), function(reference.unit))
        found += [
            metrics.measured(name, [score], space=label, num=samples.summary[0][0])
            for name, score in scores.items()
        ]
    record: dict[str, Any] = {"protocols": used, "features": by_features}
    for side, images in sets.items():
        (num, *size), fingerprint = images.summary
        record[side] = {
            "where": images.where,
            "num_images": num,
            "image_size": size,
            "pixels": images.pixels,
            "resized_by": "Pillow, bilinear, antialiased" if images.resized else None,
            "fingerprint": fingerprint,
        }
    record["versions"] = inception.versions()
    record["run"] = _record_of(Path(arguments.samples))
    if held_out is not None:
        copied, shown = memorisation.search(
            samples.unit, held_out.unit, reference.batches, {spaces.PIXELS: None, **named}
        )
        found += copied
        record["held_out"] = held_out.where
        if arguments.picture:
            from experiments import pictures
            from experiments.pictures.images import neighbours

            pictures.save(neighbours(samples.unit, shown), Path(arguments.picture))
    return {"metrics": metrics.to_json(metrics.by_name(found)), **record}


def _record_of(samples: Path) -> Any:
    """Returns the record that --mode=sample wrote next to its samples, or `None`."""
    samples = samples.absolute()
    record = samples.with_name(f"{samples.name}.json")
    return read_json(record) if record.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
