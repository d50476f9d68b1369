"""All networks have the expected shapes, names and types, and errors name what is wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.authors_weights import from_torch_state_dict, torch_shapes
from fdrl_jax.networks import (
    MLP,
    SPECS,
    ResNetSpec,
    SelfAttention,
    resnet,
)
from fdrl_jax.networks.resnet import _means

# Number of blocks per stage, and the stage that self-attention follows.
STAGES = {
    "resnet32": ((3, 3, 3, 3), 1),
    "resnet64": ((1, 2, 2, 2), 2),
    "resnet64_shallow": ((1, 1, 1, 1), 2),
    "resnet128": ((1, 1, 2, 2, 2), 2),
}
# Weights and biases, counted by hand from table 4 of the paper, without attention.
SIZES = {
    "resnet32": 11_374_209,
    "resnet64": 5_126_081,
    "resnet64_shallow": 1_537_985,
    "resnet128": 5_437_377,
}


def reference_names(name, spectral_norm, attention):
    """Returns the names of the tensors in the authors' implementation, from its stages."""
    kernels = ["conv1", "linear"]
    for stage, blocks in enumerate(STAGES[name][0], start=1):
        for block in range(blocks):
            kernels += [f"layer{stage}.{block}.conv{i}" for i in (1, 2)]
            if block == 0 and not (name == "resnet32" and stage == 1):
                kernels.append(f"layer{stage}.{block}.shortcut_conv")
    names = {"linear.bias"}
    if attention:
        projections = [f"self_attn_module.{p}" for p in ("key", "query", "value", "self_att")]
        kernels += projections
        names |= {f"{projection}.bias" for projection in projections} | {"self_attn_module.gamma"}
    suffixes = ("weight_orig", "weight_u", "weight_v") if spectral_norm else ("weight",)
    return names | {f"{kernel}.{suffix}" for kernel in kernels for suffix in suffixes}


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_tensors_have_the_names_of_the_authors_code(name, spectral_norm, attention):
    net = resnet(name, spectral_norm=spectral_norm, attention=attention)

    assert set(torch_shapes(net, 3)) == reference_names(name, spectral_norm, attention)


@pytest.mark.parametrize("name", SPECS)
def test_networks_have_the_sizes_of_the_paper(name):
    sizes = [np.prod(shape) for shape in torch_shapes(resnet(name), 3).values()]

    assert sum(sizes) == SIZES[name]


@pytest.mark.parametrize("name", SPECS)
def test_attention_follows_the_stage_of_the_authors_code(name):
    after = SPECS[name].attention_after
    stages, stage = STAGES[name]

    assert after == sum(stages[:stage])
    assert SPECS[name].blocks[after - 1][0] == 128


@pytest.mark.parametrize("name", SPECS)
def test_every_table_maps_a_batch_to_one_number_an_image(name):
    net = resnet(name, width=8, attention=True)
    x = jax.ShapeDtypeStruct((5, 64, 64, 3), jnp.float32)

    out, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)

    assert out.shape == (5,)
    assert out.dtype == jnp.float32


def test_a_head_of_several_outputs_changes_nothing_else():
    spec, x = ResNetSpec(4, ((4, 2),)), jnp.zeros((2, 8, 8, 3))
    one, ten = (resnet(spec, num_outputs=n) for n in (None, 10))
    out, variables = jax.eval_shape(lambda: ten.init_with_output(jax.random.key(0), x))
    assert out.shape == (2, 10)
    alone = jax.eval_shape(lambda: one.init(jax.random.key(0), x))
    del variables["params"]["linear"], alone["params"]["linear"]
    assert variables == alone
    with pytest.raises(ValueError, match="num_outputs must be at least 1, got 0"):
        resnet(spec, num_outputs=0)


def test_without_biases_the_output_is_linear_along_rays_and_with_biases_it_is_not():
    spec = ResNetSpec(4, ((4, 1), (8, 2)))
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    for use_bias in (False, True):
        net = resnet(spec, use_bias=use_bias)
        variables = jax.jit(net.init)(jax.random.key(1), x)
        apply = jax.jit(net.apply)
        at_origin, near, far = (apply(variables, c * x) for c in (0.0, 1.0, 3.0))
        curvature = np.abs((far - at_origin) - 3.0 * (near - at_origin)).max()
        assert (curvature > 1e-2) == use_bias
        biased = {p[-2].key for p, _ in jax.tree.leaves_with_path(variables) if p[-1].key == "bias"}
        assert biased == ({"conv1", "conv2", "linear"} if use_bias else {"linear"})


def test_with_means_the_gradient_of_a_flat_image_is_flat_and_with_strides_it_has_a_pattern():
    spec = ResNetSpec(8, ((16, 2),))
    x = jnp.full((1, 48, 48, 3), 0.3)
    spread = {}
    for downsampling in ("stride", "mean"):
        net = resnet(spec, use_bias=True, downsampling=downsampling)
        variables = net.init(jax.random.key(0), x)
        gradient = jax.grad(lambda y, net, v: net.apply(v, y)[0])(x, net, variables)
        inner = gradient[0, 20:28, 20:28]  # Far enough from the border not to see it.
        spread[downsampling] = float(inner.std(axis=(0, 1)).max() / jnp.abs(inner).max())
    assert spread["mean"] < 1e-5
    assert spread["stride"] > 0.1


def test_means_and_strides_have_the_same_parameters():
    spec, x = ResNetSpec(4, ((4, 2), (8, 2))), jnp.zeros((2, 28, 28, 1))
    strided, means = (
        jax.eval_shape(resnet(spec, downsampling=name).init, jax.random.key(0), x)
        for name in ("stride", "mean")
    )
    assert strided == means


def test_means_over_squares_repeat_an_odd_end():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    expected = [[(0 + 1 + 5 + 6) / 4, (2 + 3 + 7 + 8) / 4, (4 + 9) / 2], [10.5, 12.5, 14.0]]
    np.testing.assert_allclose(_means(x, 2)[0, ..., 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(_means(x, 1), x)


def test_an_unknown_downsampling_is_named_with_the_allowed_ones():
    with pytest.raises(ValueError, match="unknown downsampling 'means'; allowed: stride, mean"):
        resnet("resnet32", downsampling="means")


@pytest.mark.parametrize("name", SPECS)
def test_width_scales_every_channel(name):
    net = resnet(name, width=16)

    scale = 16 / SPECS[name].stem
    assert net.spec.stem == 16
    assert net.spec.blocks == tuple((size * scale, stride) for size, stride in SPECS[name].blocks)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 16, 16, 1), (2, 28, 28, 1), (2, 32, 32, 3)])
def test_small_data_get_a_network_of_their_own_size(shape):
    spec = ResNetSpec(stem=4, blocks=[[4, 1], [8, 2], [8, 2]], attention_after=2)
    net = resnet(spec, attention=True, spectral_norm=True)

    out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.ones(shape))

    assert out.shape == (2,)
    assert variables["params"]["layer3_0"]["conv2"]["kernel"].shape == (3, 3, 8, 8)


@pytest.mark.parametrize("net", [MLP((8, 8)), resnet(ResNetSpec(4, ((8, 2),)))], ids=["mlp", "res"])
def test_bfloat16_computes_near_float32_with_float32_parameters_and_output(net):
    shape = (64, 2) if isinstance(net, MLP) else (64, 8, 8, 1)
    x = jax.random.normal(jax.random.key(1), shape)
    half = net.clone(dtype=jnp.bfloat16)

    out, variables = jax.jit(half.init_with_output)(jax.random.key(0), x)

    exact = jax.jit(net.apply)(variables, x)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert 0 < jnp.linalg.norm(out - exact) < 2e-2 * jnp.linalg.norm(exact)
    assert (out != out.astype(jnp.bfloat16)).any(), "the output is not rounded"


def test_remat_changes_no_parameter_and_no_gradient():
    spec = ResNetSpec(stem=4, blocks=((4, 1), (8, 2)))
    nets = [resnet(spec, remat=remat) for remat in (False, True)]
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    variables = jax.jit(nets[0].init)(jax.random.key(0), x)

    plain, remat = (
        jax.jit(jax.grad(lambda v, net=net: net.apply(v, x).sum()))(variables) for net in nets
    )

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, remat)


def test_attention_starts_as_the_identity_and_then_mixes_positions():
    x = jax.random.normal(jax.random.key(1), (2, 3, 3, 16))
    out, variables = jax.jit(SelfAttention().init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(out, x)

    variables["params"]["gamma"] = jnp.ones(())
    moved = jax.jit(jax.grad(lambda x: SelfAttention().apply(variables, x)[0, 0, 0].sum()))(x)

    assert (jnp.abs(moved[0]).sum(-1) > 0).all()
    assert not moved[1].any()


def test_the_error_for_an_unknown_name_suggests_the_closest():
    with pytest.raises(ValueError, match=r"allowed: resnet32, .*did you mean 'resnet64_shallow'"):
        resnet("resnet64-shallow")


@pytest.mark.parametrize(
    "spec",
    [*(ResNetSpec(4, blocks) for blocks in ((), ((0, 1),), ((4, 0),))), ResNetSpec(0, ((4, 1),))],
)
def test_a_spec_without_valid_blocks_is_rejected(spec):
    with pytest.raises(ValueError, match="a network needs blocks"):
        resnet(spec)


@pytest.mark.parametrize("after", [None, 0, 2])
def test_attention_after_a_block_that_does_not_exist_is_rejected(after):
    with pytest.raises(ValueError, match=f"number from 1 to 1, got {after}"):
        resnet(ResNetSpec(4, ((4, 1),), after), attention=True)


def tensors(net, features):
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in torch_shapes(net, features).items()
    }


def test_imported_kernels_are_transposed_correctly():
    net = resnet(ResNetSpec(4, ((6, 2),), 1), attention=True)
    named = tensors(net, 2)

    params = from_torch_state_dict(net, named)["params"]

    kernel = params["layer1_0"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 4, 6)
    assert kernel[0, 2, 1, 5] == named["layer1.0.conv1.weight"][5, 1, 0, 2]
    assert params["linear"]["kernel"][3, 0] == named["linear.weight"][0, 3]
    assert params["self_attn_module"]["gamma"] == named["self_attn_module.gamma"]


@pytest.mark.parametrize(
    "net",
    [
        MLP((4,), spectral_norm=True),
        resnet(ResNetSpec(4, ((4, 1),), attention_after=1), attention=True),
    ],
)
def test_parameters_are_the_same_float32_numbers_where_jax_computes_in_float64(net):
    def initial():
        init = jax.jit(net.init)  # Compiling the operations one by one takes longer.
        return init(jax.random.key(0), jnp.zeros((1, 4, 4, 1), jnp.float32))

    with jax.enable_x64(True):
        wide = initial()
    narrow = initial()
    chex.assert_trees_all_equal_dtypes(wide, narrow)
    chex.assert_trees_all_close(wide, narrow, rtol=1e-5)


def test_an_mlp_of_other_sizes_is_imported():
    net = MLP((3, 5), spectral_norm=True)
    named = tensors(net, 7)

    variables = from_torch_state_dict(net, named)

    assert {name for name in named if "orig" in name} == {f"mlp.{i}.weight_orig" for i in (0, 2, 4)}
    assert net.apply(variables, jnp.ones((2, 7))).shape == (2,)
    np.testing.assert_array_equal(variables["spectral"]["mlp_2"]["v"], named["mlp.2.weight_v"])


def test_all_tensors_that_do_not_fit_are_named_in_one_error():
    net = MLP((3,))
    named = tensors(net, 2)
    del named["mlp.0.bias"]
    named |= {"mlp.2.weight": np.zeros((1, 9)), "extra": np.zeros(4)}

    with pytest.raises(ValueError, match="do not fit the network") as error:
        from_torch_state_dict(net, named)

    for problem in (
        "mlp.0.bias: expected (3,), got None",
        "extra: expected None, got (4,)",
        "mlp.2.weight: expected (1, 3), got (1, 9)",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("net", [MLP(), resnet("resnet64")], ids=["mlp", "resnet"])
def test_an_empty_state_dict_is_rejected(net):
    with pytest.raises(ValueError, match="got None"):
        from_torch_state_dict(net, {})


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


def test_a_network_with_xlas_convolutions_supports_forward_mode():
    net = resnet(ResNetSpec(4, ((8, 2),), 1), attention=True, implementation="xla")
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    variables = jax.jit(net.init)(jax.random.key(0), x)

    out, slope = jax.jit(lambda x: jax.jvp(lambda x: net.apply(variables, x), (x,), (x,)))(x)
    custom = net.clone(implementation="custom")

    def total(x):
        out = custom.apply(variables, x)
        return out.sum(), out

    gradient, expected = jax.jit(jax.grad(total, has_aux=True))(x)

    np.testing.assert_allclose(out, expected, rtol=1e-5)
    np.testing.assert_allclose(slope.sum(), jnp.vdot(gradient, x), rtol=1e-4)
    with pytest.raises(ValueError, match="unknown implementation 'native'"):
        resnet("resnet32", implementation="native")
