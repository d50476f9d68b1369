"""Timing for all benchmarks: medians over rounds in which the contenders take turns."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Times functions in turns, so that changes in the machine's speed affect all of them equally.

    Args:
        contenders: functions that return when their work is done, by name.
        rounds: timed calls of each, after one warm-up call.

    Returns:
        Median seconds per call, by name.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
