"""Runs with several processes, on one or many hosts, and signals that ask a run to stop."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Self

import jax

from experiments.errors import UserError, first_line
from fdrl_jax.training import parallel

_QUIET_SECONDS = 5.0  # Time to wait for other processes before printing a message.
_SHUTDOWN_TIMEOUT_SECONDS = 24 * 3_600  # The first process evaluates while the others wait.
# The result of a vote is read this many dispatches later, when it is ready without waiting.
_VOTES_UNDER_WAY = 2
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


def join(
    *,
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> None:
    """Joins the processes of a run. Must be called before anything runs on a device.

    The first process listens at the address, HOST:PORT. If `distributed`, JAX detects missing
    values on TPU pods, SLURM and similar. If a process ends, JAX ends the others after
    `heartbeat_seconds`.
    """
    given = (coordinator_address, num_processes, process_id)
    if not distributed and given == (None, None, None):
        return
    if not distributed and None in given:
        raise UserError(
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I must be given "
            "together; --distributed detects missing values on TPU pods, SLURM and similar"
        )
    where = coordinator_address or "the detected address"
    text = f"waiting for the other processes of the run at {where}"
    waiting = threading.Timer(_QUIET_SECONDS, print, [text], {"file": sys.stderr, "flush": True})
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            # By default the first process would listen on all interfaces of its host.
            coordinator_bind_address=coordinator_address,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of the run cannot join: {first_line(error)}") from error
    finally:
        waiting.cancel()
    if _has_own_gpus(os.environ):
        for kind in ("cuda", "rocm"):
            jax.config.update(f"jax_{kind}_visible_devices", "all")
    # If another process is lost, JAX ends this one with a message, which would be hidden by the
    # stacks of all its threads.
    faulthandler.disable()
    # JAX has set a handler of SIGTERM that only takes note of it. Training sets its own; elsewhere
    # the signal should end the process.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def num_processes() -> int:
    """Returns the number of processes of the run, without starting JAX's backend."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def check_devices() -> None:
    """Raises a UserError unless all processes have equally many devices. Starts JAX's backend."""
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(index) for index in sorted(set(owners))]
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes of the run have {', '.join(map(str, counts))} devices, but each needs "
            "the same number: check which devices are visible on each host"
        )


class StopSignals:
    """Handles SIGTERM, which clusters send some time before they kill a process, and Ctrl-C.

    After the first signal, the loop saves and stops at the next step boundary; a second one ends
    the process at once. A signal to one of several processes suffices: they vote at each dispatch.
    """

    def __init__(self) -> None:
        self.heard = ""  # The name of the signal, if there was one.
        self._votes: deque[Any] = deque()
        self._before: dict[signal.Signals, Any] = {}
        self._before_fd = self._writer = -1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Others cannot handle signals.
            # Python's handlers wait for compiled code, which may take minutes. A thread does not.
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._before = {s: signal.signal(s, lambda *_: None) for s in _NAMES}
            self._before_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            signal.set_wakeup_fd(self._before_fd)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            os.close(self._writer)  # Ends the thread.

    def is_due(self) -> bool:
        """Whether to stop now. Every process must call this once before each dispatch."""
        if jax.process_count() == 1:
            return bool(self.heard)
        self._votes.append(parallel.any_process(bool(self.heard)))
        return len(self._votes) > _VOTES_UNDER_WAY and bool(self._votes.popleft())

    def _listen(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as signals:
            while received := signals.read(1):
                if received[0] not in _NAMES:
                    continue
                if self.heard:
                    os._exit(128 + received[0])
                self.heard = _NAMES[signal.Signals(received[0])]
                with contextlib.suppress(OSError):  # The terminal may be closed.
                    text = f"\n{self.heard}: saving and stopping; again to stop now"
                    print(text, file=sys.stderr)


def _has_own_gpus(environ: Mapping[str, str]) -> bool:
    """Whether all GPUs that this process sees are its own.

    Under SLURM and Open MPI, JAX uses one GPU per process, by its number on the host. A task with
    `--gpus-per-task` sees the GPUs that SLURM gave it, whose numbers begin at 0, and the process of
    a host without others should use all GPUs. Under `mpirun` in a SLURM job, SLURM's variables may
    be those of the step that starts Open MPI's daemons, one per host.
    """
    if environ.get("JAX_LOCAL_DEVICE_IDS"):  # The user has chosen.
        return False
    per_task = environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]  # It may begin with TYPE:.
    visible = environ.get("CUDA_VISIBLE_DEVICES") or environ.get("ROCR_VISIBLE_DEVICES") or ""
    tasks, nodes = environ.get("SLURM_NTASKS"), environ.get("SLURM_STEP_NUM_NODES")
    of_mpi = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    is_alone = of_mpi == "1" if of_mpi else tasks is not None and tasks == nodes
    return is_alone or (bool(visible) and per_task == str(len(visible.split(","))))
