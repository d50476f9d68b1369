"""Kills a small run, flips bits in each of its files and of its export, and prints what held.

Run: python -m benchmarks.faults [--kills=8] [--verbs train sample evaluate export draw]
A kill held if the same command then finished with the bits of an uninterrupted run. A flipped bit
held if a verb refused the file in one line, or gave the results of an undamaged run; each verb gets
its own damaged copy. "draw" is `fdrl_jax.pretrained` on the export. Failures go to standard error,
and the code is then 1. It takes about ten minutes on one core.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

DEADLINE = 300.0  # Seconds of a verb.
SAMPLES = "--checkpoint=60 --num_samples=64"
TRAIN = (
    "--config=swissroll:tiny --config.checkpoint.every_steps=20 --config.checkpoint.keep=9 "
    "--config.optimizer.schedule=constant --config.train.num_steps="
)
VERBS = {
    "train": f"{TRAIN}80",  # Resumes at step 60.
    "sample": f"--mode=sample {SAMPLES}",
    "evaluate": f"--mode=evaluate {SAMPLES}",
    "export": "--mode=export --checkpoint=60",
}
# What must not depend on a fault. Files that are there before a verb are left out.
RESULTS = ("evaluations/**/*.json", "samples/*.npz", "export/**/*.safetensors", "drawn.npy")
CONTEXT = multiprocessing.get_context("forkserver")


class Ended(NamedTuple):
    code: int | None  # `None` after the deadline.
    text: str

    @property
    def was_refused(self) -> bool:
        """Whether the program ended with an error for its user."""
        return self.code == 2 and "Traceback" not in self.text


def program(flags: str, folder: Path) -> None:
    from experiments.main import main as run_program

    run_program([*flags.split(), f"--workdir={folder}"])


def draw(folder: Path) -> None:
    """Draws from the export of a run; an export that is refused ends as the program does."""
    import jax

    import fdrl_jax

    (export,) = (path.parent for path in folder.glob("export/**/config.json"))
    try:
        drawn = fdrl_jax.pretrained(export)(jax.random.key(0), 16)
    except ValueError as error:
        print(f"refused: {error}")
        sys.exit(2)
    np.save(folder / "drawn.npy", drawn)


def _redirected(file: str, function: Callable[..., None], *arguments: object) -> None:
    for stream in (1, 2):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    function(*arguments)


def run(function: Callable[..., None], *arguments: object, kill_after: float = DEADLINE) -> Ended:
    """Calls a function in a process of its own, forked after all imports, which take longer."""
    with tempfile.NamedTemporaryFile() as output:
        process = CONTEXT.Process(target=_redirected, args=(output.name, function, *arguments))
        process.start()
        process.join(kill_after)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        return Ended(process.exitcode, output.read().decode(errors="replace"))


def do(verb: str, folder: Path) -> Ended:
    return run(draw, folder) if verb == "draw" else run(program, VERBS[verb], folder)


def results(folder: Path) -> dict[str, bytes]:
    paths = {path for pattern in RESULTS for path in folder.glob(pattern)}
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def flip_a_bit(file: Path, chosen: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
    file.write_bytes(content)


class Lab:
    """A trained and exported run, and what each verb gives without a fault."""

    def __init__(self, scratch: Path, verbs: list[str]) -> None:
        self.scratch, self.random, self.rows = scratch, random.Random(0), Counter[str]()
        self.failed, self.expected = False, dict[str, dict[str, bytes]]()
        self.trained = scratch / "trained"
        for flags in (f"{TRAIN}60", VERBS["sample"], VERBS["export"]):
            self._check(run(program, flags, self.trained), flags)
        for verb in verbs:
            folder = shutil.copytree(self.trained, scratch / f"expected-{verb}")
            self._check(do(verb, folder), verb)
            self.expected[verb] = results(folder)

    def _check(self, ended: Ended, what: str) -> None:
        if ended.code:
            sys.exit(f"{what} fails without a fault: {ended.text[-2_000:]}")

    def record(self, row: str, outcome: str, details: str = "") -> None:
        self.rows[f"{row} | {outcome}"] += 1
        if details:
            self.failed = True
            print(f"{row}: {outcome}: {details}", file=sys.stderr, flush=True)

    def kill(self) -> None:
        """Kills a training at a random moment, and runs the same command again."""
        folder = self.scratch / "killed"
        flags = f"{TRAIN}60"
        run(program, flags, folder, kill_after=self.random.uniform(0.5, 12.0))
        ended = run(program, flags, folder)
        for verb in ("sample", "export"):
            ended = ended if ended.code else do(verb, folder)
        there = results(self.trained)
        differing = [
            name for name, held in results(folder).items() if there.get(name, held) != held
        ]
        details = ended.text[-500:] if ended.code else ", ".join(differing)
        self.record("kill -9 of a training", "failed" if details else "same bits", details)
        shutil.rmtree(folder, ignore_errors=True)

    def flip(self, file: Path, verb: str) -> None:
        folder = shutil.copytree(self.trained, self.scratch / "damaged")
        flip_a_bit(folder / file, self.random)
        damaged = (folder / file).read_bytes()
        ended = do(verb, folder)
        # A damaged result that the verb did not write again is not one of its results.
        differing = [
            name
            for name, held in results(folder).items()
            if held not in (self.expected[verb].get(name, held), damaged)
        ]
        if ended.was_refused:
            self.record(f"one flipped bit, {verb}", "refused")
        elif ended.code:
            self.record(f"one flipped bit, {verb}", "failed", f"{file}: {ended.text[-500:]}")
        elif differing:
            self.record(f"one flipped bit, {verb}", "other results", f"{file}: {differing}")
        else:
            self.record(f"one flipped bit, {verb}", "same results")
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = [*VERBS, "draw"]
    parser.add_argument("--kills", type=int, default=8, help="of a training, at random moments")
    parser.add_argument("--verbs", nargs="+", default=verbs, choices=verbs, help="after a flip")
    arguments = parser.parse_args()
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    CONTEXT.set_forkserver_preload(["experiments.main", "experiments.train", "experiments.export"])
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/compiled")
        lab = Lab(Path(scratch), arguments.verbs)
        for _ in range(arguments.kills):
            lab.kill()
        files = [path for path in lab.trained.rglob("*") if path.is_file() and path.stat().st_size]
        for path in sorted(files):
            for verb in arguments.verbs:
                lab.flip(path.relative_to(lab.trained), verb)
    print("| fault | outcome | times |\n|---|---|---|")
    for row, number in sorted(lab.rows.items()):
        print(f"| {row} | {number} |")
    sys.exit(lab.failed)


if __name__ == "__main__":
    main()
