"""What the program does, mode by mode."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build, loop, pictures, report
from experiments.build import Experiment
from experiments.checkpoints import FREE_IN_SAMPLING, Checkpoints
from experiments.convert import convert as run_conversion
from experiments.errors import UserError
from experiments.evaluation import evaluate as judge
from experiments.hardware import describe_devices
from experiments.sampling import batch_at, sample_state
from experiments.workdir import Workdir, read_json, write_json
from fdrl_jax import rng
from fdrl_jax.state import TrainState

_SHOWN_OF_PRIOR = 100


def train(config: Mapping[str, Any], folder: Path, command: str) -> None:
    """Trains to the last step, from the newest checkpoint if there is one; evaluates; reports."""
    workdir = Workdir(folder)
    experiment = build.experiment(config, workdir.prior)
    workdir.create()
    print(describe_devices())
    train_state = loop.train(experiment, workdir, command)
    if workdir.report.exists() and read_json(workdir.evaluation)["step"] == int(train_state.step):
        print(f"already trained and evaluated, to step {int(train_state.step):,}")
        _tell(workdir)
    else:
        _evaluate(experiment, workdir, train_state)


def prior(config: Mapping[str, Any], folder: Path) -> None:
    """Fits the data-dependent prior, or finds it fitted; draws samples of it beside the data."""
    workdir = Workdir(folder)
    experiment = build.experiment(config, workdir.prior)
    workdir.create()
    positions = np.arange(_SHOWN_OF_PRIOR, dtype=np.int32)
    batch = jax.tree.map(jnp.asarray, batch_at(experiment, positions))
    keys = rng.example_keys(jax.random.key(experiment.seed), rng.Stream.PRIOR, batch["position"])
    x0 = experiment.problem.prior_sample(experiment.constants.prior, keys, batch)
    figure = pictures.prior_and_data(experiment.source, np.asarray(x0))
    print(f"picture: {pictures.save(figure, workdir.pictures / 'prior.png')}")


def sample(
    config: Mapping[str, Any], folder: Path, checkpoint: int | None, num_samples: int | None
) -> None:
    """Writes samples of a checkpoint: an .npz (points; images as uint8 NHWC) and a picture."""
    experiment, workdir = _open(config, folder)
    train_state = _restore(experiment, workdir, checkpoint)
    num = num_samples or experiment.evaluation_samples
    samples = sample_state(experiment, train_state, num)
    path = workdir.samples / f"step_{int(train_state.step)}.npz"
    np.savez_compressed(path, arr_0=pictures.as_stored(experiment.source, samples.refined))
    figure = pictures.samples_and_data(experiment.source, samples)
    picture = pictures.save(figure, path.with_suffix(".png"))
    print(f"{num:,} samples of step {int(train_state.step):,}: {path}\npicture: {picture}")


def evaluate(config: Mapping[str, Any], folder: Path, checkpoint: int | None) -> None:
    """Computes the metrics of a checkpoint and draws its report anew."""
    experiment, workdir = _open(config, folder)
    _evaluate(experiment, workdir, _restore(experiment, workdir, checkpoint))


def convert(
    config: Mapping[str, Any],
    folder: Path,
    checkpoint: Path,
    command: str,
    prior_file: Path | None,
) -> None:
    """Turns a checkpoint of the authors' PyTorch program into a workdir."""
    unknown = run_conversion(config, checkpoint, Workdir(folder), command, prior_file)
    if unknown:
        print(f"no counterpart here, left out: {', '.join(unknown)}")
    print(f"converted: --workdir={folder} samples, evaluates and trains on")


def _open(config: Mapping[str, Any], folder: Path) -> tuple[Experiment, Workdir]:
    """Builds the experiment of a workdir that should exist, and makes none that does not."""
    workdir = Workdir(folder)
    return build.experiment(config, workdir.prior if workdir.root.is_dir() else None), workdir


def _restore(experiment: Experiment, workdir: Workdir, checkpoint: int | None) -> TrainState:
    if workdir.checkpoints.is_dir():
        store = Checkpoints(workdir.checkpoints, experiment.num_checkpoints)
        with contextlib.closing(store):
            template = jax.eval_shape(experiment.init_state)
            restored = store.restore(template, experiment.settings, FREE_IN_SAMPLING, checkpoint)
        if restored is not None:
            return restored
    raise UserError(f"no checkpoint in {workdir.checkpoints}; train first, with --mode=train")


def _evaluate(experiment: Experiment, workdir: Workdir, train_state: TrainState) -> None:
    samples = sample_state(experiment, train_state, experiment.evaluation_samples)
    metrics = judge(experiment.source, samples)
    write_json(workdir.evaluation, {"step": int(train_state.step), "metrics": metrics})
    report.write(experiment, workdir, train_state, samples, metrics)
    _tell(workdir)


def _tell(workdir: Workdir) -> None:
    for name, value in read_json(workdir.evaluation)["metrics"].items():
        print(f"  {name:32s} {report.format_value(value)}")
    print(f"report: {workdir.report.absolute()}")
