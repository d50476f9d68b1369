"""How exactly the program multiplies is what the config says."""

import jax
import pytest

from experiments.machine import hardware


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


def test_a_cpu_is_left_alone(precision_restored):
    hardware.set_matmul_precision("tensorfloat32")
    assert jax.config.jax_default_matmul_precision is None
