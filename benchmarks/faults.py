"""Attacks small runs with faults, and prints a table of what held.

Run: python -m benchmarks.faults [--rounds=12] [--only=TEXT] [--seed=0]
Each attack is on the real program, on the tiny swiss roll. It held if the program ended in an
orderly way, without a traceback and without leaving a process behind, and if the same command then
gave the results of an uninterrupted one, bit for bit. The column of seconds has the longest time
from the fault to the end of the program. Each round attacks each of the four modes at a random
moment, and more rounds repeat other attacks more often. Linux only; attacks on a small disk need
the right to mount one. Ends with code 1 if something did not hold, which stderr describes.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
DEADLINE = 120.0  # Seconds in which a program must have ended after a fault.
TRAIN = [
    *("--config=configs/swissroll.py:tiny", "--config.checkpoint.every_steps=20"),
    *("--config.snapshot.every_steps=100", "--config.log.every_steps=20"),
]
# The flags of each mode. All but "train" start from a run that is trained for 200 steps.
MODES = {
    "train": [*TRAIN, "--config.train.num_steps=200"],
    "resume": [*TRAIN, "--config.train.num_steps=220"],
    "sample": ["--mode=sample", "--checkpoint=200", "--num_samples=5000"],
    "evaluate": ["--mode=evaluate", "--checkpoint=200", "--num_samples=128"],
    "export": ["--mode=export", "--checkpoint=200", "--platforms=cpu"],
}
ATTACKED = ("train", "sample", "evaluate", "export")
# Allowed exit codes after a signal, which may also come before the program handles it.
SIGNALS = {
    "kill -9": (-signal.SIGKILL,),
    "SIGSTOP, SIGCONT": (0,),
    "SIGTERM": (0, 4, -signal.SIGTERM),
    "Ctrl-C": (0, 4, 130, -signal.SIGINT),
}
ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "no HOME": {"HOME": None},
    "read-only TMPDIR": {"TMPDIR": "/proc"},
    "LANG=C, ASCII": {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    "python -O": {"PYTHONOPTIMIZE": "1"},
    "x64": {"JAX_ENABLE_X64": "1"},
    "debug NaNs": {"JAX_DEBUG_NANS": "1"},
    "no jit": {"JAX_DISABLE_JIT": "1"},
    "other random bits": {"JAX_THREEFRY_PARTITIONABLE": "0"},
    "other seeds": {"JAX_RANDOM_SEED_OFFSET": "1"},
    "bfloat16 products": {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"},
    "strict promotion": {"JAX_NUMPY_DTYPE_PROMOTION": "strict"},
    "other XLA flags": {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"},
    "unknown platform": {"JAX_PLATFORMS": "banana"},
}
# Python that runs before the program.
NO_LOCKS = "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOLCK, 'No locks')\nfcntl.flock = flock"
FAILING_WRITE = """
import errno, itertools, os
def failing(function, count=itertools.count(1)):
    def called(*arguments, **options):
        if next(count) == {at}:
            raise OSError(errno.{error}, os.strerror(errno.{error}))
        return function(*arguments, **options)
    return called
os.fsync, os.replace, os.mkdir = map(failing, (os.fsync, os.replace, os.mkdir))"""
BACKWARDS = "import time\nnow = time.time\nstart = now()\ntime.time = lambda: 2 * start - now()"


class Attack(NamedTuple):
    """One attack: the row of the table it belongs to, and how it ended."""

    row: str
    complaint: str  # "" if the promise held.
    seconds: float


class Program:
    """The program in a process and a session of its own, with its output in a file."""

    def __init__(
        self,
        flags: Sequence[str],
        environ: dict[str, str | None] | None = None,
        first: str = "",
        prepare: Callable[[], object] | None = None,
    ) -> None:
        run = "import runpy; runpy.run_module('experiments.main', run_name='__main__')"
        code = ["-c", f"{first}\n{run}"] if first else ["-m", "experiments.main"]
        changed = {**os.environ, **(environ or {})}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the object)
        self.process = subprocess.Popen(
            [sys.executable, *code, *flags],
            cwd=ROOT,
            env={name: value for name, value in changed.items() if value is not None},
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            preexec_fn=prepare,
        )

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the session, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def complaint(self, allowed: Sequence[int] = (0,)) -> str:
        """Waits for the end, and returns what was wrong with it, or ""."""
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return f"no end after {DEADLINE:.0f} s: {self.text[-300:]}"
        deadline = time.monotonic() + 5.0
        while (left := _session(self.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            self.send(signal.SIGKILL)
            return f"processes left behind: {left}"
        if code not in allowed or "Traceback" in self.text:
            return f"code {code}: {self.text[-500:]}"
        return ""

    @property
    def text(self) -> str:
        """What the program has printed so far."""
        return os.pread(self._output.fileno(), 10**6, 0).decode(errors="replace")


def _session(number: int) -> list[int]:
    """Returns the processes of a session that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session, *_ = file.read_text().rpartition(")")[2].split()
            if int(session) == number and state != "Z":
                found.append(int(file.parent.name))
    return found


def results(folder: Path) -> dict[str, str]:
    """Returns a digest of each result of a run that must not depend on faults."""
    found: dict[str, bytes] = {}
    for path in folder.glob("evaluations/*/record.json"):
        record = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = json.dumps(
            [record["key"], record["metrics"]]
        ).encode()
    for path in folder.glob("samples/*.npz"):
        with np.load(path) as arrays:
            found[path.name] = b"".join(arrays[name].tobytes() for name in sorted(arrays))
    for name in ("sampler.stablehlo", "arrays.npz", "model.safetensors"):
        for path in folder.glob(f"export/*/{name}"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


class Lab:
    """A trained run, and for each mode the results and the duration without a fault."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.random, self._scratch, self._count = random.Random(seed), scratch, itertools.count()
        self.expected: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.trained = scratch / "trained"
        for mode in MODES:
            folder = self.trained if mode == "train" else self.folder(mode)
            started = time.monotonic()
            if complaint := self.start(mode, folder).complaint():
                sys.exit(f"{mode} fails without a fault: {complaint}")
            self.seconds[mode] = time.monotonic() - started
            self.expected[mode] = results(folder)

    def folder(self, mode: str, within: Path | None = None) -> Path:
        """Returns a new folder for a mode: of the trained run unless it trains."""
        folder = (within or self._scratch) / f"run_{next(self._count)}"
        if mode != "train":
            shutil.copytree(self.trained, folder)
        return folder

    def start(self, mode: str, folder: Path, **options: object) -> Program:
        return Program([*MODES[mode], f"--workdir={folder}"], **options)

    def complaint(self, mode: str, folder: Path) -> str:
        """Runs a mode to its end, after a fault, and returns how it differs from its results."""
        if complaint := self.start(mode, folder).complaint():
            return f"again: {complaint}"
        found = results(folder)
        wrong = [name for name, wanted in self.expected[mode].items() if found.get(name) != wanted]
        return f"other results: {', '.join(wrong)}" if wrong else ""

    def attacked(self, row: str, mode: str, folder: Path, **options: object) -> Attack:
        """Runs a mode under a condition that may end it with code 2, and then without it."""
        started = time.monotonic()
        complaint = self.start(mode, folder, **options).complaint((0, 2))
        seconds = time.monotonic() - started
        return Attack(row, complaint or self.complaint(mode, folder), seconds)


def at_random_moments(lab: Lab, rounds: int) -> Iterator[Attack]:
    for number, mode in itertools.product(range(rounds), ATTACKED):
        kind = list(SIGNALS)[(number + ATTACKED.index(mode)) % len(SIGNALS)]
        folder = lab.folder(mode)
        program = lab.start(mode, folder)
        time.sleep(lab.random.uniform(0.5, lab.seconds[mode]))
        if kind == "SIGSTOP, SIGCONT":
            program.send(signal.SIGSTOP)
            time.sleep(2.0)
        started = time.monotonic()
        if kind == "kill -9":
            program.process.kill()  # Only this process: others must notice it.
        else:
            program.send(
                {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}.get(kind, signal.SIGCONT)
            )
        # A program may have ended before the signal.
        complaint = program.complaint((0, *SIGNALS[kind]))
        seconds = time.monotonic() - started
        yield Attack(kind, complaint or lab.complaint(mode, folder), seconds)
        shutil.rmtree(folder)


def on_bad_storage(lab: Lab, rounds: int) -> Iterator[Attack]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    for mode in ATTACKED:
        yield lab.attacked("files of at most 20 kB", mode, lab.folder(mode), prepare=limit)
        for error in ("EIO", "ESTALE", "ETIMEDOUT") * max(rounds // 6, 1):
            first = FAILING_WRITE.format(at=lab.random.randint(1, 20), error=error)
            yield lab.attacked("EIO, ESTALE, ETIMEDOUT", mode, lab.folder(mode), first=first)
    for mode, (row, options) in itertools.product(
        ATTACKED,
        {"full disk": "size=700k", "no inodes": "nr_inodes=90", "read-only": "ro"}.items(),
    ):
        with tempfile.TemporaryDirectory() as disk:
            if subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=False).returncode:
                print("no right to mount a disk: skipped", file=sys.stderr)
                return
            try:
                folder = lab.folder(mode, Path(disk))
                subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
                started = time.monotonic()
                complaint = lab.start(mode, folder).complaint((0, 2))
                seconds = time.monotonic() - started
                enough = "remount,rw,size=1g,nr_inodes=10000"
                subprocess.run(["mount", "-o", enough, disk], check=True)
                yield Attack(row, complaint or lab.complaint(mode, folder), seconds)
            finally:
                subprocess.run(["umount", disk], check=True)


def without_locks(lab: Lab, rounds: int) -> Iterator[Attack]:
    for _ in range(max(rounds // 4, 1)):
        folder = lab.folder("train")
        one = lab.start("train", folder, first=NO_LOCKS)
        while not (folder / "run.json").exists() and one.process.poll() is None:
            time.sleep(0.1)
        started = time.monotonic()
        other = lab.start("train", folder, first=NO_LOCKS).complaint((2,))
        seconds = time.monotonic() - started
        complaint = other or one.complaint() or lab.complaint("train", folder)
        yield Attack("two trainings without file locks", complaint, seconds)


def two_at_once(lab: Lab, rounds: int) -> Iterator[Attack]:
    modes = ("resume", "sample", "evaluate", "export")
    for _ in range(max(rounds // 4, 1)):
        for pair in itertools.combinations_with_replacement(modes, 2):
            folder, started = lab.folder("resume"), time.monotonic()
            programs = [lab.start(mode, folder) for mode in pair]
            complaints = [program.complaint((0, 2)) for program in programs]
            seconds = time.monotonic() - started
            complaints += [lab.complaint(mode, folder) for mode in pair]
            complaint = "; ".join(filter(None, complaints))
            yield Attack(
                "two programs on one folder", complaint and f"{pair}: {complaint}", seconds
            )
            shutil.rmtree(folder)


def with_one_bit_flipped(lab: Lab, rounds: int) -> Iterator[Attack]:
    """Samples must be the same, or the program must say what is wrong and end."""
    files = sorted(path for path in lab.trained.rglob("*") if path.is_file())
    files = [file.relative_to(lab.trained) for file in files if file.stat().st_size]
    for name in lab.random.sample(files, min(len(files), 5 * rounds)):
        folder = lab.folder("sample")
        content = bytearray((folder / name).read_bytes())
        content[lab.random.randrange(len(content))] ^= 1 << lab.random.randrange(8)
        (folder / name).write_bytes(content)
        started, program = time.monotonic(), lab.start("sample", folder)
        complaint = program.complaint((0, 2))
        if not complaint and program.process.returncode == 0:
            complaint = lab.complaint("sample", folder)
        yield Attack(
            "one bit flipped in a file",
            complaint and f"{name}: {complaint}",
            time.monotonic() - started,
        )
        shutil.rmtree(folder)


def in_other_environments(lab: Lab, rounds: int) -> Iterator[Attack]:
    """Results must be the same, or the program must say that they may differ, or refuse."""
    cases: dict[str, dict[str, object]] = {
        **{name: {"environ": environ} for name, environ in ENVIRONMENTS.items()},
        "umask 077": {"prepare": lambda: os.umask(0o077)},
        "a clock that runs backwards": {"first": BACKWARDS},
    }
    for name, options in cases.items():
        folder, started = lab.folder("resume"), time.monotonic()
        program = lab.start("resume", folder, **options)
        complaint = program.complaint((0, 2))
        if not complaint and program.process.returncode == 0 and "may differ" not in program.text:
            found = results(folder)
            if lab.expected["resume"] != found:
                complaint = "other results without a word"
        seconds = time.monotonic() - started
        yield Attack("other environment", complaint and f"{name}: {complaint}", seconds)


def among_two_processes(lab: Lab, rounds: int) -> Iterator[Attack]:
    """The other process must end within the deadline, with a message and no success."""
    for fault, flag in {
        "killed": "",
        "stopped": "",
        "with other settings": "--config.seed=1",
        "with other data": "--config.data.name=8gaussians",
    }.items():
        folder = lab.folder("train")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        joined = [f"--coordinator_address={address}", "--num_processes=2", "--heartbeat_seconds=10"]
        flags = [*TRAIN, "--config.train.num_steps=100000", f"--workdir={folder}", *joined]
        one = Program([*flags, "--process_id=0"])
        other = Program([*flags, "--process_id=1", *filter(None, [flag])])
        while not flag and not (folder / "checkpoints" / "20").exists():
            time.sleep(0.2)
        started = time.monotonic()
        if not flag:
            other.send(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        # JAX aborts a process whose peer is silent: code 134 of a shell.
        complaint = one.complaint((1, 2, 5, -signal.SIGABRT))
        seconds = time.monotonic() - started
        if flag:
            complaint = complaint or other.complaint((1, 2, 5, -signal.SIGABRT))
            if not complaint and (folder / "run.json").exists():
                complaint = "a run was created"
        other.send(signal.SIGKILL)
        yield Attack(f"two processes, one {fault}", complaint, seconds)


def main() -> None:
    """Prints the table, and what did not hold on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="random moments of each mode")
    parser.add_argument("--only", default="", help="only attacks whose function has this text")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    attacks = (
        *(at_random_moments, on_bad_storage, without_locks, two_at_once),
        *(with_one_bit_flipped, in_other_environments, among_two_processes),
    )
    rows: dict[str, list[Attack]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        # All processes compile the same programs.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        lab = Lab(Path(scratch), arguments.seed)
        for function in attacks:
            if arguments.only in function.__name__:
                for attack in function(lab, arguments.rounds):
                    rows.setdefault(attack.row, []).append(attack)
                    if attack.complaint:
                        print(f"{attack.row}: {attack.complaint}", file=sys.stderr, flush=True)
    print("| fault | tried | held | worst seconds |\n|---|---|---|---|")
    for row, made in rows.items():
        held = sum(not attack.complaint for attack in made)
        print(f"| {row} | {len(made)} | {held} | {max(attack.seconds for attack in made):.0f} |")
    sys.exit(any(attack.complaint for made in rows.values() for attack in made))


if __name__ == "__main__":
    main()
