"""What the program runs on, and how exactly it multiplies there."""

import logging
import os
import platform
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import UserError
from experiments.machine import processor, xla_flags
from fdrl_jax.networks import convolve

_logger = logging.getLogger("fdrl")
_TOLERANCE = 2e-2  # Of a bfloat16 result, relative to its largest entry: some units of 2^-8.


def describe_devices() -> str:
    """Returns one line: devices, their memory where known, and versions."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"{kind} ({os.cpu_count()} cores; {processor.describe()})"
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


def resolve_precision(precision: str, platform: str) -> str:
    """Returns the precision that a run uses, and logs a warning where bfloat16 is slow.

    Args:
      precision: "auto", or any precision that `set_matmul_precision` accepts. "auto" is bfloat16
        where the device is fast in it, else float32.
      platform: "cpu", "gpu" or "tpu", as `jax.default_backend()` names it.

    Returns:
      The precision, never "auto".

    Raises:
      UserError: if bfloat16 would run on kernels that do not compute correctly here.
    """
    slow = _why_bfloat16_is_slow(platform)
    if precision == "auto":
        precision = "float32" if slow else "bfloat16"
    if precision == "bfloat16":
        if slow:
            _logger.warning("precision=bfloat16 is slower here than float32, because %s.", slow)
        if platform == "cpu" and xla_flags.uses_onednn():
            check_bfloat16()
    return precision


def check_bfloat16() -> None:
    """Compares a bfloat16 convolution and its gradients with float64 on this machine.

    oneDNN's kernels depend on the processor, and some are wrong; see `networks.convolution_cpu`.
    The check costs a second or two, once per process.

    Raises:
      UserError: if a result is wrong, or if the persistent compilation cache is on, with which
        these kernels crash the process.
    """
    instead = f"Use precision=float32, or unset {xla_flags.ONEDNN_FLAG} in XLA_FLAGS."
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        raise UserError(
            "the fast bfloat16 kernels crash together with JAX's persistent compilation cache. "
            f"Unset JAX_COMPILATION_CACHE_DIR. {instead}"
        )
    random = np.random.default_rng(0)
    # The batch of 8 is one for which oneDNN's own kernel gradient is wrong.
    x, kernel, g = (
        random.standard_normal(shape).astype(jnp.bfloat16)
        for shape in ((8, 8, 8, 32), (3, 3, 32, 64), (8, 8, 8, 64))
    )

    @jax.jit
    def computed(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        output, pullback = jax.vjp(convolve, x, kernel)
        return output, *pullback(g)

    names = ("output", "gradient to the input", "gradient to the kernel")
    wanted = _exact_convolution(*(a.astype(np.float64) for a in (x, kernel, g)))
    for name, got, want in zip(names, computed(x, kernel, g), wanted, strict=True):
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        if not error < _TOLERANCE:  # NaN is no smaller.
            raise UserError(
                f"bfloat16 convolutions are wrong on this processor: the {name} differs by "
                f"{error:.1g} of its largest entry. {instead}"
            )


def _why_bfloat16_is_slow(platform: str) -> str | None:
    """Returns why float32 is faster than bfloat16 on the device, or `None` where it is not."""
    if platform == "cpu":
        if xla_flags.uses_onednn():
            return None
        return xla_flags.onednn_objection() or "the fast kernels were not switched on at the start"
    if platform == "gpu":
        capability = getattr(jax.devices()[0], "compute_capability", "0")
        if capability.partition(".")[0].isdigit() and int(capability.partition(".")[0]) < 8:
            return "the GPU is older than NVIDIA's Ampere generation"
    return None


def _exact_convolution(
    x: np.ndarray, kernel: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A 3x3 convolution of stride 1 and its gradients, by their definition."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    output, gx, gk = np.zeros_like(g), np.zeros_like(padded), np.zeros_like(kernel)
    for row in range(3):
        for column in range(3):
            window = (slice(None), slice(row, row + height), slice(column, column + width))
            output += padded[window] @ kernel[row, column]
            gx[window] += g @ kernel[row, column].T
            gk[row, column] = np.einsum("bhwi,bhwo->io", padded[window], g)
    return output, gx[:, 1:-1, 1:-1], gk
