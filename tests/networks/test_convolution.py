"""The convolution and its derivatives equal those of XLA's own convolution."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fdrl_jax.networks import convolution_cpu, convolve
from fdrl_jax.networks.convolution import add_bias

SIZES = ((8, 8), (7, 6), (1, 2))
# The networks use kernels of size 1 and 3 and strides 1 and 2. The others are not special cases.
CASES = [*itertools.product((1, 3), (1, 2), SIZES), (3, 3, (7, 6)), (5, 3, (7, 8)), (5, 2, (4, 5))]


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


def native(x, kernel, stride):
    padding = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw(kernel_size, size=(6, 5), channels=(3, 4), num=2):
    random = np.random.default_rng(0)
    x = random.standard_normal((num, *size, channels[0]))
    return jnp.asarray(x), jnp.asarray(
        random.standard_normal((kernel_size, kernel_size, *channels))
    )


def assert_close(actual, expected, relative=1e-12):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=relative, atol=relative * np.abs(b).max(initial=1)
        ),
        actual,
        expected,
    )


# Enough channels for Winograd's algorithm, which computes 3x3 convolutions with stride 1.
WIDE = (16, 18)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "size", "channels"),
    [*((*case, (3, 4)) for case in CASES), *((3, 1, size, WIDE) for size in SIZES)],
)
def test_value_and_both_gradients_are_those_of_the_native_rule(
    kernel_size, stride, size, channels, double_precision
):
    x, kernel = draw(kernel_size, size, channels)

    def value_and_gradients(convolution):
        def apply(x, kernel):
            out, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, stride), x, kernel)
            return out, pullback(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

        return jax.jit(apply)(x, kernel)

    assert_close(value_and_gradients(convolve), value_and_gradients(native))


# Bytes for groups of one, two or three of the six images, depending on kernel and stride.
@pytest.mark.parametrize("cache", [0, 5_000, 8_000])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 3)])
def test_kernel_gradients_are_sums_over_groups_of_images(
    cache, kernel_size, stride, monkeypatch, double_precision
):
    x, kernel = draw(kernel_size, num=6)
    weights = jnp.cos(jnp.arange(native(x, kernel, stride).size, dtype=x.dtype))

    def gradient(convolution):
        def loss(kernel):
            return jnp.dot(convolution(x, kernel, stride).ravel(), weights)

        return jax.jit(jax.grad(loss))

    monkeypatch.setattr(convolution_cpu, "_CACHE_BYTES", cache)
    program = gradient(convolve)

    assert "while" in program.lower(kernel).as_text()
    assert_close(program(kernel), gradient(native)(kernel))


def test_a_bias_has_the_native_value_and_gradients(double_precision):
    y, _ = draw(1)
    bias = jnp.asarray([0.5, -1.0, 2.0])

    def value_and_gradients(add):
        def loss(y, bias):
            return jnp.sum(jnp.tanh(add(y, bias)) ** 2)

        def slope(y, bias):
            return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(loss, (0, 1))(y, bias))

        return jax.jit(
            lambda y, bias: [jax.value_and_grad(f, (0, 1))(y, bias) for f in (loss, slope)]
        )(y, bias)

    assert_close(value_and_gradients(add_bias), value_and_gradients(jnp.add), 1e-11)


def test_a_bias_supports_forward_mode_with_xla(double_precision):
    y, _ = draw(1)
    bias = jnp.asarray([0.5, -1.0, 2.0])

    _, slope = jax.jvp(lambda b: add_bias(y, b, implementation="xla"), (bias,), (bias,))

    assert_close(slope, jnp.broadcast_to(bias, y.shape))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_second_and_third_order_gradients_are_those_of_the_native_rule(
    kernel_size, stride, double_precision
):
    x, kernel = draw(kernel_size)

    def gradients(convolution):
        def first(x, kernel):
            return jnp.sum(jnp.tanh(convolution(x, kernel, stride)) ** 2)

        def second(x, kernel):
            return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(first, (0, 1))(x, kernel))

        def third(x, kernel):
            return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(second, (0, 1))(x, kernel))

        return jax.jit(lambda x, kernel: [jax.grad(f, (0, 1))(x, kernel) for f in (second, third)])(
            x, kernel
        )

    assert_close(gradients(convolve), gradients(native), 1e-11)


def test_a_differentiated_flow_has_the_native_gradient(double_precision):
    x, kernel = draw(3)

    def end(convolution):
        def potential(x, kernel):
            return jnp.sum(jnp.tanh(convolution(jnp.tanh(convolution(x, kernel, 2)), tail, 1)))

        def flow(x, kernel):
            def step(x, _):
                return x - 0.1 * jax.grad(potential)(x, kernel), None

            return jnp.sum(jnp.sin(lax.scan(step, x, length=3)[0]))

        return jax.jit(jax.value_and_grad(flow, (0, 1)))(x, kernel)

    tail = jnp.ones((1, 1, 4, 2))
    assert_close(end(convolve), end(native))


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0)])
def test_vmap_of_the_gradient_equals_a_loop(mapped, double_precision):
    @jax.jit
    def gradients(x, kernel):
        return jax.grad(lambda *args: jnp.sum(convolve(*args, 2) ** 2), (0, 1))(x, kernel)

    args = [
        jnp.stack([array, array[::-1]]) if axis == 0 else array
        for array, axis in zip(draw(3), mapped, strict=True)
    ]
    loop = [
        gradients(*(a[i] if axis == 0 else a for a, axis in zip(args, mapped, strict=True)))
        for i in range(2)
    ]

    assert_close(
        jax.vmap(gradients, mapped)(*args), jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    )


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("cache", [0, 2**20])
def test_shard_map_sums_the_gradients_of_parameters_over_replicas(
    cache, check_vma, kernel_size, monkeypatch, double_precision
):
    monkeypatch.setattr(convolution_cpu, "_CACHE_BYTES", cache)
    x, kernel = draw(kernel_size, num=4)
    bias = jnp.asarray([0.5, -1.0, 2.0, 0.0])
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("batch",))
    batch, everywhere = jax.P("batch"), jax.P()

    def gradients(x, *params):
        def loss(x, kernel, bias):
            return jnp.sum(add_bias(convolve(x, kernel, 2), bias) ** 2)

        gx, *rest = jax.grad(loss, (0, 1, 2))(x, *params)
        # With check_vma, JAX already sums the gradients of replicated parameters.
        return gx, *(g if check_vma else lax.psum(g, "batch") for g in rest)

    def whole(x, kernel, bias):
        return jnp.sum((native(x, kernel, 2) + bias) ** 2)

    mapped = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(batch, everywhere, everywhere),
        out_specs=(batch, everywhere, everywhere),
        check_vma=check_vma,
    )

    assert_close(jax.jit(mapped)(x, kernel, bias), jax.grad(whole, (0, 1, 2))(x, kernel, bias))


def gradient_program(platforms):
    """Exports both gradients of a convolution with stride 1 for these platforms."""
    x, kernel = (array.astype(jnp.float32) for array in draw(3))
    gradients = jax.jit(jax.grad(lambda *args: jnp.sum(convolve(*args) ** 2), (0, 1)))
    return jax.export.export(gradients, platforms=platforms)(x, kernel)


def test_an_export_for_several_platforms_runs_here():
    x, kernel = (array.astype(jnp.float32) for array in draw(3))
    exported = gradient_program(("cpu", "cuda", "tpu"))

    assert_close(
        exported.call(x, kernel),
        jax.grad(lambda x, kernel: jnp.sum(native(x, kernel, 1) ** 2), (0, 1))(x, kernel),
        1e-5,
    )


def test_an_export_with_a_symbolic_batch_has_the_same_kernel_gradient(monkeypatch):
    monkeypatch.setattr(convolution_cpu, "_CACHE_BYTES", 0)
    x, kernel = (array.astype(jnp.float32) for array in draw(3))
    gradient = jax.jit(jax.grad(lambda kernel, x: jnp.sum(convolve(x, kernel, 2) ** 2)))
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 6, 5, 3"), x.dtype)

    exported = jax.export.export(gradient)(kernel, symbolic)

    assert_close(exported.call(kernel, x), gradient(kernel, x), 1e-5)


@pytest.mark.parametrize(
    ("platform", "canonical"), [("cpu", True), ("cuda", False), ("tpu", False)]
)
def test_only_cpu_gets_the_canonical_derivatives(platform, canonical):
    program = gradient_program((platform,)).mlir_module()

    assert ("optimization_barrier" in program) == canonical
    # XLA's own kernel gradient uses the channels as the batch dimension; ours is a matrix product.
    assert ("[f, 0, 1, b]" in program) != canonical


@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (3, 1, 3, 4)])
def test_even_and_oblong_kernels_are_rejected(shape):
    with pytest.raises(ValueError, match="odd size"):
        convolve(jnp.zeros((1, 4, 4, 3)), jnp.zeros(shape))


def test_a_stride_below_one_is_rejected():
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        convolve(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 4)), 0)


def test_xla_supports_forward_mode(double_precision):
    x, kernel = draw(3)

    def value(x, implementation):
        return jnp.sum(jnp.tanh(convolve(x, kernel, 2, implementation=implementation)))

    _, slope = jax.jvp(lambda x: value(x, "xla"), (x,), (jnp.ones_like(x),))

    assert_close(slope, jax.grad(value)(x, "custom").sum())


def test_the_error_for_forward_mode_names_the_alternative():
    x, kernel = draw(3)

    with pytest.raises(TypeError, match='use implementation="xla"'):
        jax.jvp(lambda x: convolve(x, kernel), (x,), (x,))


def test_the_error_for_an_unknown_implementation_suggests_the_closest():
    with pytest.raises(ValueError, match="allowed: custom, xla; did you mean 'xla'"):
        convolve(*draw(3), implementation="xla2")


@pytest.mark.parametrize("batch", [1, 4, 16, 17])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_kernel_gradients_in_bfloat16_do_not_depend_on_the_padding_of_the_batch(batch, kernel_size):
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, 5, 5, 3)).astype(jnp.bfloat16)
    kernel = random.standard_normal((kernel_size, kernel_size, 3, 2)).astype(jnp.bfloat16)

    def gradient(dtype):
        def loss(kernel):
            return jnp.sum(convolve(x.astype(dtype), kernel).astype(jnp.float32) ** 2) / 2

        return jax.jit(jax.grad(loss))(kernel.astype(dtype)).astype(jnp.float32)

    assert_close(gradient(jnp.bfloat16), gradient(jnp.float32), 2e-2)


KERNELS_OF_A_RUN = """
import sys, jax, jax.numpy as jnp, numpy as np
from experiments.precision import set_cpu_flags
set_cpu_flags(bfloat16=sys.argv[1] == "bfloat16")
from fdrl_jax.networks import convolve
bound = {"bfloat16": 1.5e-2, "float32": 2e-5}[sys.argv[1]]
def exact(x, k):
    return jax.lax.conv_general_dilated(
        x, k, (s, s), [(size // 2,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
for size, s, width, batch in ((1, 2, 4, 2), (3, 1, 3, 17), (3, 2, 31, 8), (3, 1, 64, 16), (5, 2, 1, 4)):
    x, k = (np.random.default_rng(1).standard_normal(shape).astype(sys.argv[1])
            for shape in ((batch, 5, 7, width), (size, size, width, 2 * width)))
    found, back = jax.vjp(jax.jit(lambda x, k: convolve(x, k, stride=s)), x, k)
    with jax.enable_x64(True):
        wanted, exact_back = jax.vjp(exact, *(a.astype(np.float64) for a in (x, k)))
        pairs = zip((found, *back(found)), (wanted, *exact_back(found.astype(np.float64))))
        for one, other in pairs:
            assert np.abs(np.float64(one) - other).max() < bound * np.abs(other).max(), (size, s, width)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_gradients_with_the_flags_of_a_run_are_within_the_bound_of_the_type(precision):
    set_by_tests = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    environ = {k: v for k, v in os.environ.items() if k not in set_by_tests}
    subprocess.run([sys.executable, "-c", KERNELS_OF_A_RUN, precision], env=environ, check=True)
