"""Faults at each operation on the files of a run: what is lost, and how the program ends."""

import collections
import errno
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults import program
from benchmarks.faults.fork_server import Ended, ForkServer
from benchmarks.faults.injection import Fault, Kind
from benchmarks.faults.outcome import Outcome, errors_in, words

# Writes two checkpoints, and the second replaces the first.
_CHANGES = {
    "train.num_steps": 4,
    "checkpoint.every_steps": 2,
    "checkpoint.keep": 1,
    "log.every_steps": 2,
    "snapshot.every_steps": 2,
}
_LIMIT_SECONDS = 90.0
_FULL = Kind("ENOSPC", errno.ENOSPC, lasting=True)
# Modes that add files to a run, each with its flags and the folder of these files.
READERS = {
    "sample": (("--num_samples=16", "--config.evaluate.batch_size=8"), "samples"),
    "evaluate": (("--num_samples=32",), "evaluations"),
    "curve": (("--num_samples=32", "--config.curve.lengths=(0,1)"), "curves"),
    "export": (("--platforms=cpu",), "export"),
}


class Whole(NamedTuple):
    """The uninterrupted run.

    Attributes:
      digest: digest of its last state.
      num_operations: number of operations on its files.
    """

    digest: str
    num_operations: int


def uninterrupted(server: ForkServer, folder: Path) -> Whole:
    """Trains without a fault and counts the operations on files."""
    run, trace = folder / "whole", folder / "trace"
    fault = Fault(run, Kind("none"), 0, trace)
    ended = server.run(program.arguments(run, _CHANGES), folder / "log", fault, evaluates=False)
    if ended.code != 0:
        raise ChildProcessError(f"the run without a fault ended with {ended.code}: {ended.log}")
    return Whole(program.state_digest(run, 4), len(trace.read_text().splitlines()))


def spread(num_operations: int, num: int, offset: int = 0) -> list[int]:
    """Returns positions spread evenly over all operations; `offset` shifts them."""
    step = num_operations / num
    return sorted({int((i + 0.5) * step + offset) % num_operations + 1 for i in range(num)})


def inject(
    server: ForkServer, folder: Path, whole: Whole, kind: Kind, positions: Iterable[int]
) -> Outcome:
    """Trains with a fault at each position, resumes without one, and compares the last states."""
    complaints, ends, steps = [], [], collections.Counter[int]()
    for position in positions:
        run = folder / f"{kind.name}_{position}"
        trace = folder / f"{kind.name}_{position}.trace"
        ended = server.run(
            program.arguments(run, _CHANGES),
            folder / "log",
            Fault(run, kind, position, trace),
            evaluates=False,
            limit_seconds=_LIMIT_SECONDS,
        )
        wrong = _judge(ended, kind)
        kept = program.newest(run)
        again = server.run(
            program.arguments(run, _CHANGES), folder / "log", evaluates=False, limit_seconds=600.0
        )
        wrong += _judge_resumed(again, run, whole)
        hit = _operation(trace, position)
        complaints += [f"{kind.name} at operation {position}, {hit}: {text}" for text in wrong]
        ends.append(ended)
        steps[kept] += 1
    kept_steps = ", ".join(f"{num} at step {step}" for step, num in sorted(steps.items()))
    name = f"{kind.name} at the n-th file operation" + (" and all later ones" * kind.lasting)
    lost = f"the work since the last checkpoint ({kept_steps}); the last step is equal bit for bit"
    return _outcome(name, lost, complaints, ends)


def inject_into_reader(server: ForkServer, folder: Path, mode: str, num: int = 0) -> Outcome:
    """Fills the disk at file operations of a mode that adds files to a run, and runs it again.

    Args:
      server: runs the program.
      folder: the folder with the run of `uninterrupted`.
      mode: a mode in `READERS`.
      num: number of positions, spread evenly; 0 for all.
    """
    flags, added = READERS[mode]
    complaints, ends = [], []

    def run_mode(name: str, fault_at: int | None) -> tuple[Path, Path, Ended]:
        run, trace = folder / name, folder / f"{name}.trace"
        fault = None if fault_at is None else Fault(run, _FULL, fault_at, trace)
        arguments = [f"--mode={mode}", f"--workdir={run}", *flags]
        return run, trace, server.run(arguments, folder / "log", fault)

    shutil.copytree(folder / "whole", folder / mode)
    whole, trace, ended = run_mode(mode, 0)
    if ended.code != 0:
        return Outcome(f"ENOSPC in mode {mode}", 0, "", [f"without a fault: {ended.log}"])
    expected, digest = _names(whole / added), program.state_digest(whole, 4)
    num_operations = len(trace.read_text().splitlines())
    for position in spread(num_operations, num or num_operations):
        name = f"{mode}_{position}"
        shutil.copytree(folder / "whole", folder / name)
        run, trace, ended = run_mode(name, position)
        wrong = _judge(ended, _FULL)
        again = run_mode(name, None)[2]
        if again.code != 0:
            wrong.append(f"the same command fails: {again.log}")
        elif _names(run / added) != expected:
            wrong.append(f"it added {_names(run / added)}, not {expected}")
        if program.state_digest(run, 4) != digest:
            wrong.append("the checkpoint was changed")
        hit = _operation(trace, position)
        complaints += [f"{mode}, ENOSPC at operation {position}, {hit}: {text}" for text in wrong]
        ends.append(ended)
        shutil.rmtree(run)
    lost = f"the {added} in progress; the same command adds all of them"
    name = f"ENOSPC at the n-th file operation of mode {mode} and all later ones"
    return _outcome(name, lost, complaints, ends)


def _outcome(name: str, lost: str, complaints: list[str], ends: Sequence[Ended]) -> Outcome:
    lines = [sum(line.startswith("error: ") for line in e.log.splitlines()) for e in ends]
    codes, longest = words([e.code for e in ends]), max(e.seconds for e in ends)
    return Outcome(name, len(ends), lost, complaints, codes, max(lines), longest)


def _names(folder: Path) -> list[str]:
    """Returns the content of a folder at any depth, without locks."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in found if not name.endswith(".lock"))


def _judge(ended: Ended, kind: Kind) -> list[str]:
    """Returns complaints about the end of a run with a fault."""
    if ended.code is None:
        return [f"did not end within {_LIMIT_SECONDS:.0f} s: {ended.log}"]
    if kind.name == "kill":
        return [] if ended.code in (-9, 0) else [f"exit code {ended.code}: {ended.log}"]
    wrong = [] if ended.code in (0, 2) else [f"exit code {ended.code}: {ended.log}"]
    wrong += [f"printed {text}" for text in errors_in(ended.log)]
    if ended.code == 2 and "error: " not in ended.log:
        wrong.append("no error line")
    return wrong


def _judge_resumed(again: Ended, run: Path, whole: Whole) -> list[str]:
    """Returns complaints about the run that resumed after the fault."""
    if again.code != 0:
        return [f"it does not resume, code {again.code}: {again.log}"]
    if "damaged" in again.log:
        return [f"a checkpoint was damaged: {again.log}"]
    if program.state_digest(run, 4) != whole.digest:
        return ["the last state differs from that of the uninterrupted run"]
    left = _left_over(run)
    return [f"left over: {left}"] if left else []


def _left_over(run: Path) -> Sequence[str]:
    """Returns files that a resumed run should have removed."""
    return sorted(
        path.name for path in (run / "checkpoints").iterdir() if path.name not in ("4", "best.json")
    )


def _operation(trace: Path, position: int) -> str:
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    found = [line for line in lines if line.startswith(f"{position} ")]
    return found[0].partition(" ")[2] if found else "never reached"
