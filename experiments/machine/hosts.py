"""Runs with several processes, on one or many hosts."""

import contextlib
import faulthandler
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator

import jax

from experiments.errors import PeerError, UserError, explained, first_line
from experiments.machine import peers
from experiments.machine.interrupts import leave
from fdrl_jax.training import parallel

_QUIET_SECONDS = 5.0  # Time to wait for other processes before printing a message.
# How JAX, Gloo and NCCL report a process that has ended or cannot be reached. Other errors are of
# this process or its device, and a restart may not help.
_OF_PEERS = re.compile(
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b"
    r"|\b(Gloo|NCCL|collectives?|connection|coordination|heartbeats?|peers?|rendezvous)\b",
    re.IGNORECASE,
)
_SHUTDOWN_TIMEOUT_SECONDS = 24 * 3_600  # The first process evaluates while the others wait.


def join(
    *,
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> None:
    """Joins the processes of a run. Must be called before anything runs on a device.

    The first process listens at the address, HOST:PORT. If `distributed`, missing values are
    detected from the environment: JAX's own variables, a TPU pod slice, SLURM, Open MPI or
    Kubernetes.

    Raises:
      UserError: if a value is missing, or if the processes cannot be joined.
    """
    given = (coordinator_address, num_processes, process_id)
    if not distributed and given == (None, None, None):
        return
    if not distributed and None in given:
        raise UserError(
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I must be given "
            "together; --distributed detects missing values on TPU pods, SLURM and similar"
        )
    if process_id == 0:
        whom = f"the other {(num_processes or 2) - 1} processes of the run to join"
    else:
        whom = "the first process of the run"
    where = f"at {coordinator_address}" if coordinator_address else "that the environment names"
    text = f"waiting for {whom} {where}"
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
        raise UserError(
            f"the processes of the run cannot be joined: {first_line(error)}"
        ) from error
    finally:
        waiting.cancel()
    # If another process is lost, JAX ends this one with a message, which would be hidden by the
    # stacks of all its threads.
    faulthandler.disable()


@contextlib.contextmanager
def leaving_with_peers() -> Iterator[None]:
    """Ends this process immediately on an error, its own or a peer's, if there are several.

    There is no cleanup, because an orderly shutdown would wait for all processes.
    """
    try:
        with explained():
            yield
        peers.announce_exit(0)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and _OF_PEERS.search(str(error)):
            peers.let_peers_end_this()
            error = PeerError(
                "another process of the run has ended, or cannot be reached "
                f"({first_line(error)}). The same command on all hosts resumes from the newest "
                "checkpoint"
            )
        if isinstance(error, UserError):
            peers.announce_exit(error.exit_code)
            leave(error.exit_code, str(error))
        traceback.print_exc()
        peers.announce_exit(1)
        os._exit(1)


def check_agreement(replicated: object, step: int) -> None:
    """Checks that all replicas are equal bit for bit.

    Raises:
      PeerError: if some differ; names them.
    """
    divergent = parallel.divergent_replicas(replicated)
    if divergent:
        raise PeerError(
            f"at step {step} the replicas {', '.join(map(str, divergent))} of "
            f"{jax.device_count()} differ from the others. Possible causes are faulty memory, or "
            "processes with different checkpoints or versions. This state was not saved"
        )
