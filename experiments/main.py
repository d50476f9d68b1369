"""Train, sample and evaluate: `python -m experiments.main --config=FILE.py --workdir=DIR`."""

import errno
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import NoReturn

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from experiments import command_line, modes
from experiments.errors import UserError
from experiments.machine import hosts, xla_flags
from experiments.request import Request

# What `--help` shows first: absl prints the docstring of the program.
__doc__ += f"""

Start with
  {modes.example("train")}
which takes a minute on a CPU and writes a report. Start a command again, and it goes on from the
newest checkpoint. Later commands need --workdir alone: the folder remembers its config.

Modes, by --mode=NAME, with an example of each:
"""
for _name, _of_mode in modes.MODES.items():
    __doc__ += f"  {_name:9s} {_of_mode.summary}\n    {modes.example(_name)}\n"
__doc__ += """
Settings: every key of configs/base.py, as in --config.flow.step_size=0.1; a variant after a colon,
as in --config=configs/digits.py:tiny, which goes through everything in seconds.
Many runs at once: python -m experiments.sweep --help
Images of any program: python -m experiments.evaluate --help
"""

_STARTED = time.perf_counter()

# Full, over quota, larger than the system allows, or read-only.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file, FILE.py or FILE.py:tiny; the workdir's own if left out."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if missing.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the data are: comes before data.dir and FDRL_DATA_DIR."
)
_MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(modes.MODES)}.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the other processes of the run, as found out on TPU pods, SLURM, Open MPI, Kubernetes or "
    "from JAX_COORDINATOR_ADDRESS. See docs/clusters.md.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT at which the first of several processes listens."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes train together.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process.", lower_bound=0)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds",
    100,
    "After so long without a sign of one process the others end.",
    lower_bound=1,
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Step of the checkpoint to sample from or evaluate, or best; the newest if left out. In mode "
    "convert: the file of the authors' program.",
)
_PRIOR = flags.DEFINE_string(
    "prior",
    None,
    "In mode convert: the file of the authors' data-dependent prior.",
)
_CLASS = flags.DEFINE_string(
    "class",
    None,
    "In mode sample: name or number of the class to draw, or all for each in turn; needs "
    "--classifier. Sets condition.label.",
)
_CLASSIFIER = flags.DEFINE_string(
    "classifier",
    None,
    "What tells the classes apart: the workdir of mode train_classifier, or a .pt file of the "
    "library robustness. Sets condition.classifier.",
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    None,
    "Samples to write in mode sample, or to take at each point in mode curve; evaluate.num_samples "
    "if left out.",
    lower_bound=1,
)
_PLATFORMS = flags.DEFINE_list(
    "platforms",
    ["cpu", "cuda", "tpu"],
    "In mode export: what the sampler is to run on, of cpu, cuda, rocm and tpu.",
)


def main(_: list[str]) -> None:
    """Runs the mode asked for; a mistake of the user's ends the program with one line."""
    _set_up_logging()
    mode, config, folder = _MODE.value, _CONFIG.value, _WORKDIR.value
    try:
        command_line.check_needed(mode, config, folder, _CHECKPOINT.value)
        # Before anything runs on a device: XLA reads its flags when its backend starts.
        xla_flags.set_cpu_flags()
        _join_processes()
        settings = config.to_dict()
        if _DATA_DIR.value:
            settings["data"]["dir"] = _DATA_DIR.value
        for key, flag in (("label", _CLASS), ("classifier", _CLASSIFIER)):
            settings["condition"][key] = flag.value or settings["condition"][key]
        modes.run(
            Request(
                mode=mode,
                config=settings,
                workdir=Path(folder or "."),
                command=shlex.join(["python", "-m", "experiments.main", *sys.argv[1:]]),
                checkpoint=_CHECKPOINT.value,
                num_samples=_NUM_SAMPLES.value,
                prior=Path(_PRIOR.value) if _PRIOR.value else None,
                platforms=tuple(_PLATFORMS.value),
                started=_STARTED,
            )
        )
    except UserError as error:
        _exit(error, error.exit_code)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = error.filename or f"--workdir={folder}"
        _exit(f"{where}: {error.strerror}; checkpoints that are there are intact", 2)
    except KeyboardInterrupt:
        _exit("interrupted; the same command goes on from the newest checkpoint", 130)


def _set_up_logging() -> None:
    # Libraries tell of every file they touch, and give the stacks of errors that they raise.
    absl.logging.set_verbosity(absl.logging.FATAL)
    own = logging.getLogger("fdrl")
    own.setLevel(logging.WARNING)
    own.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    own.addHandler(handler)


def _join_processes() -> None:
    hosts.join(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        automatic=_DISTRIBUTED.value,
        heartbeat_seconds=_HEARTBEAT.value,
    )


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return command_line.parse(argv)
    except UserError as error:
        _exit(error, error.exit_code)


def _exit(message: object, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
