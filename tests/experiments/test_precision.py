"""The precision is that of the config; compiler flags are set only where they are safe."""

import importlib.metadata
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from experiments import precision
from experiments.settings import Settings


@pytest.fixture
def machine(monkeypatch):
    """Pretends a version of jaxlib and a processor."""

    def pretend(version="0.12.0.1", features=("amx_bf16",), vendor="GenuineIntel"):
        monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
        of_processor = {"flags|Features": " ".join(features), "vendor_id": vendor}
        monkeypatch.setattr(precision, "_of_processor", of_processor.__getitem__)

    return pretend


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (("0.10.2", "0.11", "0.12.0.1", "0.12.9"), {"XLA_FLAGS": precision.CPU_FLAG}),
        (("0.10.1", "0.9.2", "0.13", "0.13.0.dev1", "1.0", "unknown"), {}),
    ],
)
def test_the_flag_is_set_for_the_versions_that_know_it(versions, expected, machine):
    for version in versions:
        machine(version)
        environ = {}
        assert precision.set_cpu_flags(environ) == bool(expected)
        assert environ == expected


@pytest.mark.parametrize("own", ["", "--xla_force_host_platform_device_count=2"])
def test_the_users_own_flags_stay(own, machine):
    machine()
    environ = {"XLA_FLAGS": own}
    assert not precision.set_cpu_flags(environ, bfloat16=True)
    assert environ == {"XLA_FLAGS": own}
    assert "XLA_FLAGS is set without" in precision.why_not_onednn(environ)


@pytest.mark.parametrize(
    ("features", "vendor"),
    [(("amx_bf16",), "GenuineIntel"), (("avx2", "avx512_bf16"), "AuthenticAMD")],
)
def test_bfloat16_uses_onednn_on_a_processor_and_version_that_were_tested(
    features, vendor, machine
):
    machine(features=features, vendor=vendor)
    environ = {}
    assert precision.set_cpu_flags(environ, bfloat16=True)
    assert environ == {"XLA_FLAGS": f"{precision.CPU_FLAG} {precision.ONEDNN_FLAG}"}
    assert precision.uses_onednn(environ)


@pytest.mark.parametrize(
    ("version", "features", "environ", "reason"),
    [
        ("0.12.0.1", ("avx512_bf16",), {}, "neither AMX"),
        ("0.12.0.1", (), {}, "neither AMX"),
        ("0.10.2", ("amx_bf16",), {}, "need JAX 0.12"),
        ("0.12.0.1", ("amx_bf16",), {"JAX_COMPILATION_CACHE_DIR": "c"}, "unset JAX_COMPILATION"),
    ],
)
def test_elsewhere_bfloat16_does_not_use_onednn_and_the_reason_is_given(
    version, features, environ, reason, machine
):
    machine(version, features)
    assert reason in precision.why_not_onednn(environ)
    assert precision.set_cpu_flags(environ, bfloat16=True)
    assert environ["XLA_FLAGS"] == precision.CPU_FLAG


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_installed_jax_starts_with_the_flags(bfloat16):
    program = f"""
from experiments import precision
was_set = precision.set_cpu_flags(bfloat16={bfloat16})
import jax
print(was_set, float(jax.jit(lambda x: x @ x)(jax.numpy.ones((2, 2))).sum()))
"""
    changed = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    environ = {k: v for k, v in os.environ.items() if k not in changed}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "8.0"], done.stderr


@pytest.fixture
def multiplied_as_before():
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


def used(name):
    return precision.resolve(Settings(precision=name)).precision


@pytest.mark.usefixtures("multiplied_as_before")
@pytest.mark.parametrize("name", ["float32", "tensorfloat32", "bfloat16"])
def test_an_accelerator_multiplies_at_the_precision_of_the_config(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert used(name) == name
    assert jax.config.jax_default_matmul_precision == name


@pytest.mark.usefixtures("multiplied_as_before")
def test_a_cpu_always_multiplies_in_full_precision():
    assert used("tensorfloat32") == "tensorfloat32"
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.usefixtures("multiplied_as_before")
def test_auto_is_bfloat16_where_it_is_fast(monkeypatch):
    monkeypatch.setattr(precision, "uses_onednn", lambda: True)
    assert used("auto") == "bfloat16"
    monkeypatch.setattr(precision, "uses_onednn", lambda: False)
    assert used("auto") == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability, expected in (("7.5", "float32"), ("9.0", "bfloat16")):
        device = SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert used("auto") == expected


def test_slow_bfloat16_is_used_with_one_warning_that_says_why(monkeypatch, caplog):
    monkeypatch.setattr(precision, "uses_onednn", lambda: False)
    monkeypatch.setattr(precision, "why_not_onednn", lambda: "there is no AMX")
    used("auto")
    assert not caplog.records
    assert used("bfloat16") == used("bfloat16") == "bfloat16"
    assert [r.message for r in caplog.records] == [
        "precision=bfloat16 is slower here than float32, because there is no AMX"
    ]


def test_the_memory_is_that_of_a_device_of_this_process(monkeypatch):
    memory = {"bytes_limit": 2**34}
    own = SimpleNamespace(device_kind="H1", platform="gpu", memory_stats=lambda: memory)
    monkeypatch.setattr(jax, "local_devices", lambda: [own])
    assert f"{jax.device_count()} x H1, 16 GiB each" in precision.describe_devices()


def test_features_of_either_architecture_are_read(tmp_path):
    for name in ("flags", "Features"):
        path = tmp_path / name
        path.write_text(f"processor\t: 0\n{name}\t\t: avx2 amx_bf16\n\nprocessor\t: 1\n")
        assert precision._of_processor("flags|Features", path) == "avx2 amx_bf16"
    assert precision._of_processor("flags|Features", tmp_path / "missing") == ""


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("cpu", f"{precision.CPU_FLAG} --xla_gpu_a=1"),
        ("gpu", "--xla_gpu_a=1"),
        ("tpu", "--xla_gpu_a=1"),
    ],
)
def test_flags_for_cpus_do_not_count_on_accelerators(backend, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    environ = {"XLA_FLAGS": f"{precision.CPU_FLAG} --xla_gpu_a=1"}
    assert precision.flags_in_use(environ) == expected
