r"""Run many configs one after the other and compare them in a table and a picture.

A sweep file lists names and changes to a config (see configs/sweeps/). For simple sweeps, use grids
on the command line. Each run gets a sub-folder of the sweep's folder. The same command resumes an
interrupted sweep and skips finished runs. A run that fails or diverges is reported in the table and
does not end the sweep.

Try:
  python -m experiments.sweep --sweep=configs/sweeps/ablation_digits.py --workdir=runs/ablation
  python -m experiments.sweep --config=configs/digits.py --grid config.flow.num_steps=10,20,40 \
    --seeds=0,1 --metrics=frechet_svc_360 --config.train.num_steps=500 --workdir=runs/length

Files: table.md, table.csv, picture.png, and output.txt in the folder of each run.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.errors import Parser, UserError, explained
from experiments.files import locked, write_text
from experiments.pictures import save
from experiments.sweep import picture, plan, runner, table


def main(argv: list[str]) -> None:
    """Runs a sweep, and prints the table and the paths of the files."""
    root, todo = parse(argv)
    with explained(root):
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / ".lock", f"--workdir={root}", "choose another --workdir"):
            outcomes = runner.run_all(todo, root)
            metrics = table.metrics_to_show(todo, outcomes)
            rows = table.rows(todo, outcomes, metrics)
            text = table.markdown(rows, metrics)
            write_text(root / "table.md", text)
            table.write_csv(root / "table.csv", todo, outcomes)
            print(f"{text}\ntable: {root / 'table.csv'}")
            if any(values for row in rows for values in row.values.values()):
                print(f"picture: {save(picture.comparison(rows, metrics), root / 'picture.png')}")


def parse(argv: list[str]) -> tuple[Path, plan.Plan]:
    """Returns the folder of the sweep and its plan.

    Raises:
      UserError: for an invalid flag, sweep file or value.
    """
    parser = Parser("python -m experiments.sweep", description=__doc__)
    parser.add_argument("--sweep", type=Path, metavar="FILE.py", help="what to run")
    parser.add_argument("--config", metavar="FILE.py", help="config of the runs of a grid")
    parser.add_argument(
        *("--grid", "-g"),
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="a key of the config and its values; several grids give all combinations",
    )
    parser.add_argument("--seeds", type=_numbers, metavar="N,N", help="seeds of every run")
    parser.add_argument(
        "--metrics", type=lambda text: text.split(","), metavar="NAME,NAME", help="metrics to show"
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, metavar="DIR", help="folder of the sweep"
    )
    parser.add_argument("--config.KEY", metavar="VALUE", help="a value for all runs", dest="_")
    changes, rest = command_line.split_changes(argv)
    flags = parser.parse_args(rest)
    given: dict[str, Any] = {"settings": changes}
    given |= {k: v for k in ("seeds", "metrics") if (v := getattr(flags, k)) is not None}
    if flags.sweep and not (flags.config or flags.grid):
        return flags.workdir, plan.from_file(flags.sweep, **given)
    if flags.config and flags.grid and not flags.sweep:
        return flags.workdir, plan.make(flags.config, plan.grid(flags.grid), **given)
    raise UserError("give either --sweep=FILE.py, or --config=FILE.py and --grid KEY=VALUE,VALUE")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers, got {text!r}") from None


if __name__ == "__main__":
    # If the sweep is stopped, it must also stop its current run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)
