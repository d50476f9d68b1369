"""Mode train: trains to the last step, from the newest checkpoint if there is one; reports."""

from experiments import build, loop
from experiments.hardware import describe_devices
from experiments.modes import evaluate
from experiments.request import Request
from experiments.workdir import Workdir, read_json


def run(request: Request) -> None:
    """Trains, evaluates the last state and writes the report; a finished run is left as it is."""
    workdir = Workdir(request.workdir)
    experiment = build.experiment(request.config, workdir.prior)
    workdir.create()
    print(describe_devices())
    train_state = loop.train(experiment, workdir, request.command)
    if workdir.report.exists() and read_json(workdir.evaluation)["step"] == int(train_state.step):
        print(f"already trained and evaluated, to step {int(train_state.step):,}")
        evaluate.tell(workdir)
    else:
        evaluate.evaluate(experiment, workdir, train_state)
