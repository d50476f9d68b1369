"""What each key of a config may hold. Checked once, before anything is built."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from experiments.data import registry
from experiments.errors import UserError
from fdrl_jax import bregman, divergences, networks
from fdrl_jax.names import nearest

# A rule takes a value and returns what is wrong with it, or nothing.
Rule = Callable[[Any], str | None]


def _whole(low: int = 0, high: int = 2**31 - 1) -> Rule:
    def rule(value: Any) -> str | None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and low <= value <= high else f"a whole number from {low} to {high}"

    return rule


def _real(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
    limits = f"{'above' if above else 'at least'} {low:g}"
    if high < math.inf:
        limits += f" and {'below' if below else 'at most'} {high:g}"

    def rule(value: Any) -> str | None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = (
            number
            and math.isfinite(value)
            and (value > low if above else value >= low)
            and (value < high if below else value <= high)
        )
        return None if fits else f"a finite number {limits}"

    return rule


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a text"


def _file_name(value: Any) -> str | None:
    fits = isinstance(value, str) and "/" not in value and not value.startswith(".")
    return None if fits else "a name for a file, without a folder"


def _choice(*allowed: str) -> Rule:
    def rule(value: Any) -> str | None:
        return (
            None
            if value in allowed
            else f"one of {', '.join(allowed)}{nearest(str(value), allowed)}"
        )

    return rule


def _increasing(value: Any) -> str | None:
    steps: list[Any] = list(value) if isinstance(value, (tuple, list)) else [None]
    fits = all(_whole(1)(s) is None for s in steps) and steps == sorted(set(steps))
    return None if fits else "increasing step numbers such as (80000, 90000)"


def _lengths(value: Any) -> str | None:
    lengths: list[Any] = list(value) if isinstance(value, (tuple, list)) else [None]
    fits = all(_whole()(n) is None for n in lengths) and lengths == sorted(set(lengths))
    return None if fits else "increasing lengths of the flow such as (0, 50, 100, 120)"


def _sizes(value: Any) -> str | None:
    fits = (
        isinstance(value, (tuple, list))
        and value
        and all(_whole(1, 65_536)(s) is None for s in value)
    )
    return None if fits else "one or more positive whole numbers such as (64, 64)"


def _blocks(value: Any) -> str | None:
    fits = isinstance(value, (tuple, list)) and all(
        isinstance(block, (tuple, list))
        and len(block) == 2
        and _whole(1, 65_536)(block[0]) is None
        and _whole(1, 8)(block[1]) is None
        for block in value
    )
    return None if fits else "pairs of channels and stride such as ((32, 1), (64, 2))"


def _divergence(value: Any) -> str | None:
    try:
        divergences.get(value)
    except ValueError as error:
        return f"a divergence: {error}"
    except TypeError:
        return f"a divergence: {', '.join(divergences.REGISTRY)}"
    return None


RULES: dict[str, Rule] = {
    "seed": _whole(),
    "precision": _choice("float32", "bfloat16"),
    "data.name": registry.objection,
    "data.dir": _text,
    "data.split": _text,
    "data.held_out_split": _text,
    "data.num_held_out": _whole(1),
    "data.source_class": _text,
    "data.target_class": _text,
    "data.center_crop": _whole(0, 65_536),
    "data.resize": _whole(0, 65_536),
    "data.image_size": _whole(0, 65_536),
    "data.keep_aspect": _flag,
    "data.channels": lambda value: None if value in (1, 3) else "1 (grey) or 3 (colour)",
    "data.random_flip": _flag,
    "data.dequantisation": _real(0.0, 1.0),
    "data.on_error": _choice("stop", "skip"),
    "data.in_memory_megabytes": _whole(0),
    "data.num_workers": _whole(0, 1_000),
    "data.num_threads": _whole(1, 1_000),
    "data.prefetch_batches": _whole(1, 10_000),
    "network.name": _choice("auto", "mlp", "resnet", *networks.SPECS),
    "network.hidden_sizes": _sizes,
    "network.width": _whole(0, 65_536),
    "network.blocks": _blocks,
    "network.attention": _flag,
    "network.attention_after": _whole(1, 1_000),
    "network.spectral_norm": _flag,
    "network.remat": _flag,
    "prior.name": _choice("normal", "uniform", "data_dependent", "source"),
    "prior.scale": _real(0.0, above=True),
    "prior.jitter": _real(0.0),
    "prior.rank": _whole(0, 2**20),
    "flow.num_steps": _whole(1, 100_000),
    "flow.num_refine_steps": _whole(0, 100_000),
    "flow.step_size": _real(0.0, above=True),
    "flow.noise_scale": _real(0.0),
    "loss.name": _choice(*bregman.REGISTRY),
    "loss.divergence": _divergence,
    "optimizer.learning_rate": _real(0.0, 10.0, above=True),
    "optimizer.b1": _real(0.0, 1.0, below=True),
    "optimizer.b2": _real(0.0, 1.0, below=True),
    "optimizer.schedule": _choice("constant", "piecewise", "cosine"),
    "optimizer.boundaries": _increasing,
    "optimizer.decay": _real(0.0, 1.0, above=True),
    "optimizer.clip_norm": _real(0.0),
    "train.num_steps": _whole(1),
    "train.batch_size": _whole(1, 2**20),
    "train.ema_rate": _real(0.0, 1.0, below=True),
    "train.steps_per_dispatch": _whole(1, 10_000),
    "train.num_micro_batches": _whole(1, 2**20),
    "train.max_log_ratio": _real(0.0, above=True),
    "train.max_ratio": _real(0.0, above=True),
    "train.on_divergence": _choice("stop", "rollback"),
    "train.rollback_lr_factor": _real(0.0, 1.0, above=True),
    "train.max_rollbacks": _whole(0, 1_000),
    "log.every_steps": _whole(1),
    "log.tensorboard": _flag,
    "log.wandb": _choice("off", "offline", "online"),
    "checkpoint.every_steps": _whole(1),
    "checkpoint.keep": _whole(1, 1_000),
    "snapshot.every_steps": _whole(1),
    "snapshot.num_samples": _whole(1, 100_000),
    "sample.weights": _choice("ema", "raw"),
    "sample.format": _choice("npz", "folder", "zip"),
    "sample.name": _file_name,
    "curve.over": _choice("length", "step"),
    "curve.lengths": _lengths,
    "evaluate.every_steps": _whole(),
    "evaluate.num_judged_samples": _whole(2, 10_000_000),
    "evaluate.num_samples": _whole(2, 10_000_000),
    "evaluate.batch_size": _whole(1, 2**20),
}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested keys to dotted ones: {"flow": {"num_steps": 1}} -> {"flow.num_steps": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested


def check(config: Mapping[str, Any]) -> None:
    """Checks every value of a config.

    Raises:
      UserError: naming each key that is unknown, missing or out of its range, and what is allowed.
    """
    flat = flatten(config)
    complaints = [f"unknown key {key!r}{nearest(key, RULES)}" for key in flat if key not in RULES]
    complaints += [f"missing key {key!r}" for key in RULES if key not in flat]
    for key in RULES.keys() & flat.keys():
        wrong = RULES[key](flat[key])
        if wrong:
            complaints.append(f"{key} must be {wrong}, got {flat[key]!r}")
    if complaints:
        raise UserError("config: " + "; ".join(sorted(complaints)))
