"""Checks before a run that it fits into memory.

An accelerator reports an error if an allocation fails. On a CPU the allocation succeeds, and the
operating system kills the process when it uses the memory. The memory that a run needs is therefore
compared with the free memory in advance.
"""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.errors import MEMORY_HINT, UserError
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # Of a container.


def check_state(state: TrainState, constants: Any) -> None:
    """Checks, from shapes only, that the train state, gradients and constants fit into memory.

    Raises:
      UserError: if they do not fit; states the memory needed and the memory that is free.
    """
    params = state.variables["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    needed = num_bytes((state, params, constants))
    _compare(needed, f"the train state of a network of {count:,} parameters")


def num_bytes(tree: Any) -> int:
    """Returns the size of arrays, or of their shapes and dtypes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def checked(mapped: Any) -> Callable[..., Any]:
    """Wraps a mapped function so that its first call checks the memory of the compiled program.

    All calls must have arguments of the same shapes.
    """
    if jax.process_count() > 1:
        # With several processes, a compiled function does not accept the arrays of one process.
        return mapped
    compiled: Any = None

    def run(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = mapped.lower(*arguments).compile()
            stats = compiled.memory_analysis()
            if stats is not None:  # Not all backends report them.
                # The arguments are in memory already.
                _compare(bytes_besides_arguments(stats), "the compiled train step")
        return compiled(*arguments)

    return run


def bytes_besides_arguments(stats: Any) -> int:
    """Returns the bytes that a compiled program needs per device, excluding its arguments."""
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return int(stats.temp_size_in_bytes + outputs)


def host_bytes() -> int:
    """Returns the free memory of the host in bytes, if the system reports it."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if available := re.search(r"^MemAvailable: *(\d+)", _text(_MEMINFO), re.MULTILINE):
        free = int(available[1]) * 1024
    limit = _text(_CGROUP / "memory.max").strip()
    if limit.isdecimal():
        # Cached files count as used, but the system drops them when it needs the memory.
        cached = re.findall(r"\b(?:in)?active_file (\d+)", _text(_CGROUP / "memory.stat"))
        used = int(_text(_CGROUP / "memory.current") or 0) - sum(map(int, cached))
        free = min(free, int(limit) - used)
    return free


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):  # Not all systems have these files.
        return path.read_text()
    return ""


def _compare(needed_per_device: int, what: str) -> None:
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        needed, available = needed_per_device, stats["bytes_limit"] - stats["bytes_in_use"]
        where = f"on each {device.device_kind}"
    else:
        needed, available, where = needed_per_device * parallel.num_devices(), host_bytes(), "here"
    if needed > available:
        raise UserError(
            f"config: {what} needs at least {needed / 2**30:,.1f} GiB, but only "
            f"{available / 2**30:,.1f} GiB are free {where}. {MEMORY_HINT}"
        )
