"""Features of the processor. This module does not import JAX."""

import contextlib
import functools
import re
from pathlib import Path

# Instructions that affect the speed of neural networks, by their names in Linux.
_NOTABLE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")


@functools.cache
def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the processor's features by their names in Linux; empty if they are not listed."""
    return frozenset(_first(cpuinfo, "flags|Features").split())


@functools.cache
def vendor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the vendor by its name in Linux, such as "AuthenticAMD"; empty if it is unknown."""
    return _first(cpuinfo, "vendor_id")


def describe() -> str:
    """Returns the notable features in one line."""
    return " ".join(name for name in _NOTABLE if name in features()) or "features unknown"


def _first(cpuinfo: Path, names: str) -> str:
    with contextlib.suppress(OSError):
        if found := re.search(rf"^(?:{names})[ \t]*:(.*)", cpuinfo.read_text(), re.MULTILINE):
            return found[1].strip()
    return ""
