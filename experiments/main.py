"""Train, sample and evaluate: `python -m experiments.main --config=FILE.py --workdir=DIR`.

Examples:
  Train:      python -m experiments.main --config=configs/swissroll.py --workdir=runs/swissroll
  Own images: python -m experiments.main --config=configs/folder.py --data_dir=DIR --workdir=RUN
  Sample:     python -m experiments.main --mode=sample --workdir=runs/swissroll --num_samples=1000
  Evaluate:   python -m experiments.main --mode=evaluate --workdir=runs/swissroll
  Convert:    python -m experiments.main --mode=convert --config=configs/swissroll.py \
                --checkpoint=FILE.pt --workdir=runs/converted
  Look ahead: python -m experiments.main --mode=dry_run --config=configs/digits.py
  Override:   add --config.flow.step_size=0.1, and so on for every key of the config
"""

import shlex
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import command_line, xla_flags
from experiments.errors import DivergedError, UserError

EXIT_USER_ERROR, EXIT_DIVERGED = 2, 3

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file, FILE.py or FILE.py:tiny; the workdir's own if left out."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if missing.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the data are: comes before data.dir and FDRL_DATA_DIR."
)
_MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(command_line.MODES)}.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Step of the checkpoint to sample from or evaluate, the newest if left out; in mode convert "
    "the file of the authors' program.",
)
_PRIOR = flags.DEFINE_string(
    "prior",
    None,
    "In mode convert: the file of the authors' data-dependent prior.",
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    None,
    "Samples to write in mode sample; evaluate.num_samples if left out.",
    lower_bound=1,
)


def main(_: list[str]) -> None:
    """Runs the mode asked for; a mistake of the user's ends the program with one line."""
    logging.set_verbosity(logging.ERROR)  # Libraries tell of every file they touch.
    try:
        command_line.check_needed(_MODE.value, _CONFIG.value, _WORKDIR.value, _CHECKPOINT.value)
        # Before anything runs on a device: XLA reads its flags when its backend starts.
        xla_flags.set_cpu_flags()
        from experiments import modes
        from experiments.dry_run import dry_run

        config = _CONFIG.value.to_dict()
        if _DATA_DIR.value:
            config["data"]["dir"] = _DATA_DIR.value
        workdir = Path(_WORKDIR.value or ".")
        command = shlex.join(["python", "-m", "experiments.main", *sys.argv[1:]])
        if _MODE.value == "train":
            modes.train(config, workdir, command)
        elif _MODE.value == "prior":
            modes.prior(config, workdir)
        elif _MODE.value == "sample":
            modes.sample(config, workdir, _checkpoint_step(), _NUM_SAMPLES.value)
        elif _MODE.value == "evaluate":
            modes.evaluate(config, workdir, _checkpoint_step())
        elif _MODE.value == "convert":
            prior = Path(_PRIOR.value) if _PRIOR.value else None
            modes.convert(config, workdir, Path(_CHECKPOINT.value or ""), command, prior)
        else:
            dry_run(config)
    except DivergedError as error:
        _exit(error, EXIT_DIVERGED)
    except UserError as error:
        _exit(error, EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _exit("interrupted; the same command goes on from the newest checkpoint", 130)


def _checkpoint_step() -> int | None:
    value = _CHECKPOINT.value
    if value is None or value.isdecimal():
        return None if value is None else int(value)
    raise UserError(f"--checkpoint={value} must be the step of a checkpoint in mode {_MODE.value}")


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return command_line.parse(argv)
    except UserError as error:
        _exit(error, EXIT_USER_ERROR)


def _exit(message: object, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
