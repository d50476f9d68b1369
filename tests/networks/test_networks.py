"""All networks have the expected shapes, names and types, and errors name what is wrong."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.authors_weights import from_torch_state_dict, torch_shapes
from fdrl_jax.networks import MLP, SPECS, Denoiser, ResNetSpec, prepare, resnet
from fdrl_jax.networks.layers import SelfAttention

# Number of blocks per stage, the stage that self-attention follows, and the number of weights and
# biases without attention, counted by hand from table 4 of the paper.
PAPER = {
    "resnet32": ((3, 3, 3, 3), 1, 11_374_209),
    "resnet64": ((1, 2, 2, 2), 2, 5_126_081),
    "resnet64_shallow": ((1, 1, 1, 1), 2, 1_537_985),
    "resnet128": ((1, 1, 2, 2, 2), 2, 5_437_377),
}
SMALL = ResNetSpec(4, ((4, 1), (8, 2)), attention_after=1)
NETWORKS = {
    "mlp_sn": (MLP((8, 8), spectral_norm=True), (64, 2)),
    "resnet_sn": (resnet(SMALL, attention=True, spectral_norm=True), (64, 8, 8, 1)),
    "classes": (resnet(SMALL, use_bias=True, num_outputs=3), (64, 8, 8, 1)),
}


@functools.cache
def initialised(name):
    net, shape = NETWORKS[name]
    x = jax.random.normal(jax.random.key(1), shape)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    if "self_attn_module" in variables["params"]:
        variables["params"]["self_attn_module"]["gamma"] = jnp.float32(0.5)
    return net, variables, x


def output_and_gradient(net):
    return jax.jit(jax.grad(lambda x, v: (lambda y: (y.sum(), y))(net.apply(v, x)), has_aux=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_bfloat16_is_near_that_in_float32_and_its_prepared_form_is_the_same(name):
    net, variables, x = initialised(name)
    half = net.clone(dtype=jnp.bfloat16)
    apply = output_and_gradient(half)
    gradient, out = apply(x, variables)
    exact = jax.jit(net.apply)(variables, x)
    assert out.dtype == jnp.float32
    assert out.shape == ((64, 3) if name == "classes" else (64,))
    assert 0 < jnp.linalg.norm(out - exact) < 2e-2 * jnp.linalg.norm(exact)
    assert (out != out.astype(jnp.bfloat16)).any(), "the output is not rounded"
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    prepared = prepare(half, variables)
    chex.assert_trees_all_equal(prepare(half, prepared), prepared)
    chex.assert_trees_all_close(apply(x, prepared), (gradient, out), rtol=1e-5, atol=1e-6)
    for path, leaf in jax.tree.leaves_with_path(prepared["params"]):
        narrow = path[-1].key in ("kernel", "bias") and path[0].key != net.head
        assert leaf.dtype == (jnp.bfloat16 if narrow else jnp.float32), path
    if "spectral" not in variables:
        chex.assert_trees_all_equal(prepare(net, variables), variables)


def test_in_float32_a_prepared_network_with_spectral_norms_has_the_same_gradients():
    net, variables, x = initialised("resnet_sn")

    def gradient(prepared):
        def loss(params):
            both = {**variables, "params": params}
            return net.apply(prepare(net, both) if prepared else both, x).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    chex.assert_trees_all_close(gradient(True), gradient(False), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_networks_of_the_paper_have_the_tensors_of_the_authors_code(name):
    stages, stage, size = PAPER[name]
    spec, narrow = SPECS[name], resnet(name, width=8, attention=True)
    image = jax.ShapeDtypeStruct((5, 28, 28, 3), jnp.float32)
    out = jax.eval_shape(lambda x: narrow.init_with_output(jax.random.key(0), x)[0], image)
    assert (out.shape, out.dtype) == ((5,), jnp.float32)
    plain = torch_shapes(resnet(name), 3)
    blocks = [f"layer{s}.{b}.conv1.weight" for s, n in enumerate(stages, 1) for b in range(n)]
    assert [tensor for tensor in plain if tensor.endswith("conv1.weight")][-len(blocks) :] == blocks
    assert sum(np.prod(shape) for shape in plain.values()) == size
    assert spec.attention_after == sum(stages[:stage])
    assert spec.blocks[spec.attention_after - 1][0] == 128
    scaled = tuple((size * 8 // spec.stem, stride) for size, stride in spec.blocks)
    assert (narrow.spec.stem, narrow.spec.blocks) == (8, scaled)


def test_options_change_no_other_parameters():
    def shapes(**options):
        net = resnet(SMALL, **options)
        return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 9, 9, 3)))

    plain = shapes()
    assert shapes(remat=True) == plain
    ten, biased = shapes(num_outputs=10), shapes(use_bias=True)
    assert ten["params"].pop("linear")["kernel"].shape == (8, 10)
    assert ten["params"].items() <= plain["params"].items()
    found = {p[-2].key for p, _ in jax.tree.leaves_with_path(biased) if p[-1].key == "bias"}
    assert found == {"conv1", "conv2", "linear"}


def test_remat_changes_no_gradient():
    plain, variables, x = initialised("classes")
    found = [output_and_gradient(net)(x, variables) for net in (plain, plain.clone(remat=True))]
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)


def test_attention_starts_as_the_identity_and_then_mixes_positions():
    x = jax.random.normal(jax.random.key(1), (2, 3, 3, 16))
    out, variables = jax.jit(SelfAttention().init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(out, x)
    variables["params"]["gamma"] = jnp.ones(())
    moved = jax.jit(jax.grad(lambda x: SelfAttention().apply(variables, x)[0, 0, 0].sum()))(x)
    assert (jnp.abs(moved[0]).sum(-1) > 0).all()
    assert not moved[1].any()


def test_attention_in_bfloat16_does_not_round_scores():
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 64))
    variables = jax.jit(SelfAttention().init)(jax.random.key(0), x)
    params = {**variables["params"], "gamma": jnp.ones(())}
    for name in ("query", "key"):  # Sharp attention, where a rounded score shows.
        params[name] = jax.tree.map(lambda a: 8 * a.astype(jnp.bfloat16), params[name])
    x = x.astype(jnp.bfloat16)

    def attended(dtype):
        attention = SelfAttention(dtype=dtype)
        return jax.jit(lambda x: attention.apply({"params": params}, x))(x.astype(dtype)) - x

    exact = attended(jnp.float32)
    error = jnp.linalg.norm(attended(jnp.bfloat16).astype(jnp.float32) - exact)
    assert error < 1.2e-2 * jnp.linalg.norm(exact)


MISUSES = [
    ("resnet64-shallow", {}, r"allowed: resnet32, .*did you mean 'resnet64_shallow'"),
    ("resnet32", {"num_outputs": 0}, "num_outputs must be at least 1, got 0"),
    *(
        (spec, {}, "a network needs blocks")
        for spec in ((4, ()), (4, ((0, 1),)), (4, ((4, 0),)), (0, ((4, 1),)))
    ),
    ((4, ((4, 1),), 2), {"attention": True}, "number from 1 to 1, got 2"),
    ((4, ((4, 1),)), {"attention": True}, "number from 1 to 1, got None"),
]


@pytest.mark.parametrize(("spec", "options", "message"), MISUSES)
def test_a_network_that_cannot_be_is_rejected(spec, options, message):
    with pytest.raises(ValueError, match=message):
        resnet(spec if isinstance(spec, str) else ResNetSpec(*spec), **options)


def test_all_imported_tensors_that_do_not_fit_are_in_one_error():
    net = MLP((3,), spectral_norm=True)
    named = {
        name: np.full(shape, i) for i, (name, shape) in enumerate(torch_shapes(net, 2).items())
    }
    vectors = from_torch_state_dict(net, named)["spectral"]["mlp_2"]
    np.testing.assert_array_equal(vectors["v"], named["mlp.2.weight_v"])
    del named["mlp.0.bias"]
    named |= {"mlp.2.weight_orig": np.zeros((1, 9)), "extra": np.zeros(4)}
    with pytest.raises(ValueError, match="do not fit the network") as error:
        from_torch_state_dict(net, named)
    for problem in (
        "0.bias: expected (3,), got None",
        "2.weight_orig: expected (1, 3), got (1, 9)",
        "extra: expected None, got (4,)",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_denoiser_keeps_shape_and_type_and_has_its_own_parameters(dtype):
    denoiser = Denoiser(width=8, depth=1, dtype=dtype)
    estimator = {"params": {"conv1": {"kernel": jnp.ones(3)}}, "vectors": {}}
    variables = denoiser.add_params(estimator, jax.random.key(0), (8, 6, 3))
    x = jax.random.normal(jax.random.key(1), (5, 8, 6, 3))
    y = jax.jit(denoiser.denoise)(variables, x)
    assert (y.shape, y.dtype) == (x.shape, jnp.float32)
    assert np.any(y != x)
    assert variables["params"]["conv1"] is estimator["params"]["conv1"]
    assert variables["vectors"] == {}
    assert estimator["params"].keys() == {"conv1"}
    single = jax.jit(denoiser.denoise)(variables, x[2:3])
    np.testing.assert_allclose(single, y[2:3], rtol=1e-2, atol=1e-2)
