"""Processes, devices and precision: `set_cpu_flags` comes first, and then `join`."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import logging
import os
import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import fdrl_jax
from experiments.errors import UserError, first_line, leave
from experiments.settings import Settings
from fdrl_jax.training import parallel

# Selects the older kernels for convolutions, which compute weight gradients about twice as fast.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=individual_dot"
# Selects oneDNN for convolutions and matrix products, which is needed for fast bfloat16.
ONEDNN_FLAG = "--xla_cpu_experimental_onednn_custom_call=true"

# An unknown flag aborts the process, and oneDNN's kernels are correct only in tested versions. Each
# flag is therefore set only from its first version up to, but excluding, its second.
_CPU_FLAG_VERSIONS = ((0, 10, 2), (0, 13))
_ONEDNN_VERSIONS = ((0, 12), (0, 13))
_SHUTDOWN_SECONDS = 24 * 3_600  # The first process evaluates while the others wait.
_PARTING_SECONDS = 1.0  # Time for the messages of processes that end together.
_links: list[socket.socket] = []  # Connections to other processes of the run.
_parted = threading.Event()


def join(
    distributed: bool, address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of a run. If one of them ends without `part`, the others do as well."""
    given = (address, num_processes, process_id)
    if not distributed and given == (None, None, None):
        return
    if not distributed and None in given:
        raise UserError(
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I must be given "
            "together; --distributed detects missing values on TPU pods, SLURM and similar"
        )
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            # By default the first process would listen on all interfaces of its host.
            coordinator_bind_address=address,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of the run cannot join: {first_line(error)}") from error
    # JAX's handler of SIGTERM only takes note of it. Training sets its own.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(index) for index in sorted(set(owners))]
    if len(set(counts)) > 1:
        raise UserError(f"the processes have {counts} devices, but each needs the same number")
    if jax.process_count() > 1:
        _link(address.rpartition(":")[0] if address else "")


def _link(host: str) -> None:
    """Connects all processes to the first one. The system closes the connections of a process."""
    is_first = jax.process_index() == 0
    host = host or socket.gethostname()
    server = socket.create_server((host, 0)) if is_first else None
    packed = np.frombuffer(socket.inet_aton(socket.gethostbyname(host)), np.uint8)
    port = server.getsockname()[1] if server else 0
    *parts, port = multihost_utils.broadcast_one_to_all(np.array([*packed, port], np.int32))
    if server:
        _links.extend(server.accept()[0] for _ in range(jax.process_count() - 1))
    else:
        where = ".".join(str(int(part)) for part in parts)
        _links.append(socket.create_connection((where, int(port))))
    for link in _links:
        threading.Thread(target=_watch, args=(link,), daemon=True).start()


def _watch(link: socket.socket) -> None:
    received = b""
    with contextlib.suppress(OSError):
        received = link.recv(1)
    if received != b"+":
        time.sleep(_PARTING_SECONDS / 2 if received else 0.0)  # For an error of our own.
        if not _parted.is_set():
            leave(1, "error: another process of the run has ended, see its output")


def part(*, failed: bool) -> None:
    """Tells the other processes that this one ends, as they do, or with an error of its own."""
    if _links and failed:
        time.sleep(_PARTING_SECONDS / 2)  # If another process has ended, `_watch` says so first.
    _parted.set()
    for link in _links:
        with contextlib.suppress(OSError):
            link.send(b"-" if failed else b"+")
    if _links and failed:
        time.sleep(_PARTING_SECONDS)  # JAX aborts processes whose first one has ended.


def set_options() -> None:
    """Sets the options of JAX that decide random numbers and types, whatever the environment."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_threefry_partitionable", True)
    jax.config.update("jax_random_seed_offset", 0)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")


def set_cpu_flags(
    environ: MutableMapping[str, str] = os.environ, *, bfloat16: bool = False
) -> None:
    """Sets `XLA_FLAGS`, unless it is set, to safe flags; XLA reads it when its backend starts."""
    if "XLA_FLAGS" not in environ and _is_within(_CPU_FLAG_VERSIONS):
        use_onednn = bfloat16 and why_not_onednn(environ) is None
        environ["XLA_FLAGS"] = f"{CPU_FLAG} {ONEDNN_FLAG}" if use_onednn else CPU_FLAG


def why_not_onednn(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns why oneDNN's bfloat16 kernels cannot be used here, or `None` if they can."""
    # Without AMX, the kernels were measured on AMD's processors only.
    fast = {"amx_bf16"}
    if _of_processor("vendor_id") == "AuthenticAMD":
        fast.add("avx512_bf16")
    if not fast & {*_of_processor("flags|Features").split()}:
        return "the processor has neither AMX (amx_bf16) nor AMD's AVX-512 for it (avx512_bf16)"
    if not _is_within(_ONEDNN_VERSIONS):
        return "the fast kernels need JAX 0.12 (Python 3.12 or newer)"
    if environ.get("JAX_COMPILATION_CACHE_DIR"):
        return "the fast kernels crash with a compilation cache; unset JAX_COMPILATION_CACHE_DIR"
    if "XLA_FLAGS" in environ and not uses_onednn(environ):
        return f"XLA_FLAGS is set without {ONEDNN_FLAG}"
    return None


def uses_onednn(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the flags of this process select oneDNN for convolutions."""
    return ONEDNN_FLAG in environ.get("XLA_FLAGS", "").split()


def resolved(settings: Settings) -> Settings:
    """Returns the settings with "auto" replaced: bfloat16 if it is fast here, or else float32."""
    used, slow, backend = settings.precision, None, jax.default_backend()
    if backend == "cpu" and not uses_onednn():
        slow = why_not_onednn() or "the fast kernels were not switched on at the start"
    if backend == "gpu":
        major = getattr(jax.devices()[0], "compute_capability", "0").partition(".")[0]
        if major.isdigit() and int(major) < 8:
            slow = "the GPU is older than NVIDIA's Ampere generation"
    if used == "bfloat16" and slow:
        text = f"precision=bfloat16 is slower here than float32, because {slow}"
        logging.getLogger("fdrl").warning(text)
    automatic = "float32" if slow else "bfloat16"
    return dataclasses.replace(settings, precision=automatic if used == "auto" else used)


def multiply_in(precision: str) -> None:
    """Sets the precision of products of float32 arrays, which accelerators round by default."""
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", precision)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(precision: str) -> dict[str, Any]:
    """Returns what decides the last bits of results apart from settings, as values for JSON."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pillow")
    flags = os.environ.get("XLA_FLAGS", "").split()
    if jax.default_backend() != "cpu":
        flags = [flag for flag in flags if not flag.startswith("--xla_cpu_")]
    return {
        "python": platform.python_version(),
        "fdrl_jax": fdrl_jax.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{jax.device_count()} x {jax.local_devices()[0].device_kind}",
        "cores": _num_cores(),
        "precision": precision,
        "XLA_FLAGS": " ".join(flags),
    }


def describe_devices() -> str:
    """Returns a line with the devices, their memory if known, and versions."""
    own = jax.local_devices()[0]  # Of another process's device, the memory is not known.
    parts = [f"{jax.device_count()} x {own.device_kind}"]
    if own.platform == "cpu":
        parts.append(f"{_num_cores()} cores")
    if limit := (own.memory_stats() or {}).get("bytes_limit"):
        parts.append(f"{limit / 2**30:.0f} GiB each")
    if jax.process_count() > 1:
        parts.append(f"{jax.process_count()} processes")
    return f"devices: {', '.join(parts)}; jax {jax.__version__}, Python {platform.python_version()}"


@functools.cache
def _of_processor(names: str) -> str:
    with contextlib.suppress(OSError):  # Only Linux has this file.
        text = Path("/proc/cpuinfo").read_text()
        if found := re.search(rf"^(?:{names})[ \t]*:(.*)", text, re.MULTILINE):
            return found[1].strip()
    return ""


def _is_within(versions: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    release = re.findall(r"\d+", importlib.metadata.version("jaxlib"))
    first, first_without = versions
    return first <= tuple(map(int, release)) < first_without


def is_first_process() -> bool:
    """Returns whether this is the first process. Only this process writes shared files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def same_on_all_processes(sha256: str) -> bool:
    """Returns whether a digest is the same on every process; all of them must call this."""
    if jax.process_count() == 1:
        return True
    gathered = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(sha256), np.uint8))
    return bool(np.all(gathered == gathered[:1]))


def first_process_says(flag: bool) -> bool:
    """Returns the flag of the first process; all must call this. Hosts may see other files."""
    if jax.process_count() == 1:
        return flag
    return bool(parallel.any_process(flag and is_first_process()))


def local_part(array: np.ndarray) -> np.ndarray:
    """Returns the equal part of [N, ...] that this process computes: consecutive, in order."""
    size, rest = divmod(len(array), jax.process_count())
    if rest:
        raise ValueError(f"{len(array)} examples, {jax.process_count()} processes")
    return array[jax.process_index() * size :][:size]


def local_batch_size(global_batch_size: int) -> int:
    """Returns the examples per device, of all devices of all processes."""
    num = jax.device_count()
    size, rest = divmod(global_batch_size, num)
    if rest:
        nearest = f"{size * num} or {(size + 1) * num}" if size else str(num)
        raise ValueError(
            f"a batch of {global_batch_size} does not divide over {num} devices; use {nearest}"
        )
    return size
