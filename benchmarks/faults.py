"""Attacks small runs with faults, and prints a table of what held.

Run: python -m benchmarks.faults [--rounds=13] [--only=NAME]
An attack held if the program ended without a traceback or a process left behind, and the same
command then gave the bits of an uninterrupted one; seconds are from the fault to the end. A round
attacks four modes at a random moment each, two pairs of modes and five files; every eighth, each
mode by each failure of a disk. Linux only; some need root and strace. Failures: stderr, code 1.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments.main import main as run_program

DEADLINE, GRACE = 300.0, 10.0  # Seconds for a program to end after a fault, and for its children.
TRAIN = (
    "--config=swissroll:tiny --config.checkpoint.every_steps=20 --config.snapshot.every_steps=30 "
    "--config.optimizer.schedule=constant --config.train.num_steps="
)
# The flags of each mode. All but "train" start from a run that is trained for 60 steps.
MODES = {
    "train": f"{TRAIN}60",
    "resume": f"{TRAIN}80",
    "sample": "--mode=sample --checkpoint=60 --num_samples=1000",
    "evaluate": "--mode=evaluate --checkpoint=60 --num_samples=32",
    "export": "--mode=export --checkpoint=60 --platforms=cpu",
}
ATTACKED = ("train", "sample", "evaluate", "export")
NUM_CALLS = dict(zip(ATTACKED, (130, 13, 48, 28), strict=True))  # Of Python, on files of a run.
RESULTS = ("evaluations/*/*.json", "samples/*.npz", "export/*/*.s*")  # StableHLO, safetensors.
# Exit codes after signals, which may come before the program handles them.
SIGNALS = {"SIGKILL": (-9, 0), "SIGSTOP, SIGCONT": (0,)}
SIGNALS |= {"SIGTERM": (4, -15, 0), "SIGINT": (4, 130, -2, 0)}
HARMLESS = "-u HOME TMPDIR=/proc LC_ALL=C PYTHONIOENCODING=ascii PYTHONOPTIMIZE=1"
HARMLESS += " JAX_DEBUG_NANS=1 JAX_NUMPY_DTYPE_PROMOTION=strict"
REFUSED = ("JAX_ENABLE_X64=1", "JAX_RANDOM_SEED_OFFSET=1", "JAX_THREEFRY_PARTITIONABLE=0")
REFUSED += ("JAX_DISABLE_JIT=1", "JAX_PLATFORMS=banana")
REPORTED = ("JAX_DEFAULT_MATMUL_PRECISION=bfloat16", "XLA_FLAGS=--xla_cpu_enable_fast_math=true")
# Python that runs before the program.
NO_LOCKS = "import fcntl; fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError(37, 'No locks'))"
BACKWARDS = "import time; now, t = time.time, time.time(); time.time = lambda: 2 * t - now()"
OLD_LISTING = """
import os, pathlib; listdir, glob = os.listdir, pathlib.Path.glob
os.listdir = lambda path=".": [name for name in listdir(path) if name != "60"]
pathlib.Path.glob = lambda path, text: (p for p in glob(path, text) if "60" not in p.parts)"""
FAILING_CALLS = """
import errno, itertools, os, sys
calls, count = ("open", "os.rename", "os.mkdir", "os.remove"), itertools.count(1)
def fail(event, arguments):
    if event in calls and "/run_" in str(arguments[0]) and next(count) == {at}:
        raise OSError(errno.{error}, os.strerror(errno.{error}))
sys.addaudithook(fail)"""
FAILING_SYSTEM = "strace -f -o /dev/null -e trace={calls} -e inject={calls}:error=EIO:when={at}"
Action = Callable[[], object]  # `bool` does nothing.
CONTEXT = multiprocessing.get_context("forkserver")


def _run(output: str, flags: str, through: str | None, first: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job ignores it.
    multiprocessing.set_start_method("fork", force=True)  # As in other processes on Linux.
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
    if through is not None:
        command = f"env {through} {sys.executable} -m experiments.main {flags}".split()
        os.execvp(command[0], command)
    exec(first, {})  # noqa: S102
    run_program(flags.split())


class Program:
    """The program in a process and a session of its own, with its output in a file.

    It is forked after all imports, which take longer than the rest, or started by `env THROUGH`.
    """

    def __init__(self, flags: str, through: str | None = None, first: str = "") -> None:
        self._output = output = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._process = CONTEXT.Process(target=_run, args=(output.name, flags, through, first))
        self._process.start()
        self.pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            while os.getsid(self.pid) != self.pid:
                time.sleep(0.01)

    def send(self, number: int) -> None:
        """Sends a signal as a terminal does, or SIGKILL to one process, as the system does."""
        with contextlib.suppress(ProcessLookupError):
            (os.kill if number == signal.SIGKILL else os.killpg)(self.pid, number)

    def complaint(self, codes: tuple[int, ...] = (0,), deadline: float = DEADLINE) -> str:
        """Waits for the end, and returns what was wrong, or "". Sets code, seconds and text."""
        started = time.monotonic()
        self._process.join(deadline)
        ended, self.code = time.monotonic(), self._process.exitcode
        self.seconds = ended - started
        while (left := processes(self.pid)) and time.monotonic() < ended + GRACE:
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with self._output as file:
            self.text = file.read().decode(errors="replace")
        wrong = left or self.code not in codes or "Traceback" in self.text
        return f"code {self.code}, processes left: {left}: {self.text[-500:]}" if wrong else ""


def processes(session: int) -> list[int]:
    """Returns the processes of a session that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number, *_ = file.read_text().rpartition(")")[2].split()
            if int(number) == session and state != "Z":
                found.append(int(file.parent.name))
    return found


def results(run: Path) -> dict[str, bytes]:
    """Returns the files of a run that must not depend on faults, by path."""
    paths = [path for pattern in RESULTS for path in run.glob(pattern)]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


class Lab:
    """A trained run, what each mode gives without a fault, and the attacks of each row so far."""

    def __init__(self, scratch: Path) -> None:
        self.random, self.scratch, self._count = random.Random(0), scratch, itertools.count()
        self.rows: dict[str, list[tuple[str, float]]] = {}
        self.expected, self.seconds = {}, {}
        for mode in (*MODES, *MODES):  # The first time, they compile.
            program = self.start(mode, folder := self.folder(mode))
            if complaint := program.complaint(deadline=4 * DEADLINE):
                sys.exit(f"{mode} fails without a fault: {complaint}")
            self.seconds[mode], self.expected[mode] = program.seconds, results(folder)
            self.trained = folder if mode == "train" else self.trained

    def folder(self, mode: str, folder: Path | None = None) -> Path:
        folder = folder or self.scratch / f"run_{next(self._count)}"
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
        self, row: str, mode: str, folder: Path | None = None, repair: Action = bool, **options: str
    ) -> None:
        """Runs a mode under a fault, which `repair` ends, and again without it if it failed."""
        folder = folder or self.folder(mode)
        program = self.start(mode, folder, **options)
        for name in row.split(", ") if row in SIGNALS else ():
            time.sleep(self.random.uniform(0.2, self.seconds[mode]))
            program.send(signal.Signals[name])
        complaint = program.complaint(SIGNALS.get(row, (2,) if row in REFUSED else (0, 2)))
        repair()
        if program.code and not complaint:
            complaint = self.start(mode, folder).complaint()
        complaint = complaint or self.difference(mode, folder)
        self.record(row, mode, complaint, program)
        shutil.rmtree(folder)


def moments(lab: Lab, rounds: int) -> None:
    for number in range(4 * rounds):
        lab.attack(list(SIGNALS)[(number + number // 4) % 4], ATTACKED[number % 4])


def storage(lab: Lab, rounds: int) -> None:
    random = lab.random.randint
    for mode in ATTACKED * -(-rounds // 8):
        if os.geteuid() == 0 and shutil.which("strace"):
            for row in ("full disk", "no inodes", "read-only disk"):
                on_a_disk(lab, row, mode)
            through = "setpriv --bounding-set=-dac_override"  # Permissions then bind root too.
            subprocess.check_call(["chown", "-R", "65534", folder := lab.folder("resume")])
            lab.attack("files of another user", mode, folder, through=through)
            through = FAILING_SYSTEM.format(calls="/^(fsync|rename|mkdir|link)", at=random(1, 6))
            lab.attack("EIO when the system completes a file", mode, through=through)
        for error in ("EIO", "ESTALE", "ETIMEDOUT"):
            first = FAILING_CALLS.format(error=error, at=random(1, NUM_CALLS[mode]))
            lab.attack(f"{error} when Python opens or changes a file", mode, first=first)


def on_a_disk(lab: Lab, row: str, mode: str) -> None:
    with tempfile.TemporaryDirectory() as disk:
        remount = f"mount none {disk} -t tmpfs -o rw,size=1g,nr_inodes=9k,remount"
        subprocess.check_call(remount.removesuffix(",remount").split())
        folder, used = lab.folder(mode, Path(disk) / "run"), os.statvfs(disk)
        size, inodes = shutil.disk_usage(disk).used, used.f_files - used.f_ffree
        limits = {"full disk": f"size={size + 50_000}", "no inodes": f"nr_inodes={inodes + 5}"}
        subprocess.check_call(f"{remount},{limits.get(row, 'ro')}".split())
        lab.attack(row, mode, folder, repair=lambda: subprocess.check_call(remount.split()))
        subprocess.check_call(["umount", disk])


def pairs(lab: Lab, rounds: int) -> None:
    every = itertools.combinations_with_replacement(("resume", *ATTACKED[1:]), 2)
    cases = [(("resume", "resume"), NO_LOCKS), *zip(every, itertools.repeat(""))]
    for pair, first in itertools.islice(itertools.cycle(cases), 2 * rounds):
        folder, codes = lab.folder("resume"), (0, 2) if pair[0] == pair[1] else (0,)
        programs = [lab.start(mode, folder, first=first) for mode in pair]
        complaints = [program.complaint(codes) for program in programs]
        if pair == ("resume", "resume") and not any(program.code for program in programs):
            complaints.append("both trained")
        for mode, program in zip(pair, programs, strict=True):
            again = lab.start(mode, folder).complaint() if program.code == 2 else ""
            complaints += [again, lab.difference(mode, folder)]
        row = f"two programs on one folder{', no locks' if first else ''}"
        lab.record(row, pair, "; ".join(filter(None, complaints)), programs[0])


def bits(lab: Lab, rounds: int) -> None:
    files = [path for path in lab.trained.rglob("*") if path.is_file() and path.stat().st_size]
    for file in lab.random.sample(sorted(files), min(len(files), 5 * rounds)):
        folder, content = lab.folder("sample"), bytearray(file.read_bytes())
        damaged = folder / file.relative_to(lab.trained)
        content[lab.random.randrange(len(content))] ^= 1 << lab.random.randrange(8)
        damaged.write_bytes(content)
        lab.attack("one flipped bit", "sample", folder, partial(shutil.copy, file, damaged))


def environments(lab: Lab, rounds: int) -> None:
    lab.attack(HARMLESS, "resume", through=HARMLESS)
    for environment in REFUSED:
        lab.attack(environment, "sample", through=environment)
    for environment in REPORTED:
        program = lab.start("train", lab.folder("resume"), through=environment)
        complaint = program.complaint()
        said = "" if "may differ" in program.text else "it does not say that bits may differ"
        lab.record(environment, "train", complaint or said, program)
    lab.attack("umask, backward clock", "resume", first="import os; os.umask(0o77);" + BACKWARDS)
    lab.attack("listings without the newest checkpoint", "resume", first=OLD_LISTING)


def peers(lab: Lab, rounds: int) -> None:
    """A fault of one of two processes must end the other, with an error."""
    signals = {"is killed": signal.SIGKILL, "is stopped": signal.SIGSTOP}
    others = {"has another seed": "seed=1", "has other data": "data.name=8gaussians"}
    for fault in (*signals, *others):
        sent, own = signals.get(fault, 0), f"--config.{others.get(fault, 'seed=0')}"
        folder, port = lab.folder("train"), lab.random.randint(20_000, 30_000)
        shared = f"{TRAIN}100000 --workdir={folder} --coordinator_address=127.0.0.1:{port} "
        shared += "--num_processes=2 --heartbeat_seconds=10 --process_id="
        one, other = (Program(shared + more, through="") for more in ("0", f"1 {own}"))
        while sent and not (folder / "checkpoints" / "20").exists() and processes(one.pid):
            time.sleep(0.2)
        other.send(sent)
        complaint = one.complaint((1, 5, -signal.SIGABRT) if sent else (2,), deadline=120.0)
        if not sent and (folder / "run.json").exists():
            complaint = complaint or "a run was created"
        other.send(signal.SIGKILL)
        lab.record(f"one of two processes {fault}", "", complaint, one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=13, help="random moments of each mode")
    every = {of.__name__: of for of in (moments, storage, pairs, bits, environments, peers)}
    parser.add_argument("--only", choices=every, metavar="NAME", help=f"one of {', '.join(every)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        CONTEXT.set_forkserver_preload([f"experiments.{name}" for name in ("main", *ATTACKED)])
        lab = Lab(Path(scratch))
        for name in [arguments.only] if arguments.only else every:
            every[name](lab, arguments.rounds)
    print("| fault | tried | held | worst seconds |\n|---|---|---|---|")
    for row, made in lab.rows.items():
        complaints, seconds = zip(*made, strict=True)
        print(f"| {row} | {len(made)} | {complaints.count('')} | {max(seconds):.0f} |")
    sys.exit(any(complaint for made in lab.rows.values() for complaint, _ in made))


if __name__ == "__main__":
    main()
