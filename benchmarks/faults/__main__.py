"""The table of faults: what was injected, how often, and what was lost.

Run: python -m benchmarks.faults [--kills=20] [--only=NAME]
Every fault is injected into the real program, on the swiss roll in its tiny variant. Ends with
code 1 if more was lost than the work since the last checkpoint. Linux only.
"""

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults import crashes, numbers, storage
from benchmarks.faults.outcome import Outcome


def main() -> None:
    """Prints the table, and what went wrong on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how often kill -9 is sent in a row")
    parser.add_argument("--only", default="", help="faults whose function's name has this in it")
    arguments = parser.parse_args()
    scenarios: dict[str, Callable[[Path], Outcome]] = {
        "kill_at_random": functools.partial(crashes.kill_at_random, times=arguments.kills),
        "terminate": crashes.terminate,
        "terminate_one_of_two": crashes.terminate_one_of_two,
        "kill_one_of_two": crashes.kill_one_of_two,
        "damage_newest": storage.damage_newest,
        "fill_disk": storage.fill_disk,
        "forbid_writing": storage.forbid_writing,
        "start_twice": storage.start_twice,
        "poison_batch": numbers.poison_batch,
        "let_clock_jump": numbers.let_clock_jump,
    }
    failed = False
    print("| fault | injected | lost |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        # All runs compile the same program.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        for name, scenario in scenarios.items():
            if arguments.only not in name:
                continue
            folder = Path(scratch) / name
            folder.mkdir()
            outcome = scenario(folder)
            print(f"| {outcome.fault} | {outcome.times} | {outcome.lost} |", flush=True)
            for complaint in outcome.complaints:
                failed = True
                print(f"WRONG: {complaint}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
