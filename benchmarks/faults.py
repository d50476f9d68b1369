"""Kills a small run, flips a bit in each of its files and of its export, and prints what held.

Run: python -m benchmarks.faults [--kills=8] [--verbs train sample evaluate export draw]
A kill held if the same command then finished with the bits of an uninterrupted run. A flipped bit
held if a verb refused the file in one line, or gave the results of an undamaged run; each verb gets
its own damaged copy. "draw" is `fdrl_jax.pretrained` on the export. What failed goes to standard
error, and the code is then 1. It takes half an hour on one core.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

DEADLINE = 300.0  # Seconds of a verb.
SAMPLES = "--checkpoint=60 --num_samples=64"
TRAIN = (
    "--config=configs/swissroll.py:tiny --config.checkpoint.every_steps=20 "
    "--config.checkpoint.keep=9 --config.optimizer.schedule=constant --config.train.num_steps="
)
FLAGS = {"first": f"{TRAIN}60", "train": f"{TRAIN}80", "export": "--mode=export --checkpoint=60"}
FLAGS |= {verb: f"--mode={verb} {SAMPLES}" for verb in ("sample", "evaluate")}
VERBS = ("train", "sample", "evaluate", "export", "draw")  # After a flip; "train" resumes.
RESULTS = ("evaluations/**/*.json", "samples/*.npz", "export/**/*.safetensors", "drawn.npy")
CONTEXT = multiprocessing.get_context("forkserver")


def do(verb: str, folder: Path) -> None:
    """Carries out a verb on a run, and ends as the program does."""
    if verb != "draw":
        from experiments.main import main as run_program

        return run_program([*FLAGS[verb].split(), f"--workdir={folder}"])
    import jax

    import fdrl_jax

    (export,) = {path.parent for path in folder.glob("export/**/config.json")}
    try:
        drawn = fdrl_jax.pretrained(export)(jax.random.key(0), 16)
    except ValueError as error:
        print(error)
        sys.exit(2)
    return np.save(folder / "drawn.npy", drawn)


def _redirected(file: str, function: Callable[..., None], *arguments: object) -> None:
    for stream in (1, 2):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    function(*arguments)


def run(
    function: Callable[..., None], *arguments: object, kill_after: float = DEADLINE
) -> tuple[int, str]:
    """Calls a function in a process of its own, forked after all imports; returns code and text."""
    with tempfile.NamedTemporaryFile() as output:
        process = CONTEXT.Process(target=_redirected, args=(output.name, function, *arguments))
        process.start()
        process.join(kill_after)
        process.kill()
        process.join()
        return process.exitcode, output.read().decode(errors="replace")


def results(folder: Path) -> dict[str, bytes]:
    """Returns the files of a run that must not depend on faults, by path."""
    paths = {path for pattern in RESULTS for path in folder.glob(pattern)}
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def verdict(
    ended: tuple[int, str], wanted: dict[str, bytes], found: dict[str, bytes], damaged: bytes = b""
) -> tuple[str, str]:
    """Returns an outcome, and what was wrong, or "".

    A damaged result that a verb did not write again is not one of its own results.
    """
    code, text = ended
    if code == 2 and damaged and "Traceback" not in text:
        return "refused", ""
    if code:
        return "failed", f"code {code}: {text[-500:]}"
    other = [name for name, held in wanted.items() if found.get(name) not in (held, damaged)]
    return ("other results", ", ".join(other)) if other else ("same results", "")


def flip_a_bit(file: Path, chosen: random.Random) -> bytes:
    content = bytearray(file.read_bytes())
    content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
    file.write_bytes(content)
    return bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=8, help="of a training, at random moments")
    parser.add_argument("--verbs", nargs="+", default=VERBS, choices=VERBS, help="after a flip")
    given = parser.parse_args()
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    CONTEXT.set_forkserver_preload([f"experiments.{name}" for name in ("main", *VERBS[:4])])
    chosen, rows, wrong = random.Random(0), Counter[str](), list[str]()

    def record(row: str, what: object, outcome: tuple[str, str]) -> None:
        rows[f"{row} | {outcome[0]}"] += 1
        if outcome[1]:
            wrong.append(f"{row}, {what}: {outcome[0]}: {outcome[1]}")
            print(wrong[-1], file=sys.stderr, flush=True)

    def finish(folder: Path) -> tuple[int, str]:
        ended = [run(do, verb, folder) for verb in ("first", "sample", "export")]
        return next((one for one in ended if one[0]), ended[-1])

    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/compiled")
        trained, expected = Path(scratch, "trained"), {}
        record("no fault", "train", verdict(finish(trained), {}, {}))
        for verb in given.verbs:
            folder = shutil.copytree(trained, Path(scratch, verb))
            record("no fault", verb, verdict(run(do, verb, folder), {}, {}))
            expected[verb] = results(folder)
        for number in range(given.kills):
            folder = Path(scratch, f"killed{number}")
            run(do, "first", folder, kill_after=chosen.uniform(0.5, 12.0))
            outcome = verdict(finish(folder), results(trained), results(folder))
            record("kill -9 of a training", number, outcome)
        files = [path for path in trained.rglob("*") if path.is_file() and path.stat().st_size]
        for file, verb in itertools.product(sorted(files), given.verbs):
            folder = shutil.copytree(trained, Path(scratch, "damaged"))
            damaged = flip_a_bit(folder / file.relative_to(trained), chosen)
            ended = run(do, verb, folder)
            outcome = verdict(ended, expected[verb], results(folder), damaged)
            record(f"one flipped bit, {verb}", file.relative_to(trained), outcome)
            shutil.rmtree(folder)
    print("| fault | outcome | times |\n|---|---|---|")
    for row, number in sorted(rows.items()):
        print(f"| {row} | {number} |")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
