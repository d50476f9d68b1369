"""What the program runs on, and how exactly it multiplies there."""

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


def set_matmul_precision(precision: str) -> None:
    """Sets how accelerators multiply float32 arrays, for this process.

    Unless told otherwise they drop digits: TPUs multiply in bfloat16, NVIDIA's GPUs from Ampere on
    in TF32.

    Args:
      precision: "float32" for all digits, "tensorfloat32" for 10 bits of mantissa, or "bfloat16".
        CPUs always take all digits of the type, and are left alone.
    """
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", precision)


def resolve_precision(precision: str) -> str:
    """Returns the precision that `auto` means on the devices at hand."""
    return "float32" if precision == "auto" else precision
