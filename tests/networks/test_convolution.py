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

from fdrl_jax.networks import _convolution
from fdrl_jax.networks._convolution import add_bias, convolve

BIAS = np.array([0.5, -1.0, 2.0, 0.0])
# The networks use kernels of size 1 and 3 and strides 1 and 2. With enough channels, 3x3 kernels
# of stride 1 use Winograd's algorithm.
CASES = [
    *((*case, (3, 4)) for case in itertools.product((1, 3), (1, 2), ((7, 6), (1, 2)))),
    *((5, 3, (7, 8), (3, 4)), (5, 2, (4, 5), (3, 4))),
    *((3, 1, size, (16, 18)) for size in ((8, 8), (7, 6), (1, 2))),
]


@pytest.fixture(autouse=True)
def double_precision(request):
    with jax.enable_x64("bfloat16" not in request.node.name):
        yield


def native(x, kernel, stride=1):
    padding = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw(kernel_size, size=(6, 5), channels=(3, 4), num=2):
    random = np.random.default_rng(0)
    x = random.standard_normal((num, *size, channels[0]))
    kernel = random.standard_normal((kernel_size, kernel_size, *channels))
    return jnp.asarray(x), jnp.asarray(kernel)


def assert_close(actual, expected, relative=1e-12):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=relative, atol=relative * np.abs(b).max(initial=1))

    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize(("kernel_size", "stride", "size", "channels"), CASES)
def test_value_and_both_gradients_are_those_of_the_native_rule(
    kernel_size, stride, size, channels, monkeypatch
):
    # Large images are in groups over which the kernel's gradients are summed, small ones in one.
    monkeypatch.setattr(_convolution, "_CACHE_BYTES", 5_000)
    x, kernel = draw(kernel_size, size, channels, num=6)

    def value_and_gradients(convolution):
        def apply(x, kernel):
            out, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, stride), x, kernel)
            return out, pullback(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

        return jax.jit(apply)(x, kernel)

    assert_close(value_and_gradients(convolve), value_and_gradients(native))


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 2)])
def test_derivatives_of_order_two_and_three_are_those_of_the_native_rule(kernel_size, stride):
    x, kernel = draw(kernel_size)

    def gradients(convolution, add):
        def first(x, kernel, bias):
            return jnp.sum(jnp.tanh(add(convolution(x, kernel, stride), bias)) ** 2)

        def of_gradient(function):
            grad = jax.grad(function, (0, 1, 2))
            return lambda *arguments: sum(jnp.sum(jnp.sin(g)) for g in grad(*arguments))

        second = of_gradient(first)
        functions = second, of_gradient(second)
        return jax.jit(lambda *a: [jax.grad(f, (0, 1, 2))(*a) for f in functions])(x, kernel, BIAS)

    assert_close(gradients(convolve, add_bias), gradients(native, jnp.add), 1e-11)


@pytest.mark.parametrize(("cache", "check_vma"), [(0, True), (2**20, False)])
def test_shard_map_sums_the_gradients_of_parameters_over_replicas(cache, check_vma, monkeypatch):
    monkeypatch.setattr(_convolution, "_CACHE_BYTES", cache)
    x, kernel = draw(3, num=4)
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

    specs = (batch, everywhere, everywhere)
    mapped = jax.shard_map(
        gradients, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=check_vma
    )
    assert_close(jax.jit(mapped)(x, kernel, BIAS), jax.grad(whole, (0, 1, 2))(x, kernel, BIAS))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_cpu_gets_the_canonical_derivatives(platform):
    gradients = jax.jit(jax.grad(lambda *args: jnp.sum(convolve(*args) ** 2), (0, 1)))
    program = jax.export.export(gradients, platforms=(platform,))(*draw(3)).mlir_module()
    assert ("optimization_barrier" in program) == (platform == "cpu")
    # XLA's own kernel gradient uses the channels as the batch dimension; ours is a matrix product.
    assert ("[f, 0, 1, b]" in program) == (platform != "cpu")


def test_other_kernels_and_strides_are_rejected():
    for size, stride, message in ((2, 2), 1, "odd"), ((3, 1), 1, "odd"), ((3, 3), 0, "got 0"):
        with pytest.raises(ValueError, match=message):
            convolve(jnp.zeros((1, 4, 4, 3)), jnp.zeros((*size, 3, 4)), stride)


KERNELS_OF_A_RUN = """
import sys, jax, jax.numpy as jnp, numpy as np
from experiments.devices import set_cpu_flags
set_cpu_flags(bfloat16=sys.argv[1] == "bfloat16")
from fdrl_jax.networks._convolution import convolve
bound = {"bfloat16": 1.5e-2, "float32": 2e-5}[sys.argv[1]]
def exact(x, k):
    return jax.lax.conv_general_dilated(
        x, k, (s, s), [(size // 2,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
CASES = (1, 2, 4, 2), (3, 1, 3, 17), (3, 2, 31, 8), (3, 1, 64, 16), (5, 2, 1, 4)
for size, s, width, batch in CASES:
    x, k = (np.random.default_rng(1).standard_normal(shape).astype(sys.argv[1])
            for shape in ((batch, 5, 7, width), (size, size, width, 2 * width)))
    found, back = jax.vjp(jax.jit(lambda x, k: convolve(x, k, stride=s)), x, k)
    with jax.enable_x64(True):
        wanted, exact_back = jax.vjp(exact, *(a.astype(np.float64) for a in (x, k)))
        pairs = zip((found, *back(found)), (wanted, *exact_back(found.astype(np.float64))))
        for one, other in pairs:
            assert np.abs(np.float64(one) - other).max() < bound * np.abs(other).max(), (size, s)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_gradients_with_the_flags_of_a_run_are_within_the_bound_of_the_type(precision):
    set_by_tests = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    environ = {k: v for k, v in os.environ.items() if k not in set_by_tests}
    subprocess.run([sys.executable, "-c", KERNELS_OF_A_RUN, precision], env=environ, check=True)
