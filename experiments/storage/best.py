"""The checkpoint that is best by the metric during training, kept beside the newest."""

import shutil
from pathlib import Path
from typing import Any

from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir, read_json, write_json
from fdrl_jax import parallel
from fdrl_jax.state import TrainState


def read(workdir: Workdir) -> dict[str, Any] | None:
    """Returns step, metric, value and folder of the best checkpoint, if there is one."""
    record = workdir.best / "best.json"
    keys = ("folder", "metric", "value", "step")
    return read_json(record, *keys) if record.exists() else None


def folder(workdir: Workdir) -> Path | None:
    """Returns the folder of the best checkpoint, as `Checkpoints` reads it."""
    best = read(workdir)
    return workdir.best / best["folder"] if best else None


def replace(
    workdir: Workdir,
    before: dict[str, Any] | None,
    train_state: TrainState,
    settings: dict[str, Any],
    *,
    metric: str,
    value: float,
) -> None:
    """Keeps a state as the best checkpoint, in place of the one before; on every process.

    Args:
      workdir: of the run.
      before: what `read` returned.
      train_state: one replica, on the host.
      settings: the flat config of the run.
      metric: by which it is the best.
      value: of the metric.
    """
    # Each in a folder of its own, to which the record points: a crash leaves the one before,
    # and a run that was rolled back may come to an earlier step.
    number = int(before["folder"]) + 1 if before else 0
    target = workdir.best / str(number)
    if parallel.is_first_process():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    parallel.barrier("place for the best checkpoint")
    store = Checkpoints(target, keep=1)
    store.save(train_state, settings)
    store.close()
    if parallel.is_first_process():
        record = {"folder": str(number), "metric": metric, "value": value}
        write_json(workdir.best / "best.json", {**record, "step": int(train_state.step)})
        if before:
            shutil.rmtree(workdir.best / before["folder"], ignore_errors=True)
