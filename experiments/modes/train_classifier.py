"""Mode train_classifier: a classifier for class-conditional samples and for metrics."""

from experiments import build, run
from experiments.classifiers import evaluate_classifier
from experiments.command_line import Command
from experiments.files import write_json
from experiments.machine import hardware, memory
from experiments.modes.creation import load_data, wanted_settings
from experiments.training import loop
from fdrl_jax import parallel


def run_mode(command: Command) -> None:
    """Trains to the last step and prints the accuracy on held-out images."""
    with run.locked_folder(command.folder):
        opened = None
        if run.exists(command.folder):
            opened = run.open_run(command.folder, "classifier")
        wanted = wanted_settings(command, opened)
        if opened is not None:
            wanted = opened.resumed(wanted)
        hardware.set_matmul_precision(wanted["precision"])
        source = load_data(wanted, command.data_dir)
        if opened is not None:
            opened.check_data(source)
        training = build.classifier_training(wanted, source)
        memory.check_state(training.state_shapes(), training.constants)
        if opened is None:
            opened = run.create(command.folder, "classifier", wanted, source, None, command.text)
        if parallel.is_first_process():
            print(hardware.describe_devices())
            opened.log_command(command.text)
        state = loop.train(training, opened)
        if parallel.is_first_process():
            metrics = evaluate_classifier(training, state)
            record = {"step": int(state.step), "metrics": metrics}
            write_json(opened.root / "accuracy.json", record)
            for name, value in metrics.items():
                print(f"  {name:32s} {value:.4g}")
            print(f"classifier: --classifier={opened.root}")
