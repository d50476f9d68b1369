"""Flags of the compiler, the precision, and several processes."""

import importlib.metadata
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest

from experiments import devices
from experiments.errors import UserError
from experiments.settings import Settings

AMX, AMD = frozenset({"amx_bf16"}), frozenset({"avx512_bf16"})


@pytest.fixture
def machine(monkeypatch):
    """Replaces the version of jaxlib, the processor and the backend."""

    def replace(version="0.12.0", features=AMX, vendor="GenuineIntel", backend="cpu"):
        monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
        told = {"vendor_id": vendor, "flags|Features": " ".join(features)}
        monkeypatch.setattr(devices, "_of_processor", told.__getitem__)
        monkeypatch.setattr(jax, "default_backend", lambda: backend)

    return replace


@pytest.mark.parametrize(
    ("given", "environ", "reason"),
    [
        ({}, {}, None),
        ({"features": AMD, "vendor": "AuthenticAMD"}, {}, None),
        ({"features": AMD}, {}, "neither AMX"),
        ({"version": "0.10.2"}, {}, "need JAX 0.12"),
        ({}, {"JAX_COMPILATION_CACHE_DIR": "x"}, "crash with a compilation cache"),
        ({}, {"XLA_FLAGS": ""}, "XLA_FLAGS is set without"),
    ],
)
def test_bfloat16_is_used_where_its_kernels_are_fast_and_correct(given, environ, reason, machine):
    machine(**given)
    found = devices.why_not_onednn(environ)
    assert found is None if reason is None else reason in found
    devices.set_cpu_flags(environ, bfloat16=True)
    assert devices.uses_onednn(environ) == (reason is None)
    for unknown in ("0.10.1", "0.13"):
        machine(unknown)
        devices.set_cpu_flags(untouched := {})
        assert not untouched


@pytest.mark.parametrize(
    ("backend", "capability", "asked", "used"),
    [
        ("cpu", None, "auto", "float32"),
        ("cpu", None, "bfloat16", "bfloat16"),
        ("tpu", None, "auto", "bfloat16"),
        ("gpu", "7.5", "auto", "float32"),
        ("gpu", "9.0", "auto", "bfloat16"),
        ("gpu", "9.0", "tensorfloat32", "tensorfloat32"),
    ],
)
def test_auto_is_the_fast_precision_of_the_device(
    backend, capability, asked, used, machine, monkeypatch, caplog
):
    machine(features=frozenset(), backend=backend)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert devices.resolved(Settings(precision=asked)).precision == used
    assert ("slower here than float32" in caplog.text) == (backend == "cpu" and asked != "auto")
    before = jax.config.jax_default_matmul_precision
    try:
        devices.multiply_in(used)
        expected = before if backend == "cpu" else used
        assert jax.config.jax_default_matmul_precision == expected
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_incomplete_flags_and_processes_that_cannot_join_are_errors(monkeypatch):
    with pytest.raises(UserError, match="must be given together"):
        devices.join(False, "127.0.0.1:1", None, None)
    initialize = Mock(side_effect=RuntimeError("DEADLINE_EXCEEDED: no answer"))
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match="cannot join: DEADLINE_EXCEEDED: no answer"):
        devices.join(False, "127.0.0.1:9", 2, 1)
    assert initialize.call_args.kwargs["coordinator_bind_address"] == "127.0.0.1:9"


def test_options_of_jax_in_the_environment_change_no_number():
    jax.config.update("jax_enable_x64", True)
    devices.set_options()
    assert not jax.config.jax_enable_x64
