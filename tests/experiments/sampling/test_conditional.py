"""Class-conditional samples, with a classifier of a workdir or of the library robustness."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from small_runs import SMALL_RESNET, command, start, train

from experiments import build, run
from experiments.build.classifier import make_attack
from experiments.classifiers import load, load_features
from experiments.classifiers.robustness import read_robustness
from experiments.errors import UserError
from experiments.files import write_json
from experiments.machine import hardware
from experiments.modes import creation
from experiments.modes.sample import _check_condition
from experiments.sampling.conditional import conditioned, labels_of
from experiments.sampling.opened import open_checkpoint
from experiments.torch_file import load as load_torch_file
from fdrl_jax.training import adversarial, parallel, rng

GOLDEN = Path(__file__).parents[2] / "golden"
CIFAR = ("airplane", "automobile", "bird", "cat", "deer")
CIFAR += ("dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers") / "of_digits"
    changes = {"attack.num_steps": 2, "train.steps_per_dispatch": 4}
    start("train_classifier", folder, "digits_classifier:tiny", changes)
    return run.open_run(folder)


@pytest.mark.slow
def test_training_a_classifier_reports_clean_and_robust_accuracy_on_held_out_images(classifier):
    metrics = json.loads((classifier.root / "accuracy.json").read_text())["metrics"]
    assert 0.0 <= metrics["robust_accuracy"] <= metrics["clean_accuracy"] <= 1.0
    assert metrics["num_images"] == 360
    assert metrics["robust_at_epsilon"] == 0.75
    assert "accuracy" in classifier.metrics.read_text()


def test_an_attack_on_the_scale_of_the_literature_is_twice_as_large_on_ours(tiny):
    wanted = tiny("digits_classifier", {"attack.epsilon": 0.4})
    assert make_attack(wanted, 7) == adversarial.l2_attack(0.8, 7)


def test_a_classifier_needs_labelled_images(tiny):
    wanted = tiny("swissroll")
    with pytest.raises(UserError, match=r"needs labelled images.* With data\.on_error=skip"):
        build.classifier_training(wanted, creation.load_data(wanted))


def test_steps_of_a_classifier_update_its_vectors_of_spectral_normalisation(tiny):
    changes = {"network.spectral_norm": True, "attack.num_steps": 0, "train.steps_per_dispatch": 2}
    wanted = tiny("digits_classifier", changes | SMALL_RESNET)
    training = build.classifier_training(wanted, creation.load_data(wanted))
    before, constants = training.init_state(), build.on_devices(training.constants)
    step = parallel.map_steps(training.repeated_step())
    after, _ = step(rng.root_key(0), parallel.replicate(before), constants, None, 2, 0)
    vectors = (s.variables["spectral"] for s in (before, parallel.unreplicate(after)))
    unchanged = jax.tree.map(np.array_equal, *vectors)
    assert not any(jax.tree.leaves(unchanged))


@pytest.mark.slow
def test_sample_i_of_all_classes_is_that_of_class_i_and_each_has_a_row_in_the_picture(
    of_digits, classifier, capsys
):
    def sample(label, weight):
        flags = {"classifier": classifier.root, "class": label, "num_samples": 16}
        start("sample", of_digits.root, None, {"condition.weight": weight}, **flags)
        return np.load(capsys.readouterr().out.split(": ")[1].split("\n")[0])["arr_0"].astype(int)

    every, sevens = sample("all", 5.0), sample("7", 5.0)
    assert every.shape == sevens.shape == (16, 8, 8, 1)
    np.testing.assert_allclose(every[7], sevens[7], atol=1)
    assert np.abs(every[8] - sevens[8]).max() > 1
    assert (of_digits.samples / "step_4_class_all.npz.picture.png").exists()
    assert np.abs(sample("7", 0.0) - sevens).max() > 1, "another weight draws other samples"
    np.testing.assert_array_equal(sample("7", 5.0), sevens)  # And replaces none.


@pytest.mark.parametrize(
    ("key", "label", "message"),
    [
        ("flow.num_refine_steps", "3", "no effect with --class=3; .* condition.num_refine_steps"),
        ("condition.weight", "", "condition.weight needs --class=NAME or --class=all"),
        ("condition.classifier", "", "--classifier needs --class=NAME or --class=all"),
    ],
)
def test_a_change_without_an_effect_is_an_error(of_digits, key, label, message):
    with pytest.raises(UserError, match=message):
        start("sample", of_digits.root, None, {key: 2}, num_samples=2, **{"class": label})


def test_a_density_ratio_is_not_a_classifier(of_digits):
    with pytest.raises(UserError, match=r"--classifier=.* contains a density ratio, not a classif"):
        load(of_digits.root, of_digits.data["classes"], (8, 8, 1))


def test_a_classifier_in_the_settings_of_a_run_needs_no_class():
    _check_condition({}, {"condition.label": "", "condition.classifier": "c"})


@pytest.mark.parametrize("mode", ["train", "prior"])
def test_the_settings_of_a_classifier_do_not_train_a_density_ratio(mode, tmp_path):
    with pytest.raises(UserError, match=r"attack\.epsilon=0\.75 is for .* --mode=train_classifier"):
        start(mode, tmp_path / "run", "digits_classifier:tiny")
    assert not (tmp_path / "run").exists()


def test_a_rejected_training_of_a_classifier_leaves_a_folder_that_trains_and_samples(tmp_path):
    with pytest.raises(UserError, match="needs labelled images"):
        start("train_classifier", tmp_path, "swissroll:tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    train(tmp_path)
    start("sample", tmp_path, num_samples=2)


def test_a_class_is_given_by_name_or_number_and_the_error_suggests_the_nearest():
    positions = np.arange(12)
    for name in ("cat", "3"):
        np.testing.assert_array_equal(labels_of(name, CIFAR)(positions), 3)
    np.testing.assert_array_equal(labels_of("all", CIFAR)(positions), positions % 10)
    with pytest.raises(UserError, match=r"did you mean 'horse'.*Allowed: airplane, .* 0 to 9"):
        labels_of("hors", CIFAR)
    with pytest.raises(UserError, match="no classes; sub-folders"):
        labels_of("cat", ())


@pytest.mark.slow
def test_a_path_without_a_classifier_or_with_one_of_other_data_is_refused(
    of_digits, classifier, tmp_path
):
    opened = open_checkpoint(command("sample", of_digits.root, **{"class": "3"}))
    with pytest.raises(UserError, match="needs --classifier"):
        conditioned(opened.experiment)
    with pytest.raises(UserError, match="--classifier needs --class=NAME"):
        start("sample", of_digits.root, classifier=classifier.root)
    with pytest.raises(UserError, match="neither a checkpoint file nor the workdir"):
        load(tmp_path, CIFAR, (32, 32, 3))
    with pytest.raises(UserError, match="classes"):
        load(classifier.root, CIFAR, (8, 8, 1))
    with pytest.raises(
        UserError, match=r"contains a classifier, not a .*use --mode=train_classifier"
    ):
        start("sample", classifier.root)
    pytest.importorskip("torch")
    with pytest.raises(UserError, match="has 10 classes of colour images"):
        load(GOLDEN / "robustness_tiny.pt", CIFAR[:9], (16, 16, 3))


@pytest.mark.slow
def test_a_classifier_evaluates_samples_under_its_accuracy_and_digest(
    of_digits, classifier, tmp_path, monkeypatch
):
    digits = tuple("0123456789")
    with monkeypatch.context() as within:
        # It would change the precision of the run that is evaluated.
        within.setattr(hardware, "prepare", pytest.fail)
        classify, described = load_features(classifier.root, digits, (8, 8, 1))
    images = np.random.default_rng(0).uniform(-1, 1, (300, 8, 8, 1)).astype(np.float32)
    probabilities, features = classify(images)
    assert probabilities.shape == (300, 10)
    assert len(features) == 300
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(features[270:], classify(images[270:])[1], rtol=1e-5)
    start("evaluate", of_digits.root, classifier=classifier.root)
    (file,) = of_digits.evaluations.glob("step_4_*/record.json")
    stored = json.loads(file.read_text())
    assert stored["key"]["classifier"] == described["digest"]
    assert stored["details"]["classifier"] == described
    assert "frechet_classifier_64" in stored["metrics"]
    unfinished = tmp_path / "unfinished"
    shutil.copytree(classifier.root, unfinished)
    file = unfinished / "accuracy.json"
    write_json(file, {**json.loads(file.read_text()), "step": 1})
    with pytest.raises(UserError, match="has no known accuracy at step"):
        load_features(unfinished, digits, (8, 8, 1))
    file.unlink()
    with pytest.raises(UserError, match="has no known accuracy"):
        load_features(unfinished, digits, (8, 8, 1))


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
        (lambda t, x: t.update({"module.head.w": x}), "contains 'head.w'"),
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


@pytest.mark.parametrize("name", ["model", "normalizer", "attacker"])
def test_a_tensor_that_only_has_the_name_of_a_part_is_rejected(name, monkeypatch):
    monkeypatch.setattr("experiments.classifiers.robustness.load", lambda _: {"model": {}})
    monkeypatch.setattr(
        "experiments.classifiers.robustness.state_dict", lambda *_: {name: np.zeros(2)}
    )
    with pytest.raises(UserError, match=f"contains '{name}'"):
        read_robustness(Path("x.pt"))
