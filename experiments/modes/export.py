"""Mode export: a checkpoint's sampler as a folder that needs JAX alone."""

from experiments import export
from experiments.request import Request
from experiments.sampling import runs
from fdrl_jax import parallel


def run(request: Request) -> None:
    """Writes StableHLO, arrays, a loader and metadata into `export/step_N` of the workdir."""
    experiment, workdir = runs.open_run(request)
    train_state = runs.restore(experiment, workdir, request.checkpoint_step)
    if not parallel.is_first_process():
        return
    folder = workdir.root / "export" / f"step_{int(train_state.step)}"
    export.write(experiment, train_state, folder, request.platforms)
    print(f"sampler of step {int(train_state.step):,}: {folder}")
    print(f"note: {export.LIFETIME}")
    print(f"try: python {folder / 'load_sampler.py'} --num_samples=100 --out=samples.npz")
