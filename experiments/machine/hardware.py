"""The devices, and the precision of their computations."""

import logging
import os
import platform
from collections.abc import Mapping
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
    """Sets the precision with which accelerators multiply float32 arrays, for this process.

    By default, accelerators round the inputs: TPUs multiply in bfloat16, and NVIDIA GPUs since
    Ampere in TF32.

    Args:
      precision: "float32" for full precision, "tensorfloat32" for 10 bits of mantissa, or
        "bfloat16". It has no effect on CPUs, which always use full precision.
    """
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", precision)


def prepare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Prepares this process for the precision of a run.

    Returns:
      The settings with the precision in use, never "auto".

    Raises:
      UserError: as for `resolve_precision`.
    """
    precision = resolve_precision(settings["precision"], jax.default_backend())
    set_matmul_precision(precision)
    return {**settings, "precision": precision}


def resolve_precision(precision: str, platform: str) -> str:
    """Returns the precision that a run uses, and logs a warning if bfloat16 is slow.

    Args:
      precision: "auto", or any precision that `set_matmul_precision` accepts. "auto" means bfloat16
        if it is fast on the device, and float32 otherwise.
      platform: "cpu", "gpu" or "tpu", as `jax.default_backend()` names it.

    Returns:
      The precision, never "auto".

    Raises:
      UserError: if the kernels for bfloat16 do not compute correctly on this machine.
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

    @jax.jit
    def computed(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        output, pullback = jax.vjp(convolve, x, kernel)
        return output, *pullback(g)

    names = ("output", "gradient to the input", "gradient to the kernel")
    wanted = _exact_convolution(*(a.astype(np.float64) for a in (x, kernel, g)))
    for name, got, want in zip(names, computed(x, kernel, g), wanted, strict=True):
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        if not error < _TOLERANCE:  # Also for NaN.
            raise UserError(
                f"bfloat16 convolutions are wrong on this processor: the {name} differs by "
                f"{error:.1g} of its largest entry. {instead}"
            )


def _why_bfloat16_is_slow(platform: str) -> str | None:
    """Returns why bfloat16 is slower than float32 on the device, or `None` if it is not."""
    if platform == "cpu":
        if xla_flags.uses_onednn():
            return None
        return xla_flags.why_not_onednn() or "the fast kernels were not switched on at the start"
    if platform == "gpu":
        capability = getattr(jax.devices()[0], "compute_capability", "0")
        if capability.partition(".")[0].isdigit() and int(capability.partition(".")[0]) < 8:
            return "the GPU is older than NVIDIA's Ampere generation"
    return None


def _exact_convolution(
    x: np.ndarray, kernel: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A 3x3 convolution of stride 1 and its gradients, computed from the definition."""

    def windows(of: np.ndarray) -> np.ndarray:
        padded = np.pad(of, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))

    output = np.einsum("bhwirc,rcio->bhwo", windows(x), kernel, optimize=True)
    gx = np.einsum("bhworc,rcio->bhwi", windows(g), kernel[::-1, ::-1], optimize=True)
    gk = np.einsum("bhwirc,bhwo->rcio", windows(x), g, optimize=True)
    return output, gx, gk
