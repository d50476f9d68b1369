"""Prints a table of injected faults: how often, what was lost, and how the program ended.

Run: python -m benchmarks.faults [--kills=20] [--only=NAME] [--positions=NUM]
Each fault is injected into the real program, on the tiny variant of the swiss roll. The exit code
is 1 if more was lost than the work since the last checkpoint, or if the program did not end with
one line. Faults at file operations need gcc. Linux only. On two cores it takes ten minutes with
--positions=3, and hours with all positions.
"""

import argparse
import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults import crashes, injection, numbers, peers, positions, storage
from benchmarks.faults.fork_server import ForkServer
from benchmarks.faults.outcome import HEADER, Outcome


def main() -> None:
    """Prints the table, and complaints on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="number of times to send kill -9")
    parser.add_argument(
        "--positions", type=int, default=0, help="file operations per kind of fault; 0 for all"
    )
    parser.add_argument("--only", default="", help="only faults whose function contains this text")
    arguments = parser.parse_args()
    scenarios: dict[str, Callable[[Path], Iterator[Outcome] | Outcome]] = {
        "kill_at_random": functools.partial(crashes.kill_at_random, times=arguments.kills),
        "terminate": crashes.terminate,
        "terminate_early": crashes.terminate_early,
        "interrupt": crashes.interrupt,
        "terminate_one": peers.terminate_one,
        "kill_one": peers.kill_one,
        "kill_while_sampling": peers.kill_while_sampling,
        "kill_first_while_sampling": functools.partial(peers.kill_while_sampling, victim=0),
        "split_workdirs": peers.split_workdirs,
        "refuse_lock": peers.refuse_lock,
        "exhaust_memory": peers.exhaust_memory,
        "miss_first": peers.miss_first,
        "damage_newest": storage.damage_newest,
        "fill_disk": storage.fill_disk,
        "forbid_writing": storage.forbid_writing,
        "remove_workdir": storage.remove_workdir,
        "start_twice": storage.start_twice,
        "evaluate_twice": storage.evaluate_twice,
        "read_during_training": storage.read_during_training,
        "reject_classifier": storage.reject_classifier,
        "poison_batch": numbers.poison_batch,
        "let_clock_jump": numbers.let_clock_jump,
    }
    failed = False
    print(HEADER)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        # All runs compile the same program.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        can_inject = injection.can_compile()
        library = injection.compile_library(Path(scratch)) if can_inject else None
        server = stack.enter_context(ForkServer(library))
        if can_inject:
            scenarios["positions"] = functools.partial(_at_positions, server, arguments.positions)
        else:
            print("no gcc: faults at file operations are skipped", file=sys.stderr)
        for name, scenario in scenarios.items():
            if arguments.only not in name:
                continue
            folder = Path(scratch) / name
            folder.mkdir()
            for outcome in _outcomes(name, scenario, folder):
                print(outcome.as_row(), flush=True)
                for complaint in outcome.complaints:
                    failed = True
                    print(f"WRONG: {complaint}", file=sys.stderr, flush=True)
    sys.exit(failed)


def _outcomes(
    name: str, scenario: Callable[[Path], Iterator[Outcome] | Outcome], folder: Path
) -> Iterator[Outcome]:
    """Runs a scenario; if it cannot be run, that is a complaint and not an error."""
    try:
        found = scenario(folder)
        yield from [found] if isinstance(found, Outcome) else found
    except (OSError, TimeoutError) as error:
        yield Outcome(name, 0, "unknown", [f"{name}: {error!r}"])


def _at_positions(server: ForkServer, num: int, folder: Path) -> Iterator[Outcome]:
    """Injects each kind of fault at file operations of a training and of programs that read it."""
    whole = positions.uninterrupted(server, folder)
    chosen = positions.spread(whole.num_operations, num or whole.num_operations)
    for kind in injection.KINDS:
        yield positions.inject(server, folder, whole, kind, chosen)
    for mode in positions.READERS:
        yield positions.inject_into_reader(server, folder, mode, num)


if __name__ == "__main__":
    main()
