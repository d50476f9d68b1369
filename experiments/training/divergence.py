"""Detects divergence of training, and recovers from it."""

import logging

import numpy as np

from experiments.build import rollbacks
from experiments.errors import DivergedError
from experiments.settings import Settings
from fdrl_jax.training.state import TrainState


def find_trouble(
    numbers: np.ndarray, values: dict[str, np.ndarray], output: str, settings: Settings
) -> str | None:
    """Returns a message about the first metric that exceeded its limits, or `None`.

    Values are those at the steps `numbers`, [T] each; `output` is what the network returns.
    """
    limit: float = settings["train.max_log_ratio" if output == "log_ratio" else "train.max_ratio"]
    limits = dict.fromkeys(("loss", "grad_norm", "drift_norm"), np.inf)
    limits |= dict.fromkeys(("output_real", "output_flowed"), limit)
    found = []
    for name, bound in limits.items():
        if name not in values:
            continue  # A metric of density ratios only.
        # "not within" instead of "beyond", so that it also holds for NaN.
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
    error: DivergedError, settings: Settings, diverged: TrainState, good: TrainState
) -> TrainState:
    """Returns the state to resume from: the last good state, with skipped batches and a lower rate.

    The result depends only on the arguments. A run that is killed before its next checkpoint
    therefore diverges and recovers in the same way again.

    Raises:
      DivergedError: if the run should stop, or has reached its number of rollbacks.
    """
    before, step = rollbacks.of(diverged), int(good.step)
    done, most = int(before.num), settings["train.max_rollbacks"]
    if settings["train.on_divergence"] == "stop" or done >= most:
        kept = (
            f"the last good checkpoint is of step {step}" if step else "there is no checkpoint yet"
        )
        tried = f" after {done} rollbacks" if done else ""
        raise DivergedError(
            f"{error}{tried}; {kept}. Try {_remedies(settings)}", last_step=error.last_step
        ) from error
    num_skipped = error.last_step - step
    recovered = rollbacks.roll_back(good, before, num_skipped, settings["train.rollback_lr_factor"])
    logging.getLogger("fdrl").warning(
        f"{error}; rollback {done + 1} of {most}: resuming from step {step}, skipping the "
        f"{num_skipped} batches since then, with "
        f"{rollbacks.of(recovered).learning_rate_scale:.3g} times the learning rate"
    )
    return recovered


def _remedies(settings: Settings) -> str:
    """Returns what may prevent a divergence, without what is set already."""
    remedies = [
        *["loss.gradient_penalty=0.1"] * (not settings["loss.gradient_penalty"]),
        "a smaller optimizer.learning_rate or flow.step_size",
        *["optimizer.clip_norm=1"] * (not settings["optimizer.clip_norm"]),
        *["loss.name=lr"] * (settings["loss.name"] != "lr"),
        *["train.on_divergence=rollback"] * (settings["train.on_divergence"] == "stop"),
    ]
    return ", ".join([*remedies, "or a larger train.batch_size"])
