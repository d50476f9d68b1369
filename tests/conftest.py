"""Prepares JAX before a test module imports it, and puts the tests of the core first."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parent / "core"
NUM_FAKE_DEVICES = 4
MAX_WORKER_BYTES = 2**30

# Read when JAX starts, and inherited by the processes that tests start. On the CPU also where there
# is a GPU: `JAX_PLATFORMS=cuda make test` asks for that one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Several devices for pmap and shard_map. Of two equal flags XLA takes the last: the caller's.
FLAGS = [f"--xla_force_host_platform_device_count={NUM_FAKE_DEVICES}"]
# Without these steps of XLA, compiling takes half the time. Other versions do not know the flags.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
# The workers fill the cores, so threads for small matrices only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# joblib makes semaphores at its start, whose clean-up on Python 3.13 may warn in any test's place.
os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")
# Compiling dominates: programs that are optimised less take half the time and give the same numbers
# but for rounding, and each is compiled once for all workers and later sessions of this checkout.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CORE.parents[1] / "build" / "test-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture
def optimised():
    """Compiles as for users: for tests that train for so long that it pays."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """Forgets compiled programs between modules once they fill memory: two workers share 4 GB."""
    yield
    statm = Path("/proc/self/statm")  # Linux only; elsewhere memory is not bounded.
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    if pages * os.sysconf("SC_PAGE_SIZE") > MAX_WORKER_BYTES and (jax := sys.modules.get("jax")):
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the core first: where its mathematics is wrong, the rest fails only because of it."""
    items.sort(key=lambda item: CORE not in item.path.parents)


def pytest_collection_finish() -> None:
    """Leaves out of later garbage collections what the test modules imported: it stays anyway."""
    gc.freeze()
