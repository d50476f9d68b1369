"""Mode evaluate: the metrics of a checkpoint, and its report."""

from experiments.build import Experiment
from experiments.evaluation.protocols import check_files
from experiments.evaluation.run import evaluate_run
from experiments.pictures import report
from experiments.request import Request
from experiments.sampling import runs
from experiments.sampling.draw import sample_state
from experiments.sampling.log_ratio import make_log_ratio
from experiments.storage.workdir import Workdir, read_json, write_json
from fdrl_jax import parallel
from fdrl_jax.state import TrainState


def run(request: Request) -> None:
    """Computes the metrics of a checkpoint and draws its report anew."""
    experiment, workdir = runs.open_run(request)
    evaluate(experiment, workdir, runs.restore(experiment, workdir, request.checkpoint_step))


def evaluate(experiment: Experiment, workdir: Workdir, train_state: TrainState) -> None:
    """Writes and prints the metrics of a train state, and writes the report."""
    check_files(experiment.inception_weights)
    samples = sample_state(experiment, train_state, experiment.evaluation_samples)
    if not parallel.is_first_process():
        return
    step = int(train_state.step)
    found = evaluate_run(experiment, samples, make_log_ratio(experiment, train_state), step)
    workdir.report.unlink(missing_ok=True)  # Mode train takes it and these metrics for one.
    write_json(workdir.evaluation, {"step": step, "metrics": found.metrics, **found.record})
    report.write(experiment, workdir, train_state, samples, found.metrics, found.nearest)
    tell(workdir)


def tell(workdir: Workdir) -> None:
    """Prints the metrics of the last evaluation, and where the report is."""
    for name, value in read_json(workdir.evaluation, "metrics")["metrics"].items():
        print(f"  {name:38s} {report.format_value(value)}")
    print(f"report: {workdir.report.absolute()}")
