"""Mode train: trains to the last step, resuming from the newest checkpoint, and evaluates."""

from experiments import advice, build, run
from experiments.command_line import Command
from experiments.machine.hardware import describe_devices
from experiments.modes.creation import create_or_resume
from experiments.training import hooks, loop
from fdrl_jax.training import parallel


def run_mode(command: Command) -> None:
    """Trains, evaluates the last state and writes the report. A finished run is not changed."""
    with run.locked_folder(command.folder, creates=command.config is not None):
        created, experiment = create_or_resume(command)
        if parallel.is_first_process():
            print(describe_devices())
            created.log_command(command.text)
            advice.warn(experiment, created.metric_reference)
        loop.train(build.ratio_training(experiment), created, hooks.hooks_of(experiment, created))
        # Imported here because it takes seconds, and training should start immediately.
        from experiments.modes import evaluate

        evaluate.evaluate_last(created, experiment)
