"""A run on disk: its experiment, and the train state of one of its checkpoints."""

import contextlib

import jax

from experiments import build
from experiments.build import Experiment
from experiments.errors import UserError
from experiments.request import CheckpointStep, Request
from experiments.storage import best
from experiments.storage.checkpoints import FREE_IN_SAMPLING, Checkpoints
from experiments.storage.workdir import Workdir
from fdrl_jax.state import TrainState


def open_run(request: Request) -> tuple[Experiment, Workdir]:
    """Builds the experiment of a workdir that should exist, and makes none that does not.

    Raises:
      UserError: if the workdir is of a classifier, or the config cannot run.
    """
    workdir = Workdir(request.workdir)
    if workdir.classifier.exists():
        raise UserError(
            f"--workdir={workdir.root} holds a classifier; name it with --classifier, and as "
            "--workdir the run whose samples it should guide"
        )
    prior_file = workdir.prior if workdir.root.is_dir() else None
    return build.experiment(request.config, prior_file), workdir


def restore(experiment: Experiment, workdir: Workdir, step: CheckpointStep) -> TrainState:
    """Restores the newest checkpoint of a run, the best, or the one of a step, to sample from it.

    Raises:
      UserError: if there is none, or it does not fit the experiment.
    """
    if step == "best":
        folder, step = best.folder(workdir), None
        if folder is None:
            raise UserError(
                f"no best checkpoint in {workdir.root}; train with evaluate.every_steps above 0"
            )
    else:
        folder = workdir.checkpoints
    if folder.is_dir():
        store = Checkpoints(folder, experiment.num_checkpoints)
        with contextlib.closing(store):
            template = jax.eval_shape(experiment.init_state)
            restored = store.restore(template, experiment.settings, FREE_IN_SAMPLING, step)
        if restored is not None:
            return restored
    raise UserError(f"no checkpoint in {folder}; train first, with --mode=train")
