"""Prepares JAX before a test module imports it, and puts the tests of the core first."""

import os
from pathlib import Path

import pytest

CORE = Path(__file__).parent / "core"
NUM_FAKE_DEVICES = 8

# JAX reads these at its start, and the processes that tests start inherit them.
# On the CPU also where there is a GPU: `JAX_PLATFORMS=cuda make test` asks for that one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Several devices for pmap and shard_map; a test of one device simply uses the first.
# Of two equal flags XLA takes the last: the caller's.
FLAG = f"--xla_force_host_platform_device_count={NUM_FAKE_DEVICES}"
os.environ["XLA_FLAGS"] = f"{FLAG} {os.environ.get('XLA_FLAGS', '')}".strip()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the core first: where its mathematics is wrong, the rest fails only because of it."""
    items.sort(key=lambda item: CORE not in item.path.parents)
