"""A checkpoint of the authors' program becomes a workdir that samples, evaluates and resumes."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import command, start, train

from experiments import prior, run, settings
from experiments.authors_checkpoint import read_checkpoint, read_prior
from experiments.build.network import make_network
from experiments.errors import UserError
from experiments.sampling.opened import open_checkpoint

torch = pytest.importorskip("torch")
import authors_program  # noqa: E402  (it needs PyTorch)

GOLDEN = Path(__file__).parents[2] / "golden"
FILE = GOLDEN / "original_mlp_ckpt.pt"
IMAGE_SETS = ("cifar10", "celeba", "lsun_church", "cat2dog")


def convert(workdir, config, file, changes=None, **flags):
    start("convert", workdir, config, changes, checkpoint=file, **flags)
    return run.open_run(workdir)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    changes = {"snapshot.num_samples": 16, "flow.num_refine_steps": 1}
    return convert(tmp_path_factory.mktemp("authors") / "run", "swissroll:tiny", FILE, changes)


def restored(created, step=3):
    return open_checkpoint(command("sample", created.root, checkpoint=step))


def test_outputs_of_model_and_average_are_the_authors(converted):
    opened = restored(converted)
    state, network = opened.checkpoint.state, opened.experiment.network
    expected = np.load(GOLDEN / "original_mlp_ckpt_expected.npz")
    for variables, name in ((state.variables, "y_model"), (state.ema_variables, "y_ema")):
        outputs = network.apply(variables, expected["x"])
        np.testing.assert_allclose(outputs, expected[name], rtol=1e-5, atol=1e-6)


def test_settings_step_and_optimizer_are_the_authors(converted):
    state, found = restored(converted).checkpoint.state, converted.settings
    assert found["loss.name"] == "lsif"
    assert found["loss.divergence"] == "pearson"
    assert found["flow.num_steps"] == 200
    assert found["optimizer.boundaries"] == [5000, 10000, 15000]
    assert int(state.step) == 3
    adam = state.opt_state.optimizer[0]
    assert int(adam.count) == 3
    original = torch.load(FILE, weights_only=True)["optim"]["state"][0]
    np.testing.assert_allclose(adam.mu["mlp_0"]["kernel"], original["exp_avg"].T, rtol=1e-6)


def test_the_run_resumes_and_samples(converted):
    state = train(converted.root, {"train.num_steps": 5})
    assert int(state.step) == 5
    start("sample", converted.root, num_samples=8)
    assert (converted.samples / "step_5.npz").exists()


@pytest.fixture(scope="module")
def image_checkpoints(tmp_path_factory):
    """Returns `data set -> (file, network, optimizer)`."""
    folder = tmp_path_factory.mktemp("authors")
    files = {name: folder / f"{name}_LR_logD.pt" for name in IMAGE_SETS}
    return {name: (file, *authors_program.save(name, file)) for name, file in files.items()}


@pytest.mark.parametrize("dataset", IMAGE_SETS)
def test_image_checkpoints_of_all_four_data_sets_are_read(dataset, image_checkpoints, tiny):
    file, net, optimizer = image_checkpoints[dataset]
    ours = tiny(dataset)

    found = read_checkpoint(file, ours)

    assert found.left_out == []
    assert found.num_steps == found.num_updates == 1
    names = ("train.batch_size", "flow.num_steps", "flow.noise_scale", "data.image_size")
    expected = [48, 90, 0.02, authors_program.IMAGE_SIZE[dataset]]
    assert [found.settings[name] for name in names] == expected
    assert (found.settings["loss.name"], found.settings["loss.divergence"]) == ("lr", "logd")
    assert found.settings["data.name"] == ours["data.name"]
    settings.checked(found.settings)
    for key in ("name", "spectral_norm", "attention"):
        assert found.settings[f"network.{key}"] == ours[f"network.{key}"]
    # The network that the settings describe computes what theirs does.
    network = make_network(found.settings, (32, 32, 3))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(np.moveaxis(x, -1, 1))).numpy()
    np.testing.assert_allclose(network.apply(found.variables, x), expected, atol=1e-5)
    for whole, half in zip(*map(jax.tree.leaves, found[3:5]), strict=True):
        np.testing.assert_allclose(half, 0.5 * whole)
    # Adam's moments belong to the right parameters: PyTorch only numbers them.
    shortcut = net.layer4[0].shortcut_conv
    moments = optimizer.state[getattr(shortcut, "weight_orig", shortcut.weight)]
    for tree, key in ((found.mu, "exp_avg"), (found.nu, "exp_avg_sq")):
        kernel = tree["layer4_0"]["shortcut_conv"]["kernel"]
        np.testing.assert_array_equal(kernel, moments[key].numpy().transpose(2, 3, 1, 0))
        assert np.abs(kernel).max() > 0.0


def test_an_image_checkpoint_becomes_a_run(image_checkpoints, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (60, 70, 70, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{i}.png")
    changes = {"data.dir": images, "data.center_crop": 0, "prior.name": "uniform"}
    file = image_checkpoints["celeba"][0]

    created = convert(tmp_path / "run", "celeba:tiny", file, changes)

    assert "counterpart" not in capsys.readouterr().out
    opened = restored(created, 1)
    assert created.settings["train.batch_size"] == 48
    assert opened.experiment.network.spec.stem == 8
    assert opened.step == 1


def entries():
    return torch.load(FILE, weights_only=True)


def saved(tmp_path, value, **options):
    torch.save(value, tmp_path / "changed.pt", **options)
    return tmp_path / "changed.pt"


def test_files_of_the_old_format_are_read_too(tiny, tmp_path):
    ours = tiny()
    old = saved(tmp_path, entries(), _use_new_zipfile_serialization=False)
    assert old.read_bytes()[:2] != b"PK"
    found, expected = read_checkpoint(old, ours), read_checkpoint(FILE, ours)
    assert found.settings == expected.settings
    jax.tree.map(np.testing.assert_array_equal, found[3:], expected[3:])


def without(key):
    return lambda e: e.pop(key)


def with_value(value, *keys):
    def change(e):
        for key in keys[:-1]:
            e = e[key]
        e[keys[-1]] = value

    return change


VECTOR = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without("ema"), "it lacks ema"),
        (with_value({"encoder.weight": VECTOR}, "model"), "state does not match its 1 parameters"),
        (with_value([1], "model"), "entry model is not a dictionary of tensors"),
        (with_value({1: VECTOR}, "model"), "entry model is not a dictionary of tensors"),
        (with_value(1, "ema", "mlp.0.bias"), "entry ema at 'mlp.0.bias' is not a plain tensor"),
        (with_value(VECTOR.cfloat(), "ema", "mlp.0.bias"), "is not a plain tensor"),
        (with_value(VECTOR[:1].expand(2**40), "ema", "mlp.0.bias"), "is not a plain tensor"),
        (with_value(VECTOR, "ema", "mlp.0.bias"), "misshapen mlp.0.bias"),
        (with_value(VECTOR, "ema", "module.x"), "'module.' before only some of its names"),
        (with_value(VECTOR, "optim", "state", 0, "exp_avg"), "misshapen mlp.0.weight"),
        (with_value(1.5, "step"), "its step is not a plain tensor"),
        (with_value(-1, "step"), "its step is not a count"),
        (with_value(torch.tensor(float("nan")), "step"), "its step is not a count"),
        (
            with_value({0: {"step": 1}}, "optim", "state"),
            "of 'mlp.0.weight' is not a state of Adam",
        ),
        (with_value({99: {}}, "optim", "state"), "state does not match its 10 parameters"),
        (with_value(7, "optim", "state", 0, "step"), r"step counts differ: \[3, 7\]"),
        (with_value([1], "config"), "config is not a dictionary of settings"),
        (with_value("GAN", "config", "loss_function"), "loss_function 'GAN'; known: LSIF, LR, KL"),
        (with_value("x", "config", "eta"), "setting eta is not a number"),
        (with_value([[1]], "config", "scheduler_steps"), "setting scheduler_steps is not a number"),
        (with_value("celeba", "config", "dataset"), "on 'celeba'.*--config=configs/celeba.py"),
    ],
)
def test_tensors_and_settings_that_do_not_fit_are_named(change, problem, tiny, tmp_path):
    changed = entries()
    change(changed)
    with pytest.raises(UserError, match=problem) as caught:
        read_checkpoint(saved(tmp_path, changed), tiny())
    assert str(caught.value).startswith(f"{tmp_path / 'changed.pt'}: ")
    assert "\n" not in str(caught.value)


def test_tensors_of_no_known_network_are_named(tiny, tmp_path):
    changed = entries() | {"optim": {"state": {}}}
    changed["model"] = changed["ema"] = {"encoder.weight": VECTOR}
    with pytest.raises(UserError, match=r"networks mlp, resnet32.*'encoder\.weight' \(3,\)"):
        read_checkpoint(saved(tmp_path, changed), tiny())


def test_parameters_that_were_never_updated_have_zero_moments(tiny, tmp_path):
    changed = entries() | {"optim": {"state": {}}}
    found = read_checkpoint(saved(tmp_path, changed), tiny())
    assert found.num_updates == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves((found.mu, found.nu)))


def test_settings_without_a_counterpart_are_listed(tiny, tmp_path):
    changed = entries()
    changed["config"] |= {"colour": 3, "dataset": "squares", "nested": [[[1]]]}
    found = read_checkpoint(saved(tmp_path, changed), tiny())
    assert found.left_out == ["colour='3'", "dataset='squares'", "nested=..."]


def test_the_authors_prior_becomes_ours_in_our_order_of_axes():
    expected = np.load(GOLDEN / "original_tiny_ddp_expected.npz")
    shape = (2, 2, 3)
    mean, covariance = read_prior(GOLDEN / "original_tiny_ddp.pt", shape)
    theirs = expected["mean"].reshape(3, 2, 2)
    assert mean.reshape(shape)[0, 1, 2] == pytest.approx(theirs[2, 0, 1], abs=1e-5)
    theirs = expected["covariance"].reshape(3, 2, 2, 3, 2, 2)
    np.testing.assert_allclose(
        covariance.reshape(*shape, *shape), theirs.transpose(1, 2, 0, 4, 5, 3), atol=1e-5
    )
    kept = prior.from_covariance(mean, covariance)
    np.testing.assert_allclose(kept.factor @ kept.factor.T, covariance, atol=1e-5)
    np.testing.assert_allclose(kept.mean, mean)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"loc": torch.zeros(3)}, r"mean \(3,\).*do not fit the data \(2,\)"),
        ({"loc": torch.tensor([0.0, torch.nan])}, "not finite"),
        ({"loc": None}, "loc is not a plain tensor"),
        ({"_unbroadcasted_scale_tril": torch.ones(2, 2)}, "not lower triangular and positive"),
        ({"_unbroadcasted_scale_tril": -torch.eye(2)}, "not lower triangular and positive"),
    ],
)
def test_an_inconsistent_prior_is_refused(change, problem, tmp_path):
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert read_prior(saved(tmp_path, prior), (2,))[1].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    vars(prior).update(change)
    with pytest.raises(UserError, match=problem):
        read_prior(saved(tmp_path, prior), (2,))


def test_the_two_kinds_of_file_are_not_confused(tiny):
    with pytest.raises(UserError, match="a MultivariateNormal instead of a checkpoint"):
        read_checkpoint(GOLDEN / "original_tiny_ddp.pt", tiny())
    with pytest.raises(UserError, match="a dict instead of a MultivariateNormal"):
        read_prior(FILE, (2,))


def test_a_folder_with_a_run_is_not_overwritten(converted, tmp_path):
    before = (converted.root / "run.json").read_bytes()
    with pytest.raises(UserError, match="already contains a run"):
        convert(converted.root, "swissroll:tiny", FILE)
    assert (converted.root / "run.json").read_bytes() == before
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "w", "swissroll:tiny", tmp_path / "no.pt")
    assert not (tmp_path / "w").exists()
    with pytest.raises(UserError, match="is missing: "):
        start("convert", tmp_path / "w", "swissroll:tiny")
