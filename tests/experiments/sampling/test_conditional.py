"""Samples of a class: by a classifier of a workdir, or one of the library robustness."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from experiments.request import Request
from experiments.storage.workdir import Workdir

from experiments import build, modes
from experiments.build.classifier import classifier as build_classifier
from experiments.classifiers import load, read_robustness
from experiments.errors import UserError
from experiments.sampling.conditional import conditioned, labels_of
from experiments.torch_file import load as load_torch_file
from experiments.training import loop
from fdrl_jax import adversarial

GOLDEN = Path(__file__).parents[1] / "golden"
CIFAR = ("airplane", "automobile", "bird", "cat", "deer")
CIFAR += ("dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def trained_classifier(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    config = tiny("digits_classifier", {"attack.num_steps": 2, "train.steps_per_dispatch": 4})
    modes.run(Request("train_classifier", config, folder, "a command"))
    return Workdir(folder)


@pytest.fixture
def asking(tiny, trained_classifier):
    """Returns `(class, changes) -> the config of digits that asks for it`."""

    def config(label, **changes):
        settings = {"condition.label": label, "condition.classifier": str(trained_classifier.root)}
        return tiny("digits", settings | {f"condition.{k}": v for k, v in changes.items()})

    return config


@pytest.mark.slow
def test_training_a_classifier_tells_clean_and_robust_accuracy_on_held_out_images(
    trained_classifier,
):
    figures = json.loads(trained_classifier.evaluation.read_text())["metrics"]
    assert 0.0 <= figures["robust_accuracy"] <= figures["clean_accuracy"] <= 1.0
    assert figures["num_images"] == 360
    assert figures["robust_at_epsilon"] == 0.75
    assert "accuracy" in trained_classifier.metrics.read_text()


def test_an_attack_on_the_scale_of_the_literature_is_twice_as_far_on_ours(tiny):
    training = build_classifier(tiny("digits_classifier", {"attack.epsilon": 0.4}))
    assert training.attack == adversarial.l2_attack(0.8, 7)


def test_a_classifier_needs_labelled_images(tiny):
    with pytest.raises(UserError, match="needs labelled images"):
        build_classifier(tiny("swissroll"))


@pytest.mark.slow
def test_sample_i_of_all_classes_is_that_of_class_i_and_each_has_a_row_in_the_picture(
    asking, tiny, tmp_path, capsys
):
    workdir = Workdir(tmp_path)
    workdir.create()
    loop.train(build.experiment(tiny("digits", {"train.num_steps": 2})), workdir, "a command")
    for label in ("all", "7"):
        modes.run(Request("sample", asking(label, weight=5.0), tmp_path, num_samples=16))
    every, sevens = (
        np.load(workdir.samples / f"step_2_class_{label}.npz")["arr_0"] for label in ("all", "7")
    )
    assert every.shape == sevens.shape == (16, 8, 8, 1)
    np.testing.assert_allclose(every[7], sevens[7], atol=1)
    assert np.abs(every[8].astype(int) - sevens[8]).max() > 1
    assert (workdir.samples / "step_2_class_all.png").exists()
    assert "16 samples of step 2" in capsys.readouterr().out
    modes.run(Request("sample", asking("7", weight=0.0), tmp_path, num_samples=16))
    unguided = np.load(workdir.samples / "step_2_class_7.npz")["arr_0"]
    assert np.abs(unguided.astype(int) - sevens).max() > 1, "another weight draws other samples"


def test_a_class_is_named_or_numbered_and_a_wrong_one_is_answered_with_the_nearest():
    positions = np.arange(12)
    for name in ("cat", "3"):
        np.testing.assert_array_equal(labels_of(name, CIFAR)(positions), 3)
    np.testing.assert_array_equal(labels_of("all", CIFAR)(positions), positions % 10)
    with pytest.raises(UserError, match=r"did you mean 'horse'.*Allowed: airplane, .* 0 to 9"):
        labels_of("hors", CIFAR)
    with pytest.raises(UserError, match="no classes"):
        labels_of("cat", ())


@pytest.mark.slow
def test_what_is_no_classifier_or_one_of_other_data_is_told(tiny, trained_classifier, tmp_path):
    with pytest.raises(UserError, match="needs --classifier"):
        conditioned(build.experiment(tiny("digits", {"condition.label": "3"})))
    with pytest.raises(UserError, match="train_classifier"):
        load(tmp_path, CIFAR, (32, 32, 3))
    with pytest.raises(UserError, match="its classes are"):
        load(trained_classifier.root, CIFAR, (8, 8, 1))
    with pytest.raises(UserError, match="holds a classifier"):
        modes.run(Request("sample", tiny("digits"), trained_classifier.root))
    pytest.importorskip("torch")
    with pytest.raises(UserError, match="tells 10 classes of colour images"):
        load(GOLDEN / "robustness_tiny.pt", CIFAR[:9], (16, 16, 3))


def test_a_network_of_the_library_robustness_gives_pytorchs_logits():
    pytest.importorskip("torch")
    expected = np.load(GOLDEN / "robustness_tiny_expected.npz")
    images = np.moveaxis(expected["images"] / np.float32(255), 1, -1)
    assert images.min() < 0.0  # So that the clipping counts.
    of_file = load(GOLDEN / "robustness_tiny.pt", CIFAR, (16, 16, 3))
    logits = jax.jit(of_file.apply)(of_file.variables, images)
    assert of_file.input_range == (0.0, 1.0)
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t, _: t.pop("module.model.layer2.0.bn2.running_var"),
            "missing layer2.0.bn2.running",
        ),
        (lambda t, x: t.update({"module.model.layer9.x": x}), "surplus layer9.x"),
        (lambda t, x: t.update({"module.head.w": x}), "holds 'head.w'"),
        (lambda t, _: t.pop("module.normalizer.new_std"), "no normalizer.new_std"),
        (lambda t, _: t.pop("module.model.conv1.weight"), "no model.conv1.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, expected, monkeypatch):
    torch = pytest.importorskip("torch")
    entries = load_torch_file(GOLDEN / "robustness_tiny.pt")
    change(entries["model"], torch.zeros(2))
    monkeypatch.setattr("experiments.classifiers.robustness.load", lambda _: entries)
    with pytest.raises(UserError, match=expected):
        read_robustness(Path("x.pt"))
