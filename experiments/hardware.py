"""What the program runs on, in words."""

import os
import platform
from importlib.metadata import version

import jax


def describe_devices() -> str:
    """Returns one line: devices, their memory where known, and versions."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"{kind} ({os.cpu_count()} cores)"
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / 2**30:.0f} GiB each" if limit else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"devices: {len(devices)} x {kind}{memory}{processes}; jax {jax.__version__}, "
        f"jaxlib {version('jaxlib')}, Python {platform.python_version()}"
    )
