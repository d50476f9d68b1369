"""The modes of the program: one module per mode, each with a `run_mode(command)`."""

import argparse
import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.errors import explained

if TYPE_CHECKING:
    from experiments.command_line import Command


class Mode(NamedTuple):
    """The description of a mode for the command line."""

    summary: str
    example: str  # The arguments of a typical call, after `--mode=NAME`.
    flags: tuple[str, ...] = ()  # Names of its flags, in `FLAGS`.
    creates: bool = False  # Can create a run from a config file; others open an existing run.
    needs_workdir: bool = True  # Reads or writes the folder of a run.
    # The help of flags that mean something else in this mode, by name.
    helps: Mapping[str, str] = MappingProxyType({})


def at_least(low: int) -> Callable[[str], int]:
    """Returns what reads a whole number from the command line."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {low}, got {text!r}")
        return int(text)

    return read


MAX_STRIPS = 64  # A picture with more rows is too long to view.

# The options of each flag for `argparse`.
FLAGS: dict[str, dict[str, Any]] = {
    "checkpoint": {"help": "step of the checkpoint, or best; by default the newest"},
    "num_samples": {
        "type": at_least(1),
        "help": "number of samples; by default evaluate.num_samples",
    },
    "class": {
        "help": "name or number of the class to draw, or all for all in turn; needs --classifier. "
        "Sets condition.label"
    },
    "classifier": {
        "help": "workdir of mode train_classifier, or a .pt file of the library robustness. Sets "
        "condition.classifier"
    },
    "platforms": {
        "type": lambda text: tuple(text.split(",")),
        "default": ("cpu", "cuda", "tpu"),
        "help": "platforms that the sampler should run on, from cpu, cuda, rocm and tpu",
    },
    "prior": {"help": "file of the authors' data-dependent prior"},
    "target": {
        "help": "machine to plan for, which need not be there: gpu:NAME:NUMBER, such as "
        "gpu:h100:8, or tpu:NAME:SHAPE, such as tpu:v5e:4x4; experiments/planning/machines.toml "
        "has the names. Stored images are not needed. By default this machine"
    },
    "name": {"help": "name of the evaluation to report; by default the newest of the run"},
}

MODES = {
    "train": Mode(
        "train to the last step, or resume from the newest checkpoint; evaluate and write a report",
        "--config=configs/swissroll.py --workdir=runs/swissroll",
        creates=True,
    ),
    "prior": Mode(
        "create a run without training it, and draw samples of its prior next to the data",
        "--config=configs/folder.py --data_dir=DIR --workdir=runs/own",
        creates=True,
    ),
    "sample": Mode(
        "write samples of a checkpoint as .npz or PNG; of one class with --class and --classifier",
        "--workdir=runs/digits --num_samples=50000 --config.sample.format=zip",
        ("checkpoint", "num_samples", "class", "classifier"),
    ),
    "train_classifier": Mode(
        "train a plain or a robust classifier, for samples by class and for metrics",
        "--config=configs/digits_classifier.py --workdir=runs/digits_classifier",
        creates=True,
    ),
    "evaluate": Mode(
        "compute the metrics of a checkpoint and write its report",
        "--workdir=runs/swissroll",
        ("checkpoint", "num_samples", "classifier"),
    ),
    "report": Mode(
        "write the report of an evaluation again", "--workdir=runs/swissroll", ("name",)
    ),
    "curve": Mode(
        "plot the metric against the length of the flow, or the step (curve.over=step)",
        "--workdir=runs/digits --num_samples=2000",
        ("checkpoint", "num_samples"),
    ),
    "strips": Mode(
        "draw samples of images on their way from the prior",
        "--workdir=runs/digits --num_samples=8",
        ("checkpoint", "num_samples"),
        helps={"num_samples": f"number of rows; by default 8, at most {MAX_STRIPS}"},
    ),
    "interpolate": Mode(
        "draw samples of images along paths in the prior, with common noise",
        "--workdir=runs/digits",
        ("checkpoint",),
    ),
    "dry_run": Mode(
        "print cost, memory and time of a run without training, here or on --target",
        "--config=configs/digits.py",
        ("target",),
        creates=True,
        needs_workdir=False,
    ),
    "export": Mode(
        "write a checkpoint's sampler as a folder that needs only JAX (StableHLO)",
        "--workdir=runs/swissroll --platforms=cpu,cuda,tpu",
        ("checkpoint", "platforms"),
    ),
    "convert": Mode(
        "convert a checkpoint of the authors' PyTorch program to a run",
        "--config=configs/cifar10.py --checkpoint=FILE.pt --workdir=runs/converted",
        ("checkpoint", "prior"),
        creates=True,
        helps={"checkpoint": "file of the authors' program"},
    ),
    "migrate": Mode(
        "convert the folder of a run of version 0.1; needs its data",
        "--workdir=runs/old",
    ),
}


def example(name: str) -> str:
    """Returns an example command for a mode."""
    flag = "" if name == "train" else f"--mode={name} "
    return f"python -m experiments.main {flag}{MODES[name].example}"


def run(command: "Command") -> None:
    """Runs a mode.

    Its module is imported here, because importing Orbax and matplotlib takes seconds, which a call
    for help or with an error should not need.

    Raises:
      UserError: for errors of the user, such as settings that need more memory than there is.
    """
    with explained(command.folder):
        importlib.import_module(f"{__name__}.{command.mode}").run_mode(command)
