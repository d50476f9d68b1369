"""What the program does: one file a mode, each with a `run(request)`."""

import importlib
from typing import NamedTuple

from experiments.request import Request


class Mode(NamedTuple):
    """What a person should know of a mode before using it.

    Attributes:
      summary: what it does, in a line.
      example: the flags of a typical call, after `--mode=NAME`.
      needs_workdir: whether it reads or writes the folder of a run.
      needs_checkpoint: whether `--checkpoint` must be given.
    """

    summary: str
    example: str
    needs_workdir: bool = True
    needs_checkpoint: bool = False


MODES = {
    "train": Mode(
        "train from the newest checkpoint to the last step, evaluate, write a report",
        "--config=configs/swissroll.py --workdir=runs/swissroll",
    ),
    "prior": Mode(
        "fit the data-dependent prior and draw samples of it beside the data",
        "--config=configs/folder.py --data_dir=DIR --workdir=runs/own",
    ),
    "sample": Mode(
        "write samples of a checkpoint, of a class with --class and --classifier, as .npz or PNG",
        "--workdir=runs/digits --num_samples=50000 --config.sample.format=zip",
    ),
    "train_classifier": Mode(
        "train a classifier that withstands attacks, for class-conditional samples",
        "--config=configs/digits_classifier.py --workdir=runs/digits_classifier",
    ),
    "evaluate": Mode("compute the metrics of a checkpoint", "--workdir=runs/swissroll"),
    "curve": Mode(
        "draw the metric against the length of the flow, or the step (curve.over=step)",
        "--workdir=runs/digits --num_samples=2000",
    ),
    "strips": Mode(
        "draw samples of images on their way from the prior",
        "--workdir=runs/digits --num_samples=8",
    ),
    "interpolate": Mode(
        "draw samples of images along paths in the prior, with common noise",
        "--workdir=runs/digits",
    ),
    "dry_run": Mode(
        "tell settings, shapes, memory and time of a run without training",
        "--config=configs/digits.py",
        needs_workdir=False,
    ),
    "export": Mode(
        "write a checkpoint's sampler as a folder that needs JAX alone (StableHLO)",
        "--workdir=runs/swissroll --platforms=cpu,cuda,tpu",
    ),
    "convert": Mode(
        "turn a checkpoint of the authors' PyTorch program into a workdir",
        "--config=configs/cifar10.py --checkpoint=FILE.pt --workdir=runs/converted",
        needs_checkpoint=True,
    ),
}


def example(name: str) -> str:
    """Returns a command that one can type for a mode."""
    flag = "" if name == "train" else f"--mode={name} "
    return f"python -m experiments.main {flag}{MODES[name].example}"


def run(request: Request) -> None:
    """Runs a mode.

    Its file is imported only now: Orbax, matplotlib and the judges take seconds, for which a call
    for help or with a mistake should not wait.

    Raises:
      UserError: for the user's mistakes, among them to ask for more memory than there is.
    """
    try:
        importlib.import_module(f"{__name__}.{request.mode}").run(request)
    except (MemoryError, RuntimeError) as error:
        from experiments.training import memory

        explained = memory.explain(error)
        if explained is None:
            raise
        raise explained from error
