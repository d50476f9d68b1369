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
    profile = _profile(run)
    nanoseconds = dict.fromkeys(prefixes, 0.0)
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                for prefix in prefixes:
                    if event.name.startswith(prefix):
                        nanoseconds[prefix] += event.duration_ns
    return {prefix: 1e-9 * total for prefix, total in nanoseconds.items()}


def device_idle_share(run: Callable[[], object]) -> float | None:
    """Runs a function under the profiler and returns how much of its time devices did nothing.

    Between the first and the last kernel of each device: gaps there are waits for the host.

    Args:
      run: returns when its work is done; compiled before, as compilation would count.

    Returns:
      A share from 0 to 1, or `None` where the profiler sees no device (CPUs).
    """
    idle = busy = 0.0
    for plane in _profile(run).planes:
        if not plane.name.startswith("/device:"):
            continue
        spans = sorted(
            (event.start_ns, event.start_ns + event.duration_ns)
            for line in plane.lines
            if line.name.startswith(("Stream", "XLA Ops"))
            for event in line.events
        )
        end = spans[0][0] if spans else 0.0
        for first, last in spans:
            idle += max(first - end, 0.0)
            busy += max(last - max(first, end), 0.0)
            end = max(end, last)
    return idle / (idle + busy) if busy else None


def _profile(run: Callable[[], object]) -> jax.profiler.ProfileData:
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(file))
