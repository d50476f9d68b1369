"""Attacks small runs with faults, and prints a table of what held.

Run: python -m benchmarks.faults [--rounds=12] [--only=TEXT]
An attack held if the program ended without a traceback or a process left behind, and if the same
command then gave the results of an uninterrupted one, bit for bit. Seconds are those from the fault
to the end. A round attacks four modes at a random moment each, and more rounds repeat the other
attacks too. Linux only. Ends with code 1 if something did not hold; stderr says what.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

DEADLINE = 120.0  # Seconds in which a program must have ended after a fault,
GRACE = 10.0  # and then its children.
TRAIN = (
    "--config=swissroll:tiny --config.checkpoint.every_steps=20 --config.log.every_steps=20 "
    "--config.snapshot.every_steps=100 --config.optimizer.schedule=constant "
    "--config.train.num_steps="
)
# The flags of each mode. All but "train" start from a run that is trained for 200 steps.
MODES = {
    "train": f"{TRAIN}200",
    "resume": f"{TRAIN}220",
    "sample": "--mode=sample --checkpoint=200 --num_samples=5000",
    "evaluate": "--mode=evaluate --checkpoint=200 --num_samples=128",
    "export": "--mode=export --checkpoint=200 --platforms=cpu",
}
ATTACKED = ("train", "sample", "evaluate", "export")
# Signals, and the exit codes after them. They may come before the program handles them.
SIGNALS = {
    "kill -9": (signal.SIGKILL, -signal.SIGKILL),
    "SIGSTOP": (signal.SIGSTOP, 0),
    "SIGTERM": (signal.SIGTERM, 4, -signal.SIGTERM),
    "Ctrl-C": (signal.SIGINT, 4, 130, -signal.SIGINT),
}
ENVIRONMENTS = (
    *("HOME=", "TMPDIR=/proc", "LC_ALL=C PYTHONIOENCODING=ascii", "PYTHONOPTIMIZE=1"),
    *("JAX_ENABLE_X64=1", "JAX_DEBUG_NANS=1", "JAX_DISABLE_JIT=1", "JAX_RANDOM_SEED_OFFSET=1"),
    *("JAX_DEFAULT_MATMUL_PRECISION=bfloat16", "JAX_NUMPY_DTYPE_PROMOTION=strict"),
    *("JAX_THREEFRY_PARTITIONABLE=0", "XLA_FLAGS=--xla_cpu_enable_fast_math=true"),
    "JAX_PLATFORMS=banana",
)
# Python that runs before the program.
NO_LOCKS = "import fcntl; fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError(37, 'No locks'))"
FAILING_FILES = """
import errno, os
def failing(*arguments, function=os.replace, count=[]):
    count.append(arguments)
    if len(count) == {at}:
        raise OSError(errno.{error}, os.strerror(errno.{error}))
    return function(*arguments)
os.replace = failing"""
SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
BACKWARDS = "import time; now, t = time.time, time.time(); time.time = lambda: 2 * t - now()"


class Program:
    """The program in a process and a session of its own, with its output in a file."""

    def __init__(self, flags: str, environ: str = "", first: str = "") -> None:
        run = "import runpy; runpy.run_module('experiments.main', run_name='__main__')"
        code = ["-c", f"{first}\n{run}"] if first else ["-m", "experiments.main"]
        changed = dict(pair.split("=", 1) for pair in environ.split())
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *code, *flags.split()],
            env={name: value for name, value in {**os.environ, **changed}.items() if value},
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def send(self, number: signal.Signals, after: float = 0.0) -> None:
        """Sends a signal as a terminal does, or SIGKILL to one process, as the system does."""
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            (os.kill if number == signal.SIGKILL else os.killpg)(self.process.pid, number)

    def complaint(self, allowed: Sequence[int] = (0,)) -> str:
        """Waits for the end, and returns what was wrong, or "". Sets `seconds` and `text`."""
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(DEADLINE)
        ended, code = time.monotonic(), self.process.returncode
        self.seconds = ended - started
        while (left := _processes(self.process.pid)) and time.monotonic() < ended + GRACE:
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with self._output as file:
            file.seek(0)
            self.text = file.read().decode(errors="replace")
        if left:
            return f"no end, or processes left behind: {left}"
        shows_traceback = "Traceback" in self.text and 1 not in allowed
        is_orderly = code in allowed and not shows_traceback
        return "" if is_orderly else f"code {code}: {self.text[-500:]}"


def _processes(session: int) -> list[int]:
    """Returns the processes of a session that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number, *_ = file.read_text().rpartition(")")[2].split()
            if int(number) == session and state != "Z":
                found.append(int(file.parent.name))
    return found


def results(folder: Path) -> dict[str, object]:
    """Returns the results of a run that must not depend on faults, by name."""
    found: dict[str, object] = {}
    for path in folder.glob("evaluations/*/record.json"):
        record = json.loads(path.read_text())
        found[path.parent.name] = record["key"], record["metrics"]
    for pattern in ("samples/*.npz", "export/*/*.stablehlo", "export/*/*.safetensors"):
        found.update((path.name, path.read_bytes()) for path in folder.glob(pattern))
    return found


class Lab:
    """A trained run, what each mode gives without a fault, and the attacks of each row so far."""

    def __init__(self, scratch: Path) -> None:
        self.random, self._scratch, self._count = random.Random(0), scratch, itertools.count()
        self.rows: dict[str, list[tuple[str, float]]] = {}
        self.trained, self.expected, self.seconds = scratch / "trained", {}, {}
        for mode in MODES:
            folder = self.trained if mode == "train" else self.folder(mode)
            program = self.start(mode, folder)
            if complaint := program.complaint():
                sys.exit(f"{mode} fails without a fault: {complaint}")
            self.seconds[mode], self.expected[mode] = program.seconds, results(folder)

    def folder(self, mode: str) -> Path:
        folder = self._scratch / f"run_{next(self._count)}"
        return folder if mode == "train" else shutil.copytree(self.trained, folder)

    def start(self, mode: str, folder: Path, **options: str) -> Program:
        return Program(f"{MODES[mode]} --workdir={folder}", **options)

    def difference(self, mode: str, folder: Path) -> str:
        """Returns which results of a mode differ from those without a fault, or ""."""
        wanted, found = self.expected[mode], results(folder)
        wrong = [name for name in wanted if found.get(name) != wanted[name]]
        return f"other results: {', '.join(wrong)}" if wrong else ""

    def record(self, row: str, what: object, complaint: str, program: Program) -> None:
        self.rows.setdefault(row, []).append((complaint, program.seconds))
        if complaint:
            print(f"{row}, {what}: {complaint}", file=sys.stderr, flush=True)

    def attack(
        self,
        row: str,
        mode: str,
        folder: Path | None = None,
        codes: Sequence[int] = (0, 2),
        signals: Sequence[tuple[signal.Signals, float]] = (),
        repair: Callable[[], object] = lambda: None,
        **options: str,
    ) -> None:
        """Runs a mode under a fault, which `repair` ends, and again without it if it failed."""
        folder = folder or self.folder(mode)
        program = self.start(mode, folder, **options)
        for sent, after in signals:
            program.send(sent, after)
        complaint = program.complaint(codes)
        repair()
        if program.process.returncode and not complaint:
            complaint = self.start(mode, folder).complaint()
        if "may differ" not in program.text:  # It may say so, rather than refuse.
            complaint = complaint or self.difference(mode, folder)
        self.record(row, mode, complaint, program)
        shutil.rmtree(folder)


def at_random_moments(lab: Lab, rounds: int) -> None:
    for number, (place, mode) in itertools.product(range(rounds), enumerate(ATTACKED)):
        name = list(SIGNALS)[(number + place) % len(SIGNALS)]
        sent, *codes = SIGNALS[name]
        signals = [(sent, lab.random.uniform(0.5, lab.seconds[mode]))]
        signals += [(signal.SIGCONT, 2.0)] * (sent == signal.SIGSTOP)
        lab.attack(name, mode, codes=(0, *codes), signals=signals)


def on_bad_storage(lab: Lab, rounds: int) -> None:
    for mode in ATTACKED:
        lab.attack("files of at most 20 kB", mode, first=SMALL_FILES)
        for error in ("EIO", "ESTALE", "ETIMEDOUT") * max(rounds // 6, 1):
            first = FAILING_FILES.format(at=lab.random.randint(1, 9), error=error)
            lab.attack(f"{error} when a file is replaced", mode, first=first)
    disks = ("full disk", "read-only disk") if os.geteuid() == 0 else ()  # Root may mount them.
    for mode, row in itertools.product(ATTACKED, disks):
        with tempfile.TemporaryDirectory() as disk:
            mount = ["mount", "-t", "tmpfs", "none", disk, "-o"]
            subprocess.run([*mount, "size=1g"], check=True)
            folder = Path(disk) / "run"
            if mode != "train":
                shutil.copytree(lab.trained, folder)
            limit = {"full disk": f"size={shutil.disk_usage(disk).used + 50_000}"}.get(row, "ro")
            subprocess.run([*mount, f"remount,{limit}"], check=True)
            repair = functools.partial(subprocess.run, [*mount, "remount,rw,size=1g"], check=True)
            lab.attack(row, mode, folder, repair=repair)
            subprocess.run(["umount", disk], check=True)


def two_at_once(lab: Lab, rounds: int) -> None:
    trainings, *others = itertools.combinations_with_replacement(("resume", *ATTACKED[1:]), 2)
    cases = [(trainings, NO_LOCKS), *((pair, "") for pair in (trainings, *others))]
    for pair, first in cases * max(rounds // 4, 1):
        folder = lab.folder("resume")
        programs = [lab.start(mode, folder, first=first) for mode in pair]
        complaints = [program.complaint((0, 2)) for program in programs]
        if pair == trainings and not any(program.process.returncode for program in programs):
            complaints.append("both trained")
        for mode in pair:
            complaints += [lab.start(mode, folder).complaint(), lab.difference(mode, folder)]
        row = f"two programs on one folder{', no locks' if first else ''}"
        lab.record(row, pair, "; ".join(filter(None, complaints)), programs[0])


def with_one_bit_flipped(lab: Lab, rounds: int) -> None:
    files = [path for path in lab.trained.rglob("*") if path.is_file() and path.stat().st_size]
    for file in lab.random.sample(sorted(files), min(len(files), 5 * rounds)):
        folder, name = lab.folder("sample"), file.relative_to(lab.trained)
        content = bytearray(file.read_bytes())
        content[lab.random.randrange(len(content))] ^= 1 << lab.random.randrange(8)
        (folder / name).write_bytes(content)
        restore = functools.partial(shutil.copy, file, folder / name)
        lab.attack("one bit flipped in a file", "sample", folder, repair=restore)


def in_other_environments(lab: Lab, rounds: int) -> None:
    for environ in ENVIRONMENTS:
        lab.attack(environ, "resume", environ=environ)
    lab.attack("umask 077", "resume", first="import os; os.umask(0o77)")
    lab.attack("a clock that runs backwards", "resume", first=BACKWARDS)


def among_two_processes(lab: Lab, rounds: int) -> None:
    """A fault of one process must end the other, with an error."""
    faults = {"is killed": signal.SIGKILL, "is stopped": signal.SIGSTOP}
    for fault, cause in {**faults, "has another seed": "--config.seed=1"}.items():
        folder, port = lab.folder("train"), lab.random.randint(20_000, 30_000)
        flags = (
            f"{TRAIN}100000 --workdir={folder} --coordinator_address=127.0.0.1:{port} "
            "--num_processes=2 --heartbeat_seconds=10 --process_id="
        )
        is_seed = isinstance(cause, str)
        one, other = Program(f"{flags}0"), Program(f"{flags}1 {cause if is_seed else ''}")
        if not is_seed:
            while not (folder / "checkpoints" / "20").exists() and one.process.poll() is None:
                time.sleep(0.2)
            other.send(cause)
        complaint = one.complaint((1, 2, 5, -signal.SIGABRT))  # JAX aborts if a peer is silent.
        if is_seed and (folder / "run.json").exists():
            complaint = complaint or "a run was created"
        other.send(signal.SIGKILL)
        lab.record(f"one of two processes {fault}", "", complaint, one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="random moments of each mode")
    parser.add_argument("--only", default="", help="only attacks whose function has this text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        lab = Lab(Path(scratch))
        for attack in (
            *(at_random_moments, on_bad_storage, two_at_once, with_one_bit_flipped),
            *(in_other_environments, among_two_processes),
        ):
            if arguments.only in attack.__name__:
                attack(lab, arguments.rounds)
    print("| fault | tried | held | worst seconds |\n|---|---|---|---|")
    for row, made in lab.rows.items():
        complaints, seconds = zip(*made, strict=True)
        print(f"| {row} | {len(made)} | {complaints.count('')} | {max(seconds):.0f} |")
    sys.exit(any(complaint for made in lab.rows.values() for complaint, _ in made))


if __name__ == "__main__":
    main()
