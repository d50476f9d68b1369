"""The precision of computations is that of the config."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments.errors import UserError
from experiments.machine import hardware, xla_flags
from fdrl_jax.networks import convolve


@pytest.fixture
def precision_restored():
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_an_accelerator_multiplies_at_the_precision_of_the_config(
    precision, monkeypatch, precision_restored
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    used = hardware.prepare({"precision": precision, "flow.num_steps": 3})
    assert used == {"precision": precision, "flow.num_steps": 3}
    assert jax.config.jax_default_matmul_precision == precision


def test_a_cpu_is_not_changed(precision_restored):
    hardware.prepare({"precision": "tensorfloat32"})
    assert jax.config.jax_default_matmul_precision is None


def test_the_precision_of_a_classifier_is_resolved_and_not_set(monkeypatch, precision_restored):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    hardware.prepare({"precision": "float32"})
    assert hardware.resolved({"precision": "bfloat16"}) == {"precision": "bfloat16"}
    assert jax.config.jax_default_matmul_precision == "float32"


def test_the_memory_is_that_of_a_device_of_this_process(monkeypatch):
    own = SimpleNamespace(
        device_kind="H1", platform="gpu", memory_stats=lambda: {"bytes_limit": 2**34}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [own])
    assert f"{jax.device_count()} x H1, 16 GiB each" in hardware.describe_devices()


def precision_in_use(precision):
    return hardware.resolved({"precision": precision})["precision"]


@pytest.fixture
def onednn(monkeypatch):
    """Pretends that oneDNN is on or, with a reason, off, and that there is no persistent cache."""

    def pretend(reason):
        monkeypatch.setattr(xla_flags, "uses_onednn", lambda: reason is None)
        monkeypatch.setattr(xla_flags, "why_not_onednn", lambda: reason)

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield pretend
    jax.config.update("jax_compilation_cache_dir", before)


def test_auto_is_bfloat16_where_it_is_fast(onednn, monkeypatch):
    onednn(None)
    assert precision_in_use("auto") == "bfloat16"
    onednn("there is no AMX")
    assert precision_in_use("auto") == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert precision_in_use("auto") == "bfloat16"


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_a_requested_precision_is_kept(precision, onednn):
    onednn("there is no AMX")
    assert precision_in_use(precision) == precision


def test_slow_bfloat16_is_used_with_a_warning_that_says_why(onednn, caplog):
    onednn("there is no AMX")
    precision_in_use("auto")
    assert not caplog.records
    precision_in_use("bfloat16")
    assert "slower here than float32, because there is no AMX" in caplog.text


def test_a_persistent_cache_is_refused_with_onednn(onednn, tmp_path):
    onednn(None)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    with pytest.raises(UserError, match="Unset JAX_COMPILATION_CACHE_DIR"):
        precision_in_use("bfloat16")


def test_wrong_kernels_are_found_at_the_start(onednn, monkeypatch):
    onednn(None)
    hardware.check_bfloat16()
    wrong = jax.custom_vjp(lambda x, kernel: convolve(x, kernel))
    wrong.defvjp(
        lambda x, kernel: (convolve(x, kernel), (x, kernel)),
        lambda residuals, g: jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), residuals),
    )
    monkeypatch.setattr(hardware, "convolve", wrong)
    with pytest.raises(UserError, match=r"gradient to the input .*Use precision=float32"):
        hardware.check_bfloat16()
