"""The plan of a sweep, from a file or from grids on the command line."""

import itertools
import json
import re
import runpy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import command_line
from experiments import settings as settings_lib
from experiments.errors import UserError
from experiments.settings import Settings
from fdrl_jax._names import nearest

Groups = Mapping[str, Mapping[str, Settings]]

_KEYS = ("config", "settings", "groups", "seeds", "metrics")


class Run(NamedTuple):
    """One run of a sweep."""

    group: str  # Its name; a group answers one question.
    name: str  # In the table and the picture.
    seed: int
    varied: Settings  # Values of the config that distinguish it in its group.
    settings: Settings  # All values that differ from the config file, including the seed.
    folder: str  # In the sweep's folder; runs of equal settings in two groups share it.


class Plan(NamedTuple):
    """A sweep."""

    config: str  # The config file of its runs.
    runs: list[Run]
    metrics: tuple[str, ...]  # To show; if empty, all that differ between the runs.


def make(
    config: str,
    groups: Groups,
    *,
    settings: Settings | None = None,
    seeds: Sequence[int] = (0,),
    metrics: Sequence[str] = (),
) -> Plan:
    """Lists the runs of a sweep, and checks all values before any run starts.

    Args:
      config: a config file, optionally with variants after a colon.
      groups: values of the config by dotted key, by name of the run, by group.
      settings: values for all runs.
      seeds: seeds; every run is repeated with each.
      metrics: names in `evaluation.json`, the most important first.

    Raises:
      UserError: for an unknown key of the config or an invalid value, or a seed among the values.
    """
    command_line.config_file(config)
    folders: dict[str, str] = {}
    runs = []
    named = [(group, name, own) for group, of in groups.items() for name, own in of.items()]
    # Seeds are the outer loop, so that a sweep that is stopped halfway has all runs for some seeds.
    for seed, (group, name, varied) in itertools.product(seeds, named):
        given = {**(settings or {}), **varied}
        if "seed" in given:
            raise UserError(
                f"seed={given['seed']}: a sweep repeats every run with each of its seeds; give "
                "them as --seeds=0,1 or, in a sweep file, as seeds"
            )
        merged = {**given, "seed": seed}
        for setting, value in merged.items():
            settings_lib.check(setting, value)
        key = json.dumps(merged, sort_keys=True)
        if key not in folders:
            folders[key] = _folder(group, name, seed, taken=folders.values())
        runs.append(Run(group, name, seed, dict(varied), merged, folders[key]))
    if not runs:
        raise UserError("the sweep has no runs; add groups and seeds")
    return Plan(config, runs, tuple(metrics))


def from_file(path: Path, **instead: Any) -> Plan:
    """Reads a sweep file, which has a `get_sweep()` that returns the arguments of `make`.

    `instead` replaces arguments of the file; "settings" are merged.

    Raises:
      UserError: if the file does not exist, or does not define a sweep.
    """
    if not path.is_file():
        others = [str(p) for p in sorted(path.parent.glob("*.py")) if p.stem != "__init__"]
        raise UserError(f"--sweep={path} does not exist{nearest(str(path), others)}")
    try:
        sweep = dict(runpy.run_path(str(path))["get_sweep"]())
    except Exception as error:  # A user's code may raise anything.
        raise UserError(f"--sweep={path}: {type(error).__name__}: {error}") from error
    for key in sweep:
        if key not in _KEYS:
            raise UserError(f"--sweep={path}: unknown key {key!r}{nearest(key, _KEYS)}")
    for key in ("config", "groups"):
        if key not in sweep:
            raise UserError(f"--sweep={path}: missing key {key!r}")
    settings = {**sweep.get("settings", {}), **instead.pop("settings", {})}
    return make(**{**sweep, **instead, "settings": settings})


def grid(specs: Sequence[str]) -> Groups:
    """Returns the product of grids as one group.

    A grid is "config.KEY=VALUE,VALUE,..."; commas within parentheses do not separate values.

    Raises:
      UserError: for a grid without a key or values, or two grids of one key.
    """
    axes: dict[str, list[Any]] = {}
    for spec in specs:
        key, equals, values = spec.partition("=")
        if not (equals and values):
            raise UserError(f"--grid {spec} must be KEY=VALUE,VALUE such as flow.num_steps=20,40")
        key = key.removeprefix("config.")
        if key in axes:
            raise UserError(f"--grid {spec}: another --grid has {key}; give all its values in one")
        axes[key] = [command_line.parse_value(key, value) for value in _split(values)]
    points = (dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values()))
    named = {", ".join(f"{k}={v}" for k, v in point.items()): point for point in points}
    return {", ".join(axes): named}


def _split(values: str) -> list[str]:
    """Splits at the commas outside all parentheses."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _folder(group: str, name: str, seed: int, taken: Collection[str]) -> str:
    """Returns a folder for a run; a number is added if the name is taken."""
    stem = "/".join(re.sub(r"[^\w.=+-]+", "_", part).strip("_") for part in (group, name))
    stems = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    return next(f for stem in stems if (f := f"{stem}/seed_{seed}") not in taken)
