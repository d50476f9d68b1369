"""Runs with several processes, on one or many hosts."""

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax

from experiments.errors import PeerError, UserError
from experiments.machine import memory, peers
from experiments.machine.interrupts import leave
from fdrl_jax import parallel

_QUIET_SECONDS = 5.0  # Time to wait for other processes before printing a message.
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

    Args:
      distributed: whether to detect missing values from the environment: JAX's own variables, a TPU
        pod slice, SLURM, Open MPI or Kubernetes.
      coordinator_address: HOST:PORT at which the first process listens.
      num_processes: number of processes.
      process_id: index of this process.
      heartbeat_seconds: a process that is silent for this long counts as failed.

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
    waiting = threading.Timer(
        _QUIET_SECONDS, _print_waiting, (coordinator_address, num_processes, process_id)
    )
    waiting.daemon = True
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
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the processes of the run cannot be joined: {reason}") from error
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
        yield
        peers.announce_exit(0)
    except UserError as error:
        if jax.process_count() == 1:
            raise
        _leave(error.exit_code, str(error))
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if jax.process_count() == 1:
            raise
        exhausted = memory.explain(error)
        if exhausted is not None:
            _leave(exhausted.exit_code, str(exhausted))
        reason = str(error).strip().splitlines()[0]
        _leave(
            PeerError.exit_code,
            f"another process of the run has ended, or cannot be reached ({reason}). The same "
            "command on all hosts resumes from the newest checkpoint",
        )
    except Exception:
        if jax.process_count() == 1:
            raise
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


def _leave(code: int, message: str) -> NoReturn:
    peers.announce_exit(code)
    leave(code, message)


def _print_waiting(address: str | None, num: int | None, own: int | None) -> None:
    where = f"at {address}" if address else "that the environment names"
    if own == 0:
        text = f"the other {(num or 2) - 1} processes of the run to join {where}"
    else:
        text = f"the first process of the run {where}"
    print(f"waiting for {text}", file=sys.stderr, flush=True)
