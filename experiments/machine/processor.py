"""Features of the processor. This module does not import JAX."""

import functools
from pathlib import Path

# Instructions that affect the speed of neural networks, by their names in Linux.
_NOTABLE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")


@functools.cache
def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the processor's features by their names in Linux; empty if they are not listed."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def describe() -> str:
    """Returns the notable features in one line."""
    return " ".join(name for name in _NOTABLE if name in features()) or "features unknown"
