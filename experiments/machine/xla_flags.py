"""Compiler flags that make JAX's CPU backend faster, set before JAX starts.

Call `set_cpu_flags` before anything runs on a device, because XLA reads its flags only when its
backend starts. This module does not import JAX.
"""

import importlib.metadata
import os
import re
from collections.abc import Mapping, MutableMapping

from experiments.machine import processor

# Selects the older kernels for convolutions, which compute weight gradients about twice as fast.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=individual_dot"
# Selects oneDNN for convolutions and matrix products, which is needed for fast bfloat16.
ONEDNN_FLAG = "--xla_cpu_experimental_onednn_custom_call=true"

# An unknown flag aborts the process, and oneDNN's kernels are correct only in tested versions. Each
# flag is therefore set only from its first version up to, but excluding, its second.
_CPU_FLAG_VERSIONS = ((0, 10, 2), (0, 13))
_ONEDNN_VERSIONS = ((0, 12), (0, 13))
_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def set_cpu_flags(
    environ: MutableMapping[str, str] = os.environ, *, bfloat16: bool = False
) -> bool:
    """Sets the flags in `XLA_FLAGS` if they are known to be safe, and returns whether it set one.

    If the variable is already set, even to an empty text, it is not changed. To run without the
    flags, use `XLA_FLAGS= python ...`. A process that computes in bfloat16 uses oneDNN unless
    `why_not_onednn` returns a reason.
    """
    if "XLA_FLAGS" in environ or not _is_within(_CPU_FLAG_VERSIONS):
        return False
    use_onednn = bfloat16 and why_not_onednn(environ) is None
    environ["XLA_FLAGS"] = f"{CPU_FLAG} {ONEDNN_FLAG}" if use_onednn else CPU_FLAG
    return True


def why_not_onednn(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns why oneDNN's bfloat16 kernels cannot be used here, or `None` if they can.

    The result completes the sentence "bfloat16 is slow here because ...".
    """
    amd = processor.vendor() == "AuthenticAMD"
    # Without AMX, the kernels were measured on AMD's processors only.
    if not processor.features() & ({"amx_bf16", "avx512_bf16"} if amd else {"amx_bf16"}):
        return "the processor has neither AMX (amx_bf16) nor AMD's AVX-512 for it (avx512_bf16)"
    if not _is_within(_ONEDNN_VERSIONS):
        return "the fast kernels need JAX 0.12 (Python 3.12 or newer)"
    if environ.get(_CACHE_VARIABLE):
        return (
            "the fast kernels crash together with JAX's persistent compilation cache; "
            f"unset {_CACHE_VARIABLE}"
        )
    if "XLA_FLAGS" in environ and not uses_onednn(environ):
        return f"XLA_FLAGS is set without {ONEDNN_FLAG}"
    return None


def uses_onednn(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the flags of this process select oneDNN for convolutions."""
    return ONEDNN_FLAG in environ.get("XLA_FLAGS", "").split()


def _is_within(versions: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    try:
        release = re.findall(r"\d+", importlib.metadata.version("jaxlib"))
    except importlib.metadata.PackageNotFoundError:
        return False
    first, first_without = versions
    return first <= tuple(map(int, release)) < first_without
