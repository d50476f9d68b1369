"""A classifier is trained like a ratio, and opened only for data that it was trained on."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import classifier, run, settings
from experiments.data import load
from experiments.errors import UserError
from experiments.files import sha256_of_arrays
from fdrl_jax.training import parallel

CLASSES, SHAPE = tuple("0123456789"), (8, 8, 1)


@pytest.fixture
def of_digits(classifier_of_digits):
    return run.open_run(classifier_of_digits, "classifier")


def test_a_judge_gives_probabilities_features_and_its_accuracy(of_digits):
    judge, described = classifier.open_to_judge(of_digits.root, CLASSES, SHAPE)
    source = load(of_digits.settings.data)
    images, labels = source.held_out(10_000, 0), source.labels.held_out
    probabilities, features = judge(images)
    assert probabilities.shape == (len(images), 10)
    assert len(features) == len(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(judge(images[:3])[0], probabilities[:3], atol=1e-6)
    assert described["name"] == of_digits.root.name
    assert described["num_held_out"] == len(images)
    assert described["accuracy"] == np.mean(probabilities.argmax(axis=1) == labels)
    apply, variables = classifier.open_to_guide(of_digits.root, CLASSES, SHAPE)
    assert described["digest"] == sha256_of_arrays(variables)
    head = variables["params"]["linear"]
    logits = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jax.nn.softmax(logits), probabilities, atol=1e-5)
    guided = jax.nn.softmax(apply(variables, images[:3]))
    np.testing.assert_allclose(guided, probabilities[:3], atol=1e-6)


def test_what_is_not_a_classifier_of_these_data_is_refused(of_digits, trained, tmp_path):
    for path, classes, shape, message in (
        (tmp_path, CLASSES, SHAPE, "is not the folder of a classifier; train one"),
        (trained.root, CLASSES, SHAPE, "is not the folder of a classifier; train one"),
        (of_digits.root, ("cat", "dog"), SHAPE, "other data: its classes .* of this run are "),
        (of_digits.root, CLASSES, (8, 8, 3), "other data: its classes .* of this run are "),
    ):
        for opened in (classifier.open_to_guide, classifier.open_to_judge):
            with pytest.raises(UserError, match=message):
                opened(path, classes, shape)
    folder = shutil.copytree(of_digits.root, tmp_path / "copy")
    (folder / "accuracy.json").unlink()
    with pytest.raises(UserError, match="is not complete; run --mode=classifier again"):
        classifier.open_to_judge(folder, CLASSES, SHAPE)


def test_data_without_two_classes_are_refused(tiny):
    unlabelled = settings.from_config({"data.name": "digits", "network.name": "resnet32"})
    one_class = tiny("classifier", {"data.source_class": "3", "data.target_class": "8"})
    for wanted, data, message in (
        (unlabelled, load(unlabelled.data)._replace(labels=None), "digits: a classifier needs lab"),
        (one_class, load(one_class.data), "training images of at least two classes"),
    ):
        with pytest.raises(UserError, match=message):
            classifier.build(wanted, data)


@pytest.mark.slow
def test_the_step_attacks_and_shifts_its_images_and_learns(tiny, tmp_path):
    wanted = tiny("classifier", {"classifier.max_shift": 1, "classifier.epsilon": 0.1})
    rate = {"optimizer.schedule": "constant", "optimizer.learning_rate": 0.01}
    size = {"train.steps_per_dispatch": 10, "train.batch_size": 32}
    wider = {"network.width": 16, "classifier.attack_steps": 1}
    wanted = settings.replace(wanted, {**rate, **size, **wider})
    training = classifier.build(wanted, load(wanted.data))
    constants = parallel.replicate(training.constants)
    state = parallel.replicate(training.init_state())
    run_steps = parallel.map_steps(training.repeated_step())
    losses = []
    for _ in range(4):
        state, metrics = run_steps(training.root_key, state, constants, None, 10)
        losses += list(np.asarray(parallel.unreplicate(metrics)["loss"]))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    holder = SimpleNamespace(root=tmp_path)
    found = classifier.write_accuracy(holder, training, parallel.unreplicate(state))
    assert found["robust_accuracy"] <= found["clean_accuracy"]
    assert found["num_images"] == len(training.source.labels.held_out)
    assert found["robust_at_epsilon"] == wanted.classifier.epsilon


def test_shifts_are_at_most_the_given_length_and_depend_only_on_positions():
    images = np.zeros((40, 9, 9, 1), np.float32)
    images[:, 4, 4] = 1.0
    keys = jax.random.split(jax.random.key(0), 40)
    moved = np.asarray(classifier.shifted(keys, images, 2))
    places = np.argwhere(moved[..., 0] == 1.0)[:, 1:]
    assert len(places) == 40, "a point in the middle stays in the image"
    assert set((places - 4).ravel()) == {-2, -1, 0, 1, 2}
    np.testing.assert_array_equal(classifier.shifted(keys[7:], images[7:], 2), moved[7:])


def linear(x):
    """Logits whose difference is linear, so the worst perturbation is along the weights."""
    weights = np.array([0.6, -0.8], np.float32)
    return jax.numpy.stack([jax.numpy.zeros(len(x)), x @ weights], axis=-1)


def test_the_worst_perturbation_of_a_linear_classifier_is_found_on_the_ball():
    x, labels = np.float32([[0.1, 0.2], [0.9, -0.3]]), np.array([0, 1])
    moved = classifier.perturb(linear, x, labels, 0.5, 5)
    np.testing.assert_allclose(moved, x + 0.5 * np.array([[0.6, -0.8], [-0.6, 0.8]]), atol=1e-5)
    np.testing.assert_array_equal(classifier.perturb(linear, x, labels, 0.0, 5), x)
    at_edge = classifier.perturb(linear, np.sign(x), labels, 0.5, 5)
    assert np.abs(at_edge).max() <= 1.0
