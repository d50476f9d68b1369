"""Mode export: writes the sampler of a checkpoint to a folder that needs only JAX."""

from experiments import export, records
from experiments.command_line import Command
from experiments.sampling.opened import open_checkpoint
from fdrl_jax.training import parallel


def run_mode(command: Command) -> None:
    """Writes StableHLO, safetensors, a loader and a model card to `export/step_N` of the run.

    If settings of the flow differ from those of the run, the folder has another name.
    """
    opened = open_checkpoint(command)
    if not parallel.is_first_process():
        return
    key = records.key_of(opened, None)
    folder = opened.run.exports / records.name_of(opened, key)
    platforms = command.flags["platforms"]
    evaluation = records.newest_of(opened.run.evaluations, key)
    export.write(opened.experiment, opened.checkpoint.state, folder, platforms, evaluation)
    print(f"sampler of step {opened.step:,}: {folder}")
    print(f"note: {export.LIFETIME}")
    print(f"try: python {folder / 'load_sampler.py'} --num_samples=100 --out=samples.npz")
