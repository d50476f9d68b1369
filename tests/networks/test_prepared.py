"""Prepared variables give the same network and leave no work on weights to the loop."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
