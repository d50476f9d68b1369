"""Kills a small run, flips a bit in each of its files and of its export, and prints what held.

Run: python -m benchmarks.faults (half an hour)
A kill held if the same command then finished with the bits of an uninterrupted run; a flipped bit,
if a verb refused the file in one line, or gave the results of an undamaged run; else the code is 1.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import fdrl_jax
from experiments.main import main as run_program

TRAIN = "--config=configs/swissroll.py:tiny --config.checkpoint.every_steps=20 "
TRAIN += "--config.checkpoint.keep=9 --config.optimizer.schedule=constant --config.train.num_steps="
FLAGS = {"first": f"{TRAIN}60", "train": f"{TRAIN}80", "export": "--mode=export --checkpoint=60"}
FLAGS |= {v: f"--mode={v} --checkpoint=60 --num_samples=64" for v in ("sample", "evaluate")}
VERBS = ("train", "sample", "evaluate", "export", "draw")  # "train" resumes.
RESULTS = ("evaluations/**/*.json", "samples/*.npz", "export/**/*.safetensors", "drawn.npy")
Results = dict[str, bytes]  # By path.
CONTEXT = multiprocessing.get_context("forkserver")


def do(verb: str, folder: Path) -> None:
    """Carries out a verb, "draw" with `fdrl_jax.pretrained`, and ends as the program does."""
    if verb != "draw":
        return run_program([*FLAGS[verb].split(), f"--workdir={folder}"])
    (export,) = {path.parent for path in folder.glob("export/**/config.json")}
    try:
        np.save(folder / "drawn.npy", fdrl_jax.pretrained(export)(jax.random.key(0), 16))
    except ValueError as error:
        print(error)
        sys.exit(2)


def _redirected(file: str, function: Callable[..., None], *arguments: object) -> None:
    os.dup2(os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), 1), 2)
    function(*arguments)


def run(function: Callable[..., None], *arguments: object, limit: float = 300.0) -> tuple[int, str]:
    """Calls a function in a process of its own, forked after all imports; returns code and text."""
    with tempfile.NamedTemporaryFile() as output:
        process = CONTEXT.Process(target=_redirected, args=(output.name, function, *arguments))
        process.start()
        process.join(limit)
        process.kill()
        process.join()
        return process.exitcode, output.read().decode(errors="replace")


def results(folder: Path) -> Results:
    return {str(p.relative_to(folder)): p.read_bytes() for r in RESULTS for p in folder.glob(r)}


def verdict(ended: tuple[int, str], wanted: Results, found: Results, damaged: bytes = b"") -> str:
    """Returns an outcome; a damaged file that a verb did not write again is not its result."""
    code, text = ended
    if code:
        is_refused = code == 2 and damaged and "Traceback" not in text
        return "refused" if is_refused else f"failed: code {code}: {text[-500:]}"
    other = [name for name, held in wanted.items() if found.get(name) not in (held, damaged)]
    return f"other results: {', '.join(other)}" if other else "same results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=8, help="of a training, at random moments")
    parser.add_argument("--verbs", nargs="+", default=VERBS, choices=VERBS, help="after a flip")
    given = parser.parse_args()
    CONTEXT.set_forkserver_preload([f"experiments.{name}" for name in ("main", *VERBS[:4])])
    chosen, rows, expected = random.Random(0), Counter(), {}

    def record(fault: str, what: object, outcome: str) -> None:
        rows[fault, outcome.split(":")[0]] += 1
        print(f"{fault}, {what}: {outcome}", file=sys.stderr, flush=True)

    def finish(folder: Path) -> tuple[int, str]:
        ended = (run(do, verb, folder) for verb in ("first", "sample", "export"))
        return max(ended, key=lambda one: abs(one[0]))

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", scratch)
        record("no fault", "train", verdict(finish(trained := Path(scratch, "trained")), {}, {}))
        for verb in given.verbs:
            folder = shutil.copytree(trained, Path(scratch, verb))
            record("no fault", verb, verdict(run(do, verb, folder), {}, {}))
            expected[verb] = results(folder)
        for number in range(given.kills):
            folder = Path(scratch, f"killed{number}")
            run(do, "first", folder, limit=chosen.uniform(0.5, 12.0))
            record("kill -9", number, verdict(finish(folder), results(trained), results(folder)))
        for file in sorted(p for p in trained.rglob("*") if p.is_file() and p.stat().st_size):
            for verb in given.verbs:
                folder = shutil.copytree(trained, Path(scratch, "damaged"))
                name, content = file.relative_to(trained), bytearray(file.read_bytes())
                content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
                (folder / name).write_bytes(content)
                outcome = verdict(run(do, verb, folder), expected[verb], results(folder), content)
                record(f"one flipped bit, {verb}", name, outcome)
                shutil.rmtree(folder)
    print("| fault | outcome | times |\n|---|---|---|")
    print(*(f"| {' | '.join(row)} | {n} |" for row, n in sorted(rows.items())), sep="\n")
    sys.exit(not {outcome for _, outcome in rows} <= {"same results", "refused"})


if __name__ == "__main__":
    main()
