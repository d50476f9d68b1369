"""The compiler flags are set only if they are safe, and never replace the user's flags."""

import importlib.metadata
import subprocess
import sys

import pytest

from experiments.machine import processor, xla_flags

BOTH = f"{xla_flags.CPU_FLAG} {xla_flags.ONEDNN_FLAG}"


@pytest.fixture
def machine(monkeypatch):
    """Pretends a version of jaxlib and a processor."""

    def pretend(version="0.12.0.1", features=("amx_bf16",), vendor="GenuineIntel"):
        monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
        monkeypatch.setattr(processor, "features", lambda: frozenset(features))
        monkeypatch.setattr(processor, "vendor", lambda: vendor)

    return pretend


@pytest.mark.parametrize("version", ["0.10.2", "0.11", "0.12.0.1", "0.12.9"])
def test_the_flag_is_set_for_versions_that_know_it(version, machine):
    machine(version)
    environ = {}

    assert xla_flags.set_cpu_flags(environ)
    assert environ == {"XLA_FLAGS": xla_flags.CPU_FLAG}


@pytest.mark.parametrize("version", ["0.10.1", "0.9.2", "0.13", "0.13.0.dev1", "1.0", "unknown"])
def test_the_flag_is_not_set_for_other_versions(version, machine):
    machine(version)
    environ = {}

    assert not xla_flags.set_cpu_flags(environ, bfloat16=True)
    assert environ == {}


def test_the_flag_is_not_set_without_jaxlib(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)

    assert not xla_flags.set_cpu_flags({})


@pytest.mark.parametrize("own", ["", "--xla_force_host_platform_device_count=2"])
def test_the_users_own_flags_stay(own, machine):
    machine()
    environ = {"XLA_FLAGS": own}

    assert not xla_flags.set_cpu_flags(environ, bfloat16=True)
    assert environ == {"XLA_FLAGS": own}
    assert "XLA_FLAGS is set without" in xla_flags.why_not_onednn(environ)
    assert not xla_flags.uses_onednn(environ)


@pytest.mark.parametrize(
    ("features", "vendor"),
    [(("amx_bf16",), "GenuineIntel"), (("avx2", "avx512_bf16"), "AuthenticAMD")],
)
def test_bfloat16_uses_onednn_on_a_processor_and_version_that_were_tested(
    features, vendor, machine
):
    machine(features=features, vendor=vendor)
    environ = {}

    assert xla_flags.set_cpu_flags(environ, bfloat16=True)
    assert environ == {"XLA_FLAGS": BOTH}
    assert xla_flags.uses_onednn(environ)
    assert xla_flags.why_not_onednn(environ) is None


@pytest.mark.parametrize(
    ("version", "features", "vendor", "environ", "reason"),
    [
        ("0.12.0.1", ("avx512_bf16",), "GenuineIntel", {}, "neither AMX"),
        ("0.12.0.1", ("avx512f",), "AuthenticAMD", {}, "neither AMX"),
        ("0.12.0.1", (), "", {}, "neither AMX"),
        ("0.10.2", ("amx_bf16",), "GenuineIntel", {}, "need JAX 0.12"),
        ("0.10.2", ("avx512_bf16",), "AuthenticAMD", {}, "need JAX 0.12"),
        (
            "0.12.0.1",
            ("amx_bf16",),
            "GenuineIntel",
            {"JAX_COMPILATION_CACHE_DIR": "cache"},
            "unset JAX_COMPIL",
        ),
    ],
)
def test_elsewhere_bfloat16_does_not_use_onednn_and_the_reason_is_given(
    version, features, vendor, environ, reason, machine
):
    machine(version, features, vendor)

    assert reason in xla_flags.why_not_onednn(environ)
    assert xla_flags.set_cpu_flags(environ, bfloat16=True)
    assert environ["XLA_FLAGS"] == xla_flags.CPU_FLAG


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_installed_jax_starts_with_the_flags_and_was_not_imported_before(bfloat16):
    program = f"""
import os, sys
os.environ.pop("XLA_FLAGS", None)
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
from experiments.machine.xla_flags import set_cpu_flags
was_set = set_cpu_flags(bfloat16={bfloat16})
assert not any(name.split(".")[0] in ("jax", "jaxlib") for name in sys.modules)
import jax
print(was_set, float(jax.jit(lambda x: x @ x)(jax.numpy.ones((2, 2))).sum()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "8.0"]
