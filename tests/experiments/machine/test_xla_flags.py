"""The compiler flag is set only where it is safe, and never over the user's own."""

import importlib.metadata
import subprocess
import sys

import pytest

from experiments.machine import xla_flags


@pytest.mark.parametrize("version", ["0.10.2", "0.11", "0.12.0.1", "0.12.9"])
def test_the_flag_is_set_for_versions_that_know_it(version, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    environ = {}

    assert xla_flags.set_cpu_flags(environ)
    assert environ == {"XLA_FLAGS": xla_flags.CPU_FLAG}


@pytest.mark.parametrize("version", ["0.10.1", "0.9.2", "0.13", "0.13.0.dev1", "1.0", "unknown"])
def test_the_flag_is_not_set_for_other_versions(version, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    environ = {}

    assert not xla_flags.set_cpu_flags(environ)
    assert environ == {}


def test_the_flag_is_not_set_without_jaxlib(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)

    assert not xla_flags.set_cpu_flags({})


@pytest.mark.parametrize("own", ["", "--xla_force_host_platform_device_count=2"])
def test_the_users_own_flags_stay(own):
    environ = {"XLA_FLAGS": own}

    assert not xla_flags.set_cpu_flags(environ)
    assert environ == {"XLA_FLAGS": own}


def test_the_installed_jax_starts_with_the_flag_and_was_not_imported_before():
    program = """
import os, sys
os.environ.pop("XLA_FLAGS", None)
from experiments.machine.xla_flags import set_cpu_flags
was_set = set_cpu_flags()
assert not any(name.split(".")[0] in ("jax", "jaxlib") for name in sys.modules)
import jax
print(was_set, float(jax.jit(lambda x: x @ x)(jax.numpy.ones((2, 2))).sum()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "8.0"]
