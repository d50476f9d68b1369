"""Spectral normalisation divides by the stored estimate and updates it only on request."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdrl_jax.networks import MLP, ResNetSpec, prepare, resnet, update_vectors

SPEC = ResNetSpec(stem=4, blocks=((8, 2),), attention_after=1)
NETWORKS = {
    "mlp": (MLP((8, 8), spectral_norm=True), (3, 2)),
    "resnet": (resnet(SPEC, spectral_norm=True, attention=True, remat=True), (3, 8, 8, 1)),
}


@functools.cache
def initial(name):
    net, shape = NETWORKS[name]
    x = jax.random.normal(jax.random.key(1), shape)
    return net, jax.jit(net.init)(jax.random.key(0), x), x


@pytest.fixture(params=NETWORKS, scope="module")
def case(request):
    """A network whose kernels have changed since its vectors were computed."""
    net, variables, x = initial(request.param)
    params = jax.tree.map(
        lambda a: a + np.float32(0.1) * np.cos(np.arange(a.size, dtype=a.dtype)).reshape(a.shape),
        variables["params"],
    )
    return net, {**variables, "params": params}, x


def torch_matrix(kernel):
    """The kernel as a matrix `[out, in * k * k]`, with one row per output channel."""
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 2:
        return kernel.T
    return np.stack([kernel[..., out].transpose(2, 0, 1).ravel() for out in range(kernel.shape[3])])


def layers(variables, path=()):
    """Yields the kernel matrix, `u` and `v` of each normalised layer."""
    vectors, params = variables["spectral"], variables["params"]
    for name in path:
        vectors, params = vectors[name], params[name]
    if "u" in vectors:
        yield torch_matrix(params["kernel"]), np.asarray(vectors["u"]), np.asarray(vectors["v"])
        return
    for name in vectors:
        yield from layers(variables, (*path, name))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kernel_has_vectors_that_estimate_its_largest_singular_value(name):
    _, variables, _ = initial(name)
    kernels = [p for p, _ in jax.tree.leaves_with_path(variables["params"]) if "kernel" in str(p)]
    found = list(layers(variables))
    assert len(found) == len(kernels)
    for matrix, u, v in found:
        largest = np.linalg.svd(matrix, compute_uv=False)[0]
        assert 0.9 * largest < u @ matrix @ v <= largest * (1 + 1e-5)


def test_an_update_is_one_power_iteration(case):
    _, variables, _ = case
    after = update_vectors(variables)
    for (matrix, u, _), (_, new_u, new_v) in zip(layers(variables), layers(after), strict=True):
        v = matrix.T @ u
        v /= np.linalg.norm(v)
        u = matrix @ v
        np.testing.assert_allclose(new_u, u / np.linalg.norm(u), atol=1e-5)
        np.testing.assert_allclose(new_v, v, atol=1e-5)
    chex.assert_trees_all_equal(after["params"], variables["params"])


def test_gradients_go_through_sigma_to_the_kernel_and_never_to_the_vectors(case):
    net, variables, x = case
    gradient = jax.jit(jax.grad(lambda variables: net.apply(variables, x).sum()))(variables)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["spectral"]))
    kernels = jax.tree.leaves_with_path(variables["params"])
    # The output does not change with a kernel's scale, so its gradient is orthogonal to it.
    for (path, w), g in zip(kernels, jax.tree.leaves(gradient["params"]), strict=True):
        if "kernel" in str(path):
            assert g.any() or "attn" in str(path)  # The attention has no weight at first.
            assert abs(np.vdot(g, w)) <= 1e-4 * np.linalg.norm(g) * np.linalg.norm(w) + 1e-6


def test_variables_without_vectors_are_unchanged_and_those_of_prepare_cannot_be_updated(case):
    variables = MLP((4,)).init(jax.random.key(0), jnp.ones((1, 2)))
    assert update_vectors(variables) == variables
    net, variables, _ = case
    with pytest.raises(ValueError, match="update the vectors of the variables that were given to"):
        update_vectors(prepare(net, variables))
