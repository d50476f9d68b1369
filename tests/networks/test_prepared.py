"""Prepared variables give the same network and leave no work on weights to the loop."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fdrl_jax.networks import MLP, ResNetSpec, prepare, resnet

SPEC = ResNetSpec(stem=8, blocks=((8, 1), (16, 2)), attention_after=1)
NETWORKS = {
    "mlp": (MLP((8, 8)), (3, 2)),
    "mlp_sn": (MLP((8, 8), spectral_norm=True), (3, 2)),
    "resnet": (resnet(SPEC, attention=True), (3, 8, 8, 1)),
    "resnet_sn": (resnet(SPEC, attention=True, spectral_norm=True), (3, 8, 8, 1)),
}


@functools.cache
def initialised(name):
    net, shape = NETWORKS[name]
    x = jax.random.normal(jax.random.key(1), shape)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    if "resnet" in name:
        variables["params"]["self_attn_module"]["gamma"] = jnp.float32(0.5)
    return net, variables, x


def network(name, dtype):
    net, variables, x = initialised(name)
    return net.clone(dtype=dtype), variables, x


def is_scan(equation):
    return equation.primitive.name == "scan"


def equations(jaxpr):
    """Yields all equations of a program, including those of inner programs."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            if hasattr(value, "eqns"):
                yield from equations(value)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*itertools.product(NETWORKS, ["bfloat16"]), ("mlp_sn", "float32"), ("resnet_sn", "float32")],
)
def test_a_prepared_network_is_the_same_function(name, dtype):
    net, variables, x = network(name, dtype)
    prepared = prepare(net, variables)

    @jax.jit
    def output_and_gradient(variables, x):
        return jax.value_and_grad(lambda x: net.apply(variables, x).sum())(x)

    for got, want in zip(
        output_and_gradient(prepared, x), output_and_gradient(variables, x), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    again = prepare(net, prepared)
    jax.tree.map(np.testing.assert_array_equal, again, prepared)


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_there_is_nothing_to_prepare_in_float32_without_spectral_norm(name):
    net, variables, _ = network(name, "float32")

    jax.tree.map(np.testing.assert_array_equal, prepare(net, variables), variables)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_cast_except_the_head(name):
    net, variables, _ = network(name, "bfloat16")

    params = prepare(net, variables)["params"]

    for path, leaf in jax.tree.leaves_with_path(params):
        layer, kind = path[0].key, path[-1].key
        narrow = kind in ("kernel", "bias") and layer != net.head
        assert leaf.dtype == (jnp.bfloat16 if narrow else jnp.float32), path
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["resnet", "resnet_sn"])
def test_no_weight_is_cast_or_divided_inside_a_loop(name):
    net, variables, x = network(name, "bfloat16")

    def flow(variables, x):
        def step(x, _):
            return x - jax.grad(lambda x: net.apply(variables, x).sum())(x), None

        return lax.scan(step, x, length=2)[0]

    def casts_in_the_loop(variables):
        """Returns the casts of kernels in the body of the scan."""
        (loop,) = (e for e in equations(jax.make_jaxpr(flow)(variables, x)) if is_scan(e))
        kernels = {leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4}
        return [
            equation
            for equation in equations(loop.params["jaxpr"])
            if equation.primitive.name == "convert_element_type"
            and equation.outvars[0].aval.shape in kernels
            and equation.outvars[0].aval.dtype == jnp.bfloat16
        ]

    assert casts_in_the_loop(variables)
    assert not casts_in_the_loop(prepare(net, variables))


def test_gradients_through_prepare_are_float32_and_those_of_the_network():
    net, variables, x = network("resnet_sn", "float32")
    fixed = {"spectral": variables["spectral"]}

    def gradient(prepared):
        def loss(params):
            both = {"params": params, **fixed}
            return net.apply(prepare(net, both) if prepared else both, x).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient(True),
        gradient(False),
    )
