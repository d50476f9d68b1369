"""The precision of computations, and the devices and compiler flags that it depends on.

Call `set_cpu_flags` before anything runs on a device, because XLA reads its flags only when its
backend starts.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import logging
import os
import platform
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import jax

from experiments.settings import Settings

# Selects the older kernels for convolutions, which compute weight gradients about twice as fast.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=individual_dot"
# Selects oneDNN for convolutions and matrix products, which is needed for fast bfloat16.
ONEDNN_FLAG = "--xla_cpu_experimental_onednn_custom_call=true"

# An unknown flag aborts the process, and oneDNN's kernels are correct only in tested versions. Each
# flag is therefore set only from its first version up to, but excluding, its second.
_CPU_FLAG_VERSIONS = ((0, 10, 2), (0, 13))
_ONEDNN_VERSIONS = ((0, 12), (0, 13))
# Instructions that affect the speed of neural networks, by their names in Linux.
_NOTABLE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")


def set_cpu_flags(
    environ: MutableMapping[str, str] = os.environ, *, bfloat16: bool = False
) -> bool:
    """Sets flags in `XLA_FLAGS` if they are known to be safe, and returns whether it set one.

    The variable is not changed if it is set: `XLA_FLAGS= python ...` runs without the flags.
    """
    if "XLA_FLAGS" in environ or not _is_within(_CPU_FLAG_VERSIONS):
        return False
    use_onednn = bfloat16 and why_not_onednn(environ) is None
    environ["XLA_FLAGS"] = f"{CPU_FLAG} {ONEDNN_FLAG}" if use_onednn else CPU_FLAG
    return True


def why_not_onednn(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns why oneDNN's bfloat16 kernels cannot be used here, or `None` if they can."""
    # Without AMX, the kernels were measured on AMD's processors only.
    fast = (
        {"amx_bf16", "avx512_bf16"}
        if _of_processor("vendor_id") == "AuthenticAMD"
        else {"amx_bf16"}
    )
    if not features() & fast:
        return "the processor has neither AMX (amx_bf16) nor AMD's AVX-512 for it (avx512_bf16)"
    if not _is_within(_ONEDNN_VERSIONS):
        return "the fast kernels need JAX 0.12 (Python 3.12 or newer)"
    if environ.get("JAX_COMPILATION_CACHE_DIR"):
        return "the fast kernels crash with a compilation cache; unset JAX_COMPILATION_CACHE_DIR"
    if "XLA_FLAGS" in environ and not uses_onednn(environ):
        return f"XLA_FLAGS is set without {ONEDNN_FLAG}"
    return None


def uses_onednn(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the flags of this process select oneDNN for convolutions."""
    return ONEDNN_FLAG in environ.get("XLA_FLAGS", "").split()


def flags_in_use(environ: Mapping[str, str] = os.environ) -> str:
    """Returns the compiler flags of this process, on an accelerator without those for CPUs.

    `set_cpu_flags` sets these by the processor of the host, which need not be that of other hosts.
    """
    flags = environ.get("XLA_FLAGS", "")
    if jax.default_backend() == "cpu":
        return flags
    return " ".join(flag for flag in flags.split() if not flag.startswith("--xla_cpu_"))


def resolve(settings: Settings) -> Settings:
    """Returns the settings with the precision in use here, and multiplies float32 arrays in it.

    "auto" means bfloat16 if it is fast on the device, and float32 otherwise. By default,
    accelerators round the inputs of products: TPUs to bfloat16, and NVIDIA GPUs since Ampere to
    TF32 ("tensorfloat32"), which has 10 bits of mantissa. CPUs always use full precision.
    """
    used, slow = settings.precision, _why_bfloat16_is_slow()
    if used == "auto":
        used = "float32" if slow else "bfloat16"
    elif used == "bfloat16" and slow:
        _warn(f"precision=bfloat16 is slower here than float32, because {slow}")
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", used)
    return dataclasses.replace(settings, precision=used)


def describe_devices() -> str:
    """Returns a line with the devices, their memory if known, and versions."""
    own = jax.local_devices()[0]  # Of another process's device, the memory is not known.
    kind = own.device_kind
    if own.platform == "cpu":
        notable = " ".join(name for name in _NOTABLE if name in features())
        kind = f"{kind} ({os.cpu_count()} cores; {notable or 'features unknown'})"
    limit = (own.memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / 2**30:.0f} GiB each" if limit else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"devices: {jax.device_count()} x {kind}{memory}{processes}; jax {jax.__version__}, "
        f"jaxlib {importlib.metadata.version('jaxlib')}, Python {platform.python_version()}"
    )


def features() -> frozenset[str]:
    """Returns the processor's features by their names in Linux; empty if they are not listed."""
    return frozenset(_of_processor("flags|Features").split())


@functools.cache
def _of_processor(names: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    with contextlib.suppress(OSError):  # Only Linux has this file.
        if found := re.search(rf"^(?:{names})[ \t]*:(.*)", cpuinfo.read_text(), re.MULTILINE):
            return found[1].strip()
    return ""


@functools.cache  # Once per process.
def _warn(text: str) -> None:
    logging.getLogger("fdrl").warning(text)


def _why_bfloat16_is_slow() -> str | None:
    """Returns why bfloat16 is slower than float32 on the device, or `None` if it is not."""
    backend = jax.default_backend()
    if backend == "cpu" and not uses_onednn():
        return why_not_onednn() or "the fast kernels were not switched on at the start"
    if backend == "gpu":
        major = getattr(jax.devices()[0], "compute_capability", "0").partition(".")[0]
        if major.isdigit() and int(major) < 8:
            return "the GPU is older than NVIDIA's Ampere generation"
    return None


def _is_within(versions: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    release = re.findall(r"\d+", importlib.metadata.version("jaxlib"))
    first, first_without = versions
    return first <= tuple(map(int, release)) < first_without
