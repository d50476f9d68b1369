"""Compiled programs: their cost is counted through loops, fusions and slices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from benchmarks.accelerator import hlo, roofline, targets, work
from fdrl_jax.training import parallel

SIZE = 64
MATRIX = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
PRODUCT_FLOPS = 2.0 * SIZE**3


def lowered(function, *shapes):
    return hlo.parse(jax.jit(function).lower(*shapes).as_text(dialect="hlo"))


def compiled(function, *shapes):
    return hlo.parse(jax.jit(function).lower(*shapes).compile().as_text())


def loop(x, num=7, start=None):
    return jax.lax.fori_loop(0, num, lambda _, y: y @ x, x if start is None else start)


@pytest.mark.parametrize("parsed", [lowered, compiled])
def test_a_loop_counts_as_often_as_it_runs(parsed):
    program = parsed(loop, MATRIX)
    assert work.flops(program) == 7 * PRODUCT_FLOPS
    in_loop = work.kernels(program, program.loop_body(7))
    assert sum(kernel.flops for kernel in in_loop) == PRODUCT_FLOPS


@pytest.mark.parametrize("parsed", [lowered, compiled])
def test_loops_in_loops_multiply(parsed):
    def nested(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: loop(x, 5, y), x)

    assert work.flops(parsed(nested, MATRIX)) == 15 * PRODUCT_FLOPS


@pytest.mark.parametrize("parsed", [lowered, compiled])
def test_a_loop_of_unknown_length_counts_once(parsed):
    def until(x, count):
        return jax.lax.fori_loop(0, count, lambda _, y: y @ x, x)

    program = parsed(until, MATRIX, jax.ShapeDtypeStruct((), jnp.int32))
    assert work.flops(program) == PRODUCT_FLOPS


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_derivatives_count_the_same_products(stride):
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)

    def convolution(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride,) * 2, ((1, 1),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(x, w, g):
        return jax.vjp(convolution, x, w)[1](g)

    # Taps that lie in the padding are not counted: 3 * 8 - 2 at stride 1, 3 * 4 - 1 at stride 2.
    per_axis = {1: 22, 2: 11}[stride]
    expected = 2.0 * 2 * 3 * 5 * per_axis**2
    output = jax.eval_shape(convolution, image, kernel)
    assert work.flops(lowered(convolution, image, kernel)) == expected
    assert work.flops(lowered(gradients, image, kernel, output)) == 2 * expected
    cost = jax.jit(convolution).lower(image, kernel).cost_analysis()
    assert cost["flops"] == expected


def test_a_slice_of_a_large_array_does_not_count_as_all_of_it():
    large = jax.ShapeDtypeStruct((1_000, SIZE), jnp.float32)

    def one_row(x, i):
        return jax.lax.dynamic_index_in_dim(x, i, keepdims=False) + 1.0

    program = compiled(one_row, large, jax.ShapeDtypeStruct((), jnp.int32))
    assert sum(kernel.num_bytes for kernel in work.kernels(program)) < 4 * 4 * SIZE


def test_what_devices_send_each_other_is_counted():
    num = jax.device_count()
    mesh = jax.make_mesh((num,), (parallel.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(
        lambda x: jax.lax.psum(x, parallel.AXIS),
        mesh=mesh,
        in_specs=PartitionSpec(parallel.AXIS),
        out_specs=PartitionSpec(),
    )
    program = compiled(mapped, jax.ShapeDtypeStruct((num * SIZE,), jnp.float32))
    (kernel,) = (kernel for kernel in work.kernels(program) if kernel.collective)
    assert kernel.sent_bytes(num) == 2 * (num - 1) / num * 4 * SIZE


TPU_TEXT = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %w = f32[128,128]{1,0:T(8,128)} constant({...})
  %y = f32[8,128]{1,0:T(8,128)} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
backend_config={"window_config":{"estimated_cycles":"1500"}}
  ROOT %t = (s32[], f32[8,128]) tuple(%p, %y)
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %limit = s32[]{:T(128)} constant(10)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[8,128]) -> (s32[], f32[8,128]) {
  %a = (s32[], f32[8,128]) parameter(0)
  ROOT %while.1 = (s32[], f32[8,128]) while(%a), condition=%condition, body=%body
}
"""


def test_the_text_of_the_tpu_compiler_is_read():
    # It states no trip counts, keeps arrays on the chip, and says how many cycles it expects.
    program = hlo.parse(TPU_TEXT)
    (kernel,) = work.kernels(program)
    assert kernel.times == 10
    assert kernel.flops == 2.0 * 8 * 128 * 128
    assert kernel.num_bytes == 4 * (128 * 128 + 8 * 128)  # Not the operand in S(1).
    cost = roofline.cost(program, targets.parse("tpu:v5e:2x2"), "bfloat16", 10)
    assert cost.expected_seconds == pytest.approx(10 * 1_500 / 1.5e9)
    assert cost.num_flow_kernels == 1
    assert cost.bound == "memory bandwidth"
    assert program.loop_body(7) is None


def test_the_kernels_of_a_flow_are_not_counted_if_another_loop_is_as_long():
    def two_loops(x):
        return loop(x + loop(x) @ x)

    program = compiled(two_loops, MATRIX)
    cost = roofline.cost(program, targets.parse("gpu:h100:1"), "bfloat16", 7)
    assert cost.num_flow_kernels == 0
    assert cost.num_kernels >= 15


CUDNN_TEXT = """HloModule jit_f

ENTRY %main (g: bf16[8,32,32,128], w: bf16[128,3,3,64]) -> bf16[8,64,64,64] {
  %g = bf16[8,32,32,128]{3,2,1,0} parameter(0)
  %w = bf16[128,3,3,64]{3,2,1,0} parameter(1)
  ROOT %c = (bf16[8,64,64,64]{3,2,1,0}, u8[0]{0}) custom-call(%g, %w), \
window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
}
"""


def test_convolutions_of_cudnn_are_counted_as_their_forward_convolution():
    (kernel,) = work.kernels(hlo.parse(CUDNN_TEXT))
    # At stride 2 under padding 1, the first tap of the first position lies in the padding.
    assert kernel.flops == 2.0 * 8 * 64 * 128 * (3 * 32 - 1) ** 2
    assert kernel.num_bytes == 2 * (8 * 32 * 32 * 128 + 128 * 9 * 64 + 8 * 64 * 64 * 64)
