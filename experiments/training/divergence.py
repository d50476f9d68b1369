"""What to do when training produces numbers that are of no use."""

import logging

import numpy as np

from experiments.build import rollbacks
from experiments.build.options import Guard
from experiments.errors import DivergedError
from fdrl_jax.state import TrainState


def check(numbers: np.ndarray, values: dict[str, np.ndarray], output: str, guard: Guard) -> None:
    """Raises if a metric left its bounds.

    Args:
      numbers: steps, [T].
      values: metrics at these steps, [T] each.
      output: what the network returns, as `Training.output` has it.
      guard: the bounds.

    Raises:
      DivergedError: naming the first such step and metric.
    """
    trouble = find_trouble(numbers, values, output, guard)
    if trouble is not None:
        raise DivergedError(f"training diverged: {trouble}", last_step=int(numbers[-1]))


def find_trouble(
    numbers: np.ndarray, values: dict[str, np.ndarray], output: str, guard: Guard
) -> str | None:
    """Says at which step which metric left its bounds first, or nothing; arguments as above."""
    limit = guard.max_log_ratio if output == "log_ratio" else guard.max_ratio
    limits = dict.fromkeys(("loss", "grad_norm", "drift_norm"), np.inf)
    limits |= dict.fromkeys(("output_real", "output_flowed"), limit)
    found = []
    for name, bound in limits.items():
        if name not in values:
            continue  # A metric of density ratios alone.
        # "not within" and not "beyond", so that NaN counts.
        bad = ~(np.abs(values[name]) < bound)
        if bad.any():
            first = int(np.argmax(bad))
            found.append((int(numbers[first]), name, float(values[name][first])))
    if not found:
        return None
    step, name, value = min(found, key=lambda item: item[0])
    if np.isfinite(value):
        kind = "log ratio" if output == "log_ratio" else "ratio"
        return f"the mean {kind} ({name}) saturated at {value:.4g} at step {step}"
    return f"{name} is {value} at step {step}"


def recover(
    error: DivergedError, guard: Guard, diverged: TrainState, restored: TrainState, has_saved: bool
) -> TrainState:
    """Returns the state to go on from: the last good one, past the batches since, more slowly.

    What it returns follows from its arguments, so a run that is cut before its next checkpoint
    diverges and recovers in the same way again.

    Args:
      error: from `check`.
      guard: what to do.
      diverged: the state that the diverged attempt started from.
      restored: the newest checkpoint, or the state before the first step.
      has_saved: whether there is a checkpoint.

    Raises:
      DivergedError: if the run should stop, or has been rolled back often enough.
    """
    done, step = int(rollbacks.of(diverged).num), int(restored.step)
    if guard.on_divergence == "stop" or done >= guard.max_rollbacks:
        kept = (
            f"the last good checkpoint is of step {step}"
            if has_saved
            else "there is no checkpoint yet"
        )
        tried = f" after {done} rollbacks" if done else ""
        raise DivergedError(
            f"{error}{tried}; {kept}. Try a smaller optimizer.learning_rate or flow.step_size, "
            "optimizer.clip_norm=1, a larger train.batch_size, loss.name=lr, or "
            "train.on_divergence=rollback",
            last_step=error.last_step,
        ) from error
    recovered = rollbacks.roll_back(
        restored,
        rollbacks.of(diverged),
        num_skipped=error.last_step - step,
        learning_rate_factor=guard.rollback_lr_factor,
    )
    logging.getLogger("fdrl").warning(
        "%s; rollback %d of %d: going on from step %d, without the %d batches since, at %.3g times "
        "the learning rate",
        error,
        done + 1,
        guard.max_rollbacks,
        step,
        error.last_step - step,
        float(rollbacks.of(recovered).learning_rate_scale),
    )
    return recovered
