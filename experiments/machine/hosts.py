"""Several processes, on one or many hosts, that train one model."""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Iterator

import jax

from experiments.errors import PeerError, UserError
from fdrl_jax import parallel

_SHUTDOWN_TIMEOUT_SECONDS = 24 * 3_600  # The first process evaluates while the others wait.


def join(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    automatic: bool,
    heartbeat_seconds: int,
) -> None:
    """Joins the processes of a run, before anything runs on a device.

    Args:
      coordinator_address: HOST:PORT at which the first process listens.
      num_processes: how many there are.
      process_id: the number of this one.
      automatic: whether to find out what is not given from the environment: JAX's own variables, a
        TPU pod slice, SLURM, Open MPI or Kubernetes.
      heartbeat_seconds: after this long without a sign of one process the others end.

    Raises:
      UserError: if what is given does not suffice.
    """
    given = (coordinator_address, num_processes, process_id)
    if not automatic and given == (None, None, None):
        return
    if not automatic and None in given:
        raise UserError(
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I go together; "
            "--distributed finds out what is missing on TPU pods, SLURM and the like"
        )
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the processes of the run cannot be joined: {reason}") from error
    # JAX ends this process with a message when another one is gone; the stacks of all its threads
    # would hide it.
    faulthandler.disable()


@contextlib.contextmanager
def ending_with_peers() -> Iterator[None]:
    """Ends this process if another one of the run has gone, as the collectives then fail.

    At once and without cleaning up: whatever closes in good order waits for all processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0]
        print(
            "error: another process of the run has ended, or cannot be reached "
            f"({reason}). The same command on all hosts goes on from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(PeerError.exit_code)


def check_agreement(replicated: object, step: int) -> None:
    """Checks that all replicas hold the same bits.

    Raises:
      PeerError: naming those that differ.
    """
    odd = parallel.odd_replicas(replicated)
    if odd:
        raise PeerError(
            f"at step {step} the replicas {', '.join(map(str, odd))} of {jax.device_count()} do "
            "not hold the same numbers as the others: faulty memory, or processes with different "
            "checkpoints or versions. Nothing of this was saved"
        )
