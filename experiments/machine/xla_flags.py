"""Compiler flags that make JAX's CPU backend faster, set before JAX starts.

Call ``set_cpu_flags`` before anything runs on a device: XLA reads its flags once, when its backend
starts. This file imports nothing of JAX.
"""

import importlib.metadata
import os
import re
from collections.abc import MutableMapping

# Leaves convolutions to the older kernels, which compute weight gradients about twice as fast.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=individual_dot"

# An unknown flag aborts the process, so only versions that were tried get it: first, and first not.
_KNOWN_SINCE = (0, 10, 2)
_UNTRIED_SINCE = (0, 13)


def set_cpu_flags(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Sets the flag in ``XLA_FLAGS`` where it is known to be safe.

    A variable that is already there stays as it is, even an empty one, so ``XLA_FLAGS= python ...``
    runs without the flag.

    Args:
        environ: the environment to change.

    Returns:
        Whether the flag was set.
    """
    if "XLA_FLAGS" in environ or not _is_known(_installed_jaxlib()):
        return False
    environ["XLA_FLAGS"] = CPU_FLAG
    return True


def _installed_jaxlib() -> str:
    try:
        return importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_known(version: str) -> bool:
    release = re.match(r"\d+(\.\d+)*", version)
    if release is None:
        return False
    return _KNOWN_SINCE <= tuple(map(int, release.group().split("."))) < _UNTRIED_SINCE
