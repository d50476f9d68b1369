"""Reads XLA's profiler: the time that threads spend in operations of a kind."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import jax


def thread_seconds(run: Callable[[], object], *prefixes: str) -> dict[str, float]:
    """Runs a function under the profiler and sums the times of operations by prefix.

    Args:
      run: returns when its work is done. It must be compiled before, or compilation would count.
      prefixes: prefixes of names of operations, such as "all-reduce".

    Returns:
      Seconds by prefix, summed over all threads of the host.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    nanoseconds = dict.fromkeys(prefixes, 0.0)
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                for prefix in prefixes:
                    if event.name.startswith(prefix):
                        nanoseconds[prefix] += event.duration_ns
    return {prefix: 1e-9 * total for prefix, total in nanoseconds.items()}
