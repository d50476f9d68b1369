"""The reader of PyTorch files reads what the authors' program wrote, exactly."""

import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_file_bytes as torch_bytes

from experiments.torch_files import (
    TorchFileError,
    adam_moments,
    read_checkpoint,
    read_gaussian_prior,
    read_torch_file,
)

GOLDEN = Path(__file__).parents[1] / "golden"
NORMAL = "torch.distributions.multivariate_normal.MultivariateNormal"
ITEMS = np.arange(24, dtype="<f4")


def read_one(path, size, stride, offset=0, kind="Float", elements=ITEMS, **kwargs):
    flat = torch_bytes.storage(kind, "0", len(elements))
    pickled = torch_bytes.document(torch_bytes.tensor(flat, size, stride, offset))
    elements = elements.tobytes()
    return read_torch_file(torch_bytes.write(path / "one.pt", pickled, {"0": elements}, **kwargs))


def test_original_checkpoint_gives_step_config_and_optimizer():
    checkpoint = read_checkpoint(GOLDEN / "original_mlp_ckpt.pt")
    assert checkpoint.step == 2
    assert checkpoint.config["loss_function"] == "LSIF"
    assert checkpoint.config["scheduler_steps"] == [5000, 10000, 15000]
    assert checkpoint.scheduler["base_lrs"] == [1e-4]
    moments = adam_moments(checkpoint)
    assert moments.num_updates == 3
    assert list(moments.mu) == list(moments.nu) == list(checkpoint.model)
    assert all(moments.nu[name].min() >= 0 for name in moments.nu)
    assert any(moments.mu[name].any() for name in moments.mu)


def test_original_prior_gives_mean_and_covariance():
    prior = read_gaussian_prior(GOLDEN / "original_tiny_ddp.pt")
    expected = np.load(GOLDEN / "original_tiny_ddp_expected.npz")
    np.testing.assert_allclose(prior.mean, expected["mean"], atol=1e-5)
    np.testing.assert_allclose(prior.covariance, expected["covariance"], atol=1e-5)
    np.testing.assert_allclose(prior.scale_tril @ prior.scale_tril.T, prior.covariance, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Half", np.float16),
        ("BFloat16", ml_dtypes.bfloat16),
        ("Float", np.float32),
        ("Double", np.float64),
        ("Char", np.int8),
        ("Byte", np.uint8),
        ("Short", np.int16),
        ("Int", np.int32),
        ("Long", np.int64),
        ("Bool", np.bool_),
    ],
)
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_every_dtype_and_byte_order_is_read(tmp_path, kind, dtype, byteorder):
    values = np.array([0, 1, 3], dtype)
    order = {"little": "<", "big": ">"}[byteorder]
    raw = values.view(f"u{values.itemsize}").astype(f"{order}u{values.itemsize}")
    array = read_one(tmp_path, (3,), (1,), kind=kind, elements=raw, byteorder=byteorder.encode())
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, values)


def test_bytes_of_a_bool_storage_other_than_0_and_1_are_true(tmp_path):
    raw = np.array([0, 1, 3], np.uint8)
    array = read_one(tmp_path, (3,), (1,), kind="Bool", elements=raw)
    assert array.view(np.uint8).tolist() == [0, 1, 1]


def test_without_a_byteorder_record_the_file_is_little_endian(tmp_path):
    np.testing.assert_array_equal(read_one(tmp_path, (24,), (1,), byteorder=None), ITEMS)


@pytest.mark.parametrize(
    ("size", "stride", "offset", "expected"),
    [
        ((4, 6), (6, 1), 0, ITEMS.reshape(4, 6)),
        ((6, 4), (1, 6), 0, ITEMS.reshape(4, 6).T),
        ((5, 4), (1, 6), 1, ITEMS.reshape(4, 6).T[1:]),
        ((4, 3), (6, 2), 1, ITEMS.reshape(4, 6)[:, 1::2]),
        ((1, 24), (10**12, 1), 0, ITEMS[None]),
        ((3, 2), (0, 1), 4, np.broadcast_to(ITEMS[4:6], (3, 2))),
        ((), (), 5, ITEMS[5]),
        ((0, 3), (3, 1), 0, np.empty((0, 3))),
    ],
    ids=["plain", "transposed", "rows", "columns", "one", "expanded", "scalar", "empty"],
)
def test_strides_and_offsets_give_the_same_view(tmp_path, size, stride, offset, expected):
    array = read_one(tmp_path, size, stride, offset)
    assert array.shape == np.shape(expected)
    np.testing.assert_array_equal(array, expected)


def test_tensors_of_one_storage_share_its_memory_and_are_read_only(tmp_path):
    flat = torch_bytes.storage("Float", "0", 24)
    items = torch_bytes.dictionary(
        a=torch_bytes.tensor(flat, (24,), (1,)), b=torch_bytes.tensor(flat, (2,), (1,), 3)
    )
    path = torch_bytes.write(tmp_path / "x", torch_bytes.document(items), {"0": ITEMS.tobytes()})
    tensors = read_torch_file(path)
    assert np.shares_memory(tensors["a"], tensors["b"])
    assert not tensors["a"].flags.writeable


def test_parameters_are_read_as_their_tensors(tmp_path):
    data = torch_bytes.tensor(torch_bytes.storage("Float", "0", 24), (24,), (1,))
    parameter = torch_bytes.call(
        "torch._utils._rebuild_parameter",
        data,
        torch_bytes.literal(True),
        torch_bytes.EMPTY_ORDERED_DICT,
    )
    pickled = torch_bytes.document(parameter)
    path = torch_bytes.write(tmp_path / "x.pt", pickled, {"0": ITEMS.tobytes()})
    np.testing.assert_array_equal(read_torch_file(path), ITEMS)


@pytest.mark.parametrize("prefix", ["", "a/", "a folder.of any/name é/"])
def test_the_folder_inside_the_archive_may_have_any_name(tmp_path, prefix):
    np.testing.assert_array_equal(read_one(tmp_path, (24,), (1,), prefix=prefix), ITEMS)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_are_read_in_every_protocol(tmp_path, protocol):
    value = {
        "none": None,
        "flags": (True, False),
        "numbers": [0, -5, 255, 2**16, 2**63 - 1, -(2**63), 1.5, float("inf")],
        "text": "é\n\u2026",
        "bytes": [b"", b"\x00\xff"],
        "set": {1, "a"},
        "nested": {3: [(), (1, (2, 3, 4, 5))], None: {}},
    }
    path = torch_bytes.write(tmp_path / "x.pt", pickle.dumps(value, protocol))
    assert read_torch_file(path) == value


def test_the_metadata_of_a_state_dictionary_is_ignored(tmp_path):
    metadata = torch_bytes.dictionary(_metadata=torch_bytes.literal({"": {"version": 1}}))
    ordered = torch_bytes.EMPTY_ORDERED_DICT + torch_bytes.literal("a") + b"K\x01s"
    path = torch_bytes.write(tmp_path / "x.pt", torch_bytes.document(ordered + metadata + b"b"))
    assert read_torch_file(path) == {"a": 1}


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "absent.pt")


def normal(tmp_path, **tensors):
    items, storages = {}, {}
    for key, array in tensors.items():
        kind = {"f4": "Float", "f8": "Double", "i8": "Long"}[array.dtype.str[1:]]
        strides = tuple(stride // array.itemsize for stride in array.strides)
        flat = torch_bytes.storage(kind, key, array.size)
        items[key] = torch_bytes.tensor(flat, array.shape, strides)
        storages[key] = array.tobytes()
    body = torch_bytes.name(NORMAL) + b")\x81" + torch_bytes.dictionary(**items) + b"b"
    return torch_bytes.write(tmp_path / "x.pt", torch_bytes.document(body), storages)


LOC, TRIL = np.zeros(2), np.array([[2.0, 0.0], [1.0, 3.0]])


def test_a_prior_given_by_its_cholesky_factor_gets_its_covariance(tmp_path):
    prior = read_gaussian_prior(normal(tmp_path, loc=LOC, _unbroadcasted_scale_tril=TRIL))
    np.testing.assert_allclose(prior.covariance, TRIL @ TRIL.T)
    assert prior.mean.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"loc": np.zeros(3)}, "shape"),
        ({"loc": np.zeros((1, 2))}, "dimensions"),
        ({"loc": np.zeros(2, np.int64)}, "loc"),
        ({"loc": np.array([0, np.nan])}, "finite"),
        ({"_unbroadcasted_scale_tril": np.ones((2, 2))}, "triangular"),
        ({"_unbroadcasted_scale_tril": -TRIL}, "positive"),
        ({"covariance_matrix": np.eye(2)}, "covariance"),
        ({"covariance_matrix": np.eye(3)}, "covariance"),
    ],
)
def test_an_inconsistent_prior_is_refused(tmp_path, change, problem):
    tensors = {"loc": LOC, "_unbroadcasted_scale_tril": TRIL, "covariance_matrix": TRIL @ TRIL.T}
    assert read_gaussian_prior(normal(tmp_path, **tensors)).covariance.shape == (2, 2)
    with pytest.raises(TorchFileError, match=problem):
        read_gaussian_prior(normal(tmp_path, **(tensors | change)))


def test_a_prior_without_its_tensors_is_refused(tmp_path):
    with pytest.raises(TorchFileError, match="lacks the tensor _unbroadcasted_scale_tril"):
        read_gaussian_prior(normal(tmp_path, loc=LOC))


def test_the_two_kinds_of_file_are_not_confused():
    with pytest.raises(TorchFileError, match=f"{NORMAL} instead of a checkpoint"):
        read_checkpoint(GOLDEN / "original_tiny_ddp.pt")
    with pytest.raises(TorchFileError, match="instead of a MultivariateNormal"):
        read_gaussian_prior(GOLDEN / "original_mlp_ckpt.pt")


def checkpoint(tmp_path, **changes):
    """A checkpoint of one layer whose entries are changed; None leaves one out."""
    weight = torch_bytes.tensor(torch_bytes.storage("Float", "0", 24), (4, 6), (6, 1))
    moments = torch_bytes.dictionary(step=b"K\x07", exp_avg=weight, exp_avg_sq=weight)
    entries = {
        "step": b"K\x06",
        "model": b"}("
        + b"".join(torch_bytes.literal(n) + weight for n in ("w", "w.weight_u"))
        + b"u",
        "ema": torch_bytes.dictionary(w=weight),
        "optim": torch_bytes.dictionary(state=b"}K\x00" + moments + b"s"),
        "scheduler": b"}",
        "config": b"}",
    } | {key: value(weight) if callable(value) else value for key, value in changes.items()}
    body = torch_bytes.dictionary(**{key: value for key, value in entries.items() if value})
    return torch_bytes.write(tmp_path / "x.pt", torch_bytes.document(body), {"0": ITEMS.tobytes()})


def test_buffers_of_spectral_normalisation_are_no_parameters_of_adam(tmp_path):
    moments = adam_moments(read_checkpoint(checkpoint(tmp_path)))
    assert moments.num_updates == 7
    assert list(moments.mu) == ["w"]
    np.testing.assert_array_equal(moments.mu["w"], ITEMS.reshape(4, 6))


def test_parameters_never_updated_have_zero_moments(tmp_path):
    optim = torch_bytes.dictionary(state=b"}")
    moments = adam_moments(read_checkpoint(checkpoint(tmp_path, optim=optim)))
    assert moments.num_updates == 0
    assert not moments.nu["w"].any()


def test_missing_entries_are_all_named(tmp_path):
    with pytest.raises(TorchFileError, match="lacks ema, config"):
        read_checkpoint(checkpoint(tmp_path, ema=None, config=None))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": b"J\xff\xff\xff\xff"}, "step"),
        ({"step": torch_bytes.literal("3")}, "step"),
        ({"step": torch_bytes.literal(1.5)}, "step"),
        ({"step": torch_bytes.literal(float("inf"))}, "step"),
        ({"model": b"]"}, "model"),
        ({"model": torch_bytes.literal({"a.weight": 1})}, "'a.weight', which is no tensor"),
        (
            {
                "model": lambda w: (
                    b"}(" + torch_bytes.literal("module.a") + w + b"X\x01\0\0\0b" + w + b"u"
                )
            },
            "module. before some names",
        ),
        ({"config": torch_bytes.literal({1: 2})}, "config"),
        ({"scheduler": b"N"}, "scheduler"),
    ],
)
def test_entries_of_the_wrong_kind_are_named(tmp_path, changes, problem):
    with pytest.raises(TorchFileError, match=problem):
        read_checkpoint(checkpoint(tmp_path, **changes))


@pytest.mark.parametrize(
    "state",
    [
        torch_bytes.literal({0: {"step": 1}}),
        torch_bytes.literal({5: {}}),
        torch_bytes.literal([1]),
    ],
)
def test_another_optimizer_than_adam_is_refused(tmp_path, state):
    read = read_checkpoint(checkpoint(tmp_path, optim=torch_bytes.dictionary(state=state)))
    with pytest.raises(TorchFileError, match="optimizer"):
        adam_moments(read)
