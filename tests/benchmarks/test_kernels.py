"""The kernels of a training step are timed, counted and grouped."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import kernels
from benchmarks.accelerator import hlo, work

MATRIX = jnp.full((64, 64), 0.01)
IMAGES, KERNEL = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 16))


@jax.jit
def step(matrix, images, kernel):
    flowed = jax.lax.fori_loop(0, 6, lambda _, y: y @ matrix, matrix)
    convolved = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return flowed, convolved


def test_products_of_the_flow_and_convolutions_of_the_update_have_their_time_and_flops():
    compiled = step.lower(MATRIX, IMAGES, KERNEL).compile()

    def run():
        return jax.block_until_ready(compiled(MATRIX, IMAGES, KERNEL))

    rows = kernels.rows(hlo.parse(compiled.as_text()), kernels.profile(run, rounds=2))

    gflop = {(row["place"], row["kind"]): row["gflop"] for row in rows if row["gflop"]}
    assert gflop == pytest.approx(
        {
            ("flow", "products"): 6 * 2e-9 * 64**3,
            # 22 of the 24 products along an axis are inside of the image.
            ("update", "convolutions"): 2e-9 * 2 * 22 * 22 * 16 * 4,
        }
    )
    assert all(row["ms"] > 0 for row in rows)


def test_kernels_of_onednn_are_named_after_what_they_compute():
    program = hlo.parse(
        """
ENTRY %main (a: bf16[32,8], b: bf16[32,4]) -> bf16[8,4] {
  %a = bf16[32,8]{1,0} parameter(0)
  %b = bf16[32,4]{1,0} parameter(1)
  ROOT %c = (bf16[8,4]{1,0}, u8[9]{0}) custom-call(%a, %b), custom_call_target="__onednn$matmul"
}
"""
    )
    (product,) = work.kernels(program)

    assert kernels.kind_and_gflop(program, product) == ("products", 2e-9 * 8 * 4 * 32)


def test_a_program_without_a_flow_is_refused():
    with pytest.raises(SystemExit, match="no loop"):
        kernels.rows(hlo.parse(jax.jit(jnp.sin).lower(1.0).compile().as_text()), {})
