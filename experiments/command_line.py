"""From the command line to parsed flags, with errors that say what to write instead."""

import re
from pathlib import Path
from typing import Any

from absl import flags

from experiments import schema
from experiments.errors import UserError
from experiments.modes import MODES, example
from fdrl_jax.names import nearest

_CONFIGS = Path(__file__).resolve().parent.parent / "configs"
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def parse(argv: list[str]) -> list[str]:
    """Parses absl's flags, the config file and the overrides of its keys.

    A bare name is a config of the project's own, wherever it is installed: `--config=swissroll`.
    Without `--config`, the config of the run in the workdir is taken.

    Raises:
      UserError: for an unknown flag, mode, file or key, or a value of the wrong type.
    """
    argv = _with_own_config(_with_saved_config(argv))
    check_config_file(_value(argv, "config"))
    _check_keys(argv)
    try:
        return list(flags.FLAGS(argv))
    except Exception as error:  # A config file or a parser of values may raise anything.
        raise UserError(_explain(error)) from error


def check_needed(mode: str, config: Any, workdir: str | None, checkpoint: str | None) -> None:
    """Checks that the flags that a mode needs are there.

    Raises:
      UserError: naming what is missing, with an example.
    """
    if mode not in MODES:
        hint = nearest(mode, MODES) or "."
        raise UserError(f"--mode={mode} is unknown{hint} Allowed: {', '.join(MODES)}")
    if config is None:
        raise UserError(f"--config=FILE.py is missing: {example('train')}")
    if workdir is None and MODES[mode].needs_workdir:
        raise UserError(f"--workdir=DIR, the folder of the run, is missing: {example(mode)}")
    if checkpoint is None and MODES[mode].needs_checkpoint:
        raise UserError(f"--checkpoint=FILE.pt, the file to read, is missing: {example(mode)}")


def check_config_file(config: str | None) -> None:
    """Checks that a config file is there; variants may follow its name after a colon.

    Raises:
      UserError: naming the nearest file and those beside it.
    """
    if config is None:
        return
    path = Path(config.partition(":")[0])
    if not path.is_file():
        others = [str(p) for p in sorted(path.parent.glob("*.py")) if p.stem != "__init__"]
        there = f"; there are {', '.join(others)}" if others else ""
        raise UserError(f"--config={path} does not exist{nearest(str(path), others)}{there}")


def _with_saved_config(argv: list[str]) -> list[str]:
    workdir = _value(argv, "workdir")
    saved = workdir is not None and (Path(workdir) / "config.json").exists()
    if _value(argv, "config") is None and saved:
        return [argv[0], f"--config={_CONFIGS / 'saved.py'}:{workdir}", *argv[1:]]
    return argv


def _with_own_config(argv: list[str]) -> list[str]:
    value = _value(argv, "config") or ""
    name, colon, variant = value.partition(":")
    file = _CONFIGS / f"{name}.py"
    if not re.fullmatch(r"\w+", name) or not file.is_file():
        return argv
    index = next(i for i, a in enumerate(argv) if re.fullmatch(r"--?config(=.*)?", a))
    rest = argv[index + 1 :] if "=" in argv[index] else argv[index + 2 :]
    return [*argv[:index], f"--config={file}{colon}{variant}", *rest]


def _value(argv: list[str], name: str) -> str | None:
    """Returns the value of a flag before the flags are parsed."""
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def _check_keys(argv: list[str]) -> None:
    sections = {key.rpartition(".")[0] for key in schema.RULES}
    for argument in argv:
        match = _OVERRIDE.match(argument)
        if not match or match[1] in schema.RULES:
            continue
        if match[1] in sections:
            keys = ", ".join(key for key in schema.RULES if key.startswith(match[1] + "."))
            raise UserError(f"--config.{match[1]} is a section; its keys are {keys}")
        raise UserError(f"--config.{match[1]}: unknown key{nearest(match[1], schema.RULES)}")


def _explain(error: Exception) -> str:
    """Says in one line what is wrong with a value, and what the key may hold."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    match = re.search(r"flag --(?:no)?config\.([^=]+)=(.*?): ", text)
    if match and match[1] in schema.RULES:
        allowed = schema.RULES[match[1]](match[2])
        if allowed:
            return f"config: {match[1]} must be {allowed}, got {match[2]!r}"
    if "Error whilst parsing config file" in text:
        return f"config: {str(error).strip().splitlines()[-1]}"
    return text
