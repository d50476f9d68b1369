"""Starts the process that compiles a plan, and explains what may go wrong with it."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.planning import environment
from experiments.planning.targets import Target
from experiments.settings import Settings

# One of these packages has XLA's compiler for the platform.
_COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-pjrt", "jax-cuda12-pjrt")}
_INSTALL = {"tpu": "python -m pip install 'jax[tpu]'", "gpu": "python -m pip install 'jax[cuda13]'"}


def check_compiler(target: Target) -> None:
    """Checks that XLA's compiler for a target is installed.

    Raises:
      UserError: with the command that installs it.
    """
    packages = _COMPILERS[target.platform]
    # A name may have underscores, and an installation that was interrupted may have none.
    installed = {(p.name or "").replace("_", "-") for p in importlib.metadata.distributions()}
    if installed.isdisjoint(packages):
        raise UserError(
            f"--target={target.text} needs XLA's compiler for it, of the package "
            f"{' or '.join(packages)}: {_INSTALL[target.platform]}"
        )


def run(settings: Settings, data_dir: str, target: Target) -> dict[str, Any]:
    """Compiles a plan in a separate process; see `__main__` for the result.

    Raises:
      UserError: for settings that are not possible, or if the target's compiler does not work.
    """
    check_compiler(target)
    environ = environment.without_devices()
    paths = (str(Path(__file__).resolve().parents[2]), environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, "-m", "experiments.planning", str(os.getpid())],
        input=json.dumps([settings, data_dir, target.text]),
        env={**environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if not done.stdout.endswith("}\n"):
        raise explain(done.stderr, done.returncode, target)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in found:
        raise UserError(found["error"])
    return found


def explain(stderr: str, code: int, target: Target) -> UserError:
    """Returns a UserError for a process that ended without an answer."""
    # JAX adds notes below an error of Python's.
    errors = re.findall(r"^[\w.]+(?:Error|Exception): .+", stderr, re.MULTILINE)
    lines = errors or re.findall(r"\S.*", stderr)
    last = lines[-1][:300] if lines else f"it ended with code {code}"
    return UserError(
        f"--target={target.text}: the compiler of the package "
        f"{' or '.join(_COMPILERS[target.platform])} does not work here: {last}"
    )
