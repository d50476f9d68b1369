"""The precision of computations is that of the config."""

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
    hardware.set_matmul_precision(precision)
    assert jax.config.jax_default_matmul_precision == precision


def test_a_cpu_is_not_changed(precision_restored):
    hardware.set_matmul_precision("tensorfloat32")
    assert jax.config.jax_default_matmul_precision is None


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


def test_auto_is_bfloat16_where_it_is_fast(onednn):
    onednn(None)
    assert hardware.resolve_precision("auto", "cpu") == "bfloat16"
    onednn("there is no AMX")
    assert hardware.resolve_precision("auto", "cpu") == "float32"
    assert hardware.resolve_precision("auto", "tpu") == "bfloat16"


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_a_requested_precision_is_kept(precision, onednn):
    onednn("there is no AMX")
    assert hardware.resolve_precision(precision, "cpu") == precision


def test_slow_bfloat16_is_used_with_a_warning_that_says_why(onednn, caplog):
    onednn("there is no AMX")
    hardware.resolve_precision("auto", "cpu")
    assert not caplog.records
    hardware.resolve_precision("bfloat16", "cpu")
    assert "slower here than float32, because there is no AMX" in caplog.text


def test_a_persistent_cache_is_refused_with_onednn(onednn, tmp_path):
    onednn(None)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    with pytest.raises(UserError, match="Unset JAX_COMPILATION_CACHE_DIR"):
        hardware.resolve_precision("bfloat16", "cpu")


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
