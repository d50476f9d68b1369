"""The environment in which XLA's compilers work without their devices. It does not import JAX.

JAX reads these variables when it is imported, and the compilers when they are first used.
"""

import os
from collections.abc import Mapping


def without_devices(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns an environment for compiling for other machines.

    JAX itself runs on the CPU. Flags for XLA's CPU compiler have no effect.
    """
    return {
        **{name: value for name, value in environ.items() if name != "XLA_FLAGS"},
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # There may be no driver.
        "TPU_SKIP_MDS_QUERY": "1",  # Outside of Google's cloud there is no answer.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Several compilers may share libtpu.
    }
