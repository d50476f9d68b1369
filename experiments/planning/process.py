"""Starts the process that compiles a plan, and explains what may go wrong with it."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.planning import environment
from experiments.planning.targets import Target
from experiments.settings import Settings

# One of these packages has XLA's compiler for the platform.
_COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-pjrt", "jax-cuda12-pjrt")}
_INSTALL = {"tpu": "python -m pip install 'jax[tpu]'", "gpu": "python -m pip install 'jax[cuda13]'"}
_MAX_SHOWN = 300


def check_compiler(target: Target) -> None:
    """Checks that XLA's compiler for a target is installed.

    Raises:
      UserError: with the command that installs it.
    """
    packages = _COMPILERS[target.platform]
    if not any(_is_installed(package) for package in packages):
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
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(
            json.dumps({"settings": settings, "data_dir": data_dir, "target": target.text})
        )
        command = [sys.executable, "-m", "experiments.planning", str(request), str(answer)]
        root = Path(__file__).resolve().parents[2]
        environ = environment.without_devices()
        environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(root), environ.get("PYTHONPATH", "")))
        )
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, errors="replace", check=False
        )
        if not answer.exists():
            raise explain(done.stderr, done.returncode, target)
        found: dict[str, Any] = json.loads(answer.read_text())
    if "error" in found:
        raise UserError(found["error"])
    return found


def explain(stderr: str, code: int, target: Target) -> UserError:
    """Returns a UserError for a process that ended without an answer."""
    lock = re.search(r"(/\S*libtpu_lockfile)", stderr)
    if lock:
        return UserError(
            f"--target={target.text}: {lock[1].rstrip('.')} is locked. If no other program uses "
            f"libtpu, a process that died left it behind: rm {lock[1].rstrip('.')}"
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1][:_MAX_SHOWN] if lines else f"it ended with code {code}"
    return UserError(
        f"--target={target.text}: the compiler of the package "
        f"{' or '.join(_COMPILERS[target.platform])} does not work here: {last}"
    )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
