"""The devices, and the precision of their computations."""

import logging
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import UserError
from experiments.machine import processor, xla_flags
from fdrl_jax.networks import convolve

_logger = logging.getLogger("fdrl")
_TOLERANCE = 2e-2  # For a bfloat16 result, relative to its largest entry: a few units of 2^-8.


def describe_devices() -> str:
    """Returns a line with the devices, their memory if known, and versions."""
    own = jax.local_devices()[0]  # Of another process's device, the memory is not known.
    kind = own.device_kind
    if own.platform == "cpu":
        kind = f"{kind} ({os.cpu_count()} cores; {processor.describe()})"
    limit = (own.memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / 2**30:.0f} GiB each" if limit else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"devices: {jax.device_count()} x {kind}{memory}{processes}; jax {jax.__version__}, "
        f"jaxlib {version('jaxlib')}, Python {platform.python_version()}"
    )


def prepare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sets the precision with which this process multiplies float32 arrays to that of a run.

    By default, accelerators round the inputs: TPUs multiply in bfloat16, and NVIDIA GPUs since
    Ampere in TF32. "tensorfloat32" has 10 bits of mantissa. CPUs always use full precision.

    Returns the settings as `resolved`, and raises as it does.
    """
    used = resolved(settings)
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", used["precision"])
    return used


def resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the precision in use here, never "auto"; warns if bfloat16 is slow.

    "auto" means bfloat16 if it is fast on the device, and float32 otherwise.

    Raises:
      UserError: if the kernels for bfloat16 do not compute correctly on this machine.
    """
    platform, precision = jax.default_backend(), settings["precision"]
    slow = _why_bfloat16_is_slow(platform)
    if precision == "auto":
        precision = "float32" if slow else "bfloat16"
    if precision == "bfloat16":
        if slow:
            _logger.warning("precision=bfloat16 is slower here than float32, because %s.", slow)
        if platform == "cpu" and xla_flags.uses_onednn():
            check_bfloat16()
    return {**settings, "precision": precision}


def check_bfloat16() -> None:
    """Compares a bfloat16 convolution and its gradients with float64 on this machine.

    oneDNN's kernels depend on the processor, and some are wrong; see `networks.convolution_cpu`.
    The check takes a second or two, once per process.

    Raises:
      UserError: if a result is wrong, or if the persistent compilation cache is on, which makes
        these kernels crash.
    """
    instead = f"Use precision=float32, or unset {xla_flags.ONEDNN_FLAG} in XLA_FLAGS."
    config: Any = jax.config  # Its attributes are created at run time.
    if config.jax_compilation_cache_dir:
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
    for name, error in convolution_errors(convolve, x, kernel, g).items():
        if not error < _TOLERANCE:  # Also for NaN.
            raise UserError(
                f"bfloat16 convolutions are wrong on this processor: the {name} differs by "
                f"{error:.1g} of its largest entry. {instead}"
            )


def convolution_errors(
    convolution: Callable[[jax.Array, jax.Array], jax.Array],
    x: np.ndarray,
    kernel: np.ndarray,
    g: np.ndarray,
    stride: int = 1,
) -> dict[str, float]:
    """Returns the errors of a convolution and its gradients, against float64.

    They are the largest ones, relative to the largest entry, for images x [B, H, W, C], a kernel
    [k, k, C, D], and a gradient to the output g [B, H / stride, W / stride, D], rounded up.
    """

    @jax.jit
    def computed(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        output, pullback = jax.vjp(convolution, x, kernel)
        return output, *pullback(g)

    names = ("output", "gradient to the input", "gradient to the kernel")
    wanted = _exact_convolution(stride, *(a.astype(np.float64) for a in (x, kernel, g)))
    return {
        name: float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
        for name, got, want in zip(names, computed(x, kernel, g), wanted, strict=True)
    }


def _why_bfloat16_is_slow(platform: str) -> str | None:
    """Returns why bfloat16 is slower than float32 on the device, or `None` if it is not."""
    if platform == "cpu" and not xla_flags.uses_onednn():
        return xla_flags.why_not_onednn() or "the fast kernels were not switched on at the start"
    if platform == "gpu":
        major = getattr(jax.devices()[0], "compute_capability", "0").partition(".")[0]
        if major.isdigit() and int(major) < 8:
            return "the GPU is older than NVIDIA's Ampere generation"
    return None


def _exact_convolution(
    stride: int, x: np.ndarray, kernel: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convolution and its gradients, computed from the definition."""
    pad = kernel.shape[0] // 2
    height, width = g.shape[1:3]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    output, gx, gk = np.zeros_like(g), np.zeros_like(padded), np.zeros_like(kernel)
    for row, column in np.ndindex(kernel.shape[:2]):
        x_there, gx_there = (
            a[:, row::stride, column::stride][:, :height, :width] for a in (padded, gx)
        )
        output += x_there @ kernel[row, column]
        gx_there += g @ kernel[row, column].T
        gk[row, column] = np.tensordot(x_there, g, ([0, 1, 2], [0, 1, 2]))
    return output, gx[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], gk
