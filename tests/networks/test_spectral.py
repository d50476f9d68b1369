"""Spectral normalisation divides by the stored estimate and updates it only on request."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdrl_jax.networks import MLP, ResNetSpec, prepare, resnet, update_vectors

SPEC = ResNetSpec(stem=4, blocks=((4, 1), (8, 2)), attention_after=1)
NETWORKS = {
    "mlp": (MLP((8, 8), spectral_norm=True), (3, 2)),
    "resnet": (resnet(SPEC, spectral_norm=True, attention=True), (3, 8, 8, 1)),
    "remat": (resnet(SPEC, spectral_norm=True, attention=True, remat=True), (3, 8, 8, 1)),
}


@pytest.fixture(params=NETWORKS, scope="module")
def initial(request):
    net, shape = NETWORKS[request.param]
    x = jax.random.normal(jax.random.key(1), shape)
    return net, jax.jit(net.init)(jax.random.key(0), x), x


@pytest.fixture(scope="module")
def case(initial):
    """A network whose kernels have changed since its vectors were computed."""
    net, variables, x = initial
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


def test_every_kernel_has_vectors(case):
    _, variables, _ = case

    kernels = [
        path for path, _ in jax.tree.leaves_with_path(variables["params"]) if "kernel" in str(path)
    ]

    assert len(list(layers(variables))) == len(kernels)


def test_initial_vectors_estimate_the_largest_singular_value(initial):
    _, variables, _ = initial

    for matrix, u, v in layers(variables):
        largest = np.linalg.svd(matrix, compute_uv=False)[0]
        assert 0.9 * largest < u @ matrix @ v <= largest * (1 + 1e-5)


def test_one_update_is_one_power_iteration_from_u(case):
    net, variables, x = case

    _, updated = net.apply(variables, x, mutable=["spectral"])

    after = layers({**variables, **updated})
    for (matrix, u, _), (_, new_u, new_v) in zip(layers(variables), after, strict=True):
        v = matrix.T @ u
        v /= np.linalg.norm(v)
        u = matrix @ v
        u /= np.linalg.norm(u)
        np.testing.assert_allclose(new_u, u, atol=1e-5)
        np.testing.assert_allclose(new_v, v, atol=1e-5)


def test_updating_without_an_input_is_the_same_update(case):
    net, variables, x = case

    _, updated = net.apply(variables, x, mutable=["spectral"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        update_vectors(variables),
        {**variables, **updated},
    )


def test_an_updating_pass_uses_the_new_vectors(case):
    net, variables, x = case

    out, updated = net.apply(variables, x, mutable=["spectral"])

    np.testing.assert_allclose(out, net.apply({**variables, **updated}, x), rtol=1e-5)


@pytest.mark.parametrize("scale", [1, 0.5])
def test_a_plain_pass_divides_by_the_stored_sigma(case, scale):
    net, variables, x = case
    # A power iteration would change these vectors.
    vectors = jax.tree.map(lambda a: scale * a, variables["spectral"])
    variables = {**variables, "spectral": vectors}
    sigmas = (u @ matrix @ v for matrix, u, v in layers(variables))
    divided = jax.tree.map_with_path(
        lambda path, a: a / next(sigmas) if "kernel" in str(path) else a, variables["params"]
    )

    np.testing.assert_allclose(
        net.apply(variables, x),
        net.clone(spectral_norm=False).apply({"params": divided}, x),
        rtol=1e-4,
    )


def test_gradients_go_through_sigma_to_the_kernel_only(case):
    net, variables, x = case

    def total(params):
        return net.apply({**variables, "params": params}, x).sum()

    def total_updating(params):
        return net.apply({**variables, "params": params}, x, mutable=["spectral"])[0].sum()

    # The output does not change with a kernel's scale, so its gradient is orthogonal to the kernel.
    for gradient in (jax.grad(total), jax.grad(total_updating)):
        for path, product in jax.tree.leaves_with_path(
            jax.tree.map(
                lambda g, w: (np.vdot(g, w), np.linalg.norm(g) * np.linalg.norm(w)),
                jax.jit(gradient)(variables["params"]),
                variables["params"],
            ),
            is_leaf=lambda leaf: isinstance(leaf, tuple),
        ):
            if "kernel" in str(path):
                assert abs(product[0]) <= 1e-4 * product[1] + 1e-6


def test_variables_without_spectral_norm_are_unchanged():
    variables = MLP((4,)).init(jax.random.key(0), jnp.ones((1, 2)))

    assert update_vectors(variables) == variables


def test_vectors_of_prepared_variables_cannot_be_updated_and_the_error_says_which_can(case):
    net, variables, _ = case

    with pytest.raises(ValueError, match="update the vectors of the variables that were given to"):
        update_vectors(prepare(net, variables))


def test_the_vectors_are_not_trained_with_all_variables(case):
    net, variables, x = case

    gradient = jax.jit(jax.grad(lambda variables: net.apply(variables, x).sum()))(variables)

    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["spectral"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(gradient["params"]))
