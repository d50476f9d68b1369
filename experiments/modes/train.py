"""Mode train: trains to the last step, from the newest checkpoint if there is one; reports."""

import contextlib

from experiments import build
from experiments.machine.hardware import describe_devices
from experiments.request import Request
from experiments.storage.workdir import Workdir, read_json
from experiments.training import loop, memory
from fdrl_jax import parallel


def run(request: Request) -> None:
    """Trains, evaluates the last state and writes the report; a finished run is left as it is."""
    workdir = Workdir(request.workdir)
    experiment = build.experiment(request.config, workdir.prior)
    memory.check_state(experiment)
    if experiment.inception_weights:
        from experiments.evaluation.protocols import check_files

        check_files(experiment.inception_weights)
    workdir.create()
    first = parallel.is_first_process()
    with workdir.lock() if first else contextlib.nullcontext():
        if first:
            print(describe_devices())
        train_state = loop.train(experiment, workdir, request.command)
        # Only now: judges and pictures take seconds to import, and training should start at once.
        from experiments.modes import evaluate

        step = int(train_state.step)
        if not workdir.report.exists() or read_json(workdir.evaluation, "step")["step"] != step:
            evaluate.evaluate(experiment, workdir, train_state)
        elif first:
            print(f"already trained and evaluated, to step {step:,}")
            evaluate.show(workdir)
