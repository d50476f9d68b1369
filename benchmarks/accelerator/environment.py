"""The environment in which XLA's compilers work without their devices. It does not import JAX."""

import os
from collections.abc import MutableMapping


def set_up(environ: MutableMapping[str, str] = os.environ) -> None:
    """Prepares a process that compiles for other machines, while JAX itself runs on the CPU.

    It must be called before JAX is imported, which reads these variables.
    """
    environ.pop("XLA_FLAGS", None)  # Flags for XLA's CPU compiler have no effect.
    environ["JAX_PLATFORMS"] = "cpu"
    environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # There may be no driver.
    environ["TPU_SKIP_MDS_QUERY"] = "1"  # Outside of Google's cloud there is no answer.
    environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # Several compilers may share libtpu.
