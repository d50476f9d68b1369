"""What XLA's profiler says of a run: the time that its threads spent in operations of a kind."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import jax


def thread_seconds(run: Callable[[], object], *prefixes: str) -> dict[str, float]:
    """Runs a function under the profiler and adds up the operations by the start of their names.

    Args:
      run: returns when its work is done; compiled before, as compilation would count.
      prefixes: starts of names, such as "all-reduce".

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
