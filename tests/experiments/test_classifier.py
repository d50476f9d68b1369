"""A classifier is trained like a ratio, and opened only for data that it was trained on."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import adversarial, classifier, run, settings
from experiments.data import load
from experiments.errors import UserError
from experiments.files import sha256_of_arrays
from fdrl_jax import networks
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
    assert described["name"] == "run"
    assert described["num_held_out"] == len(images)
    assert described["accuracy"] == np.mean(probabilities.argmax(axis=1) == labels)


def test_a_guide_has_the_averaged_weights_of_the_run(of_digits):
    apply, variables = classifier.open_to_guide(of_digits.root, CLASSES, SHAPE)
    judge, described = classifier.open_to_judge(of_digits.root, CLASSES, SHAPE)
    assert described["digest"] == sha256_of_arrays(variables)
    x = np.random.default_rng(0).uniform(-1, 1, (3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(jax.nn.softmax(apply(variables, x)), judge(x)[0], atol=1e-6)


def test_a_judge_of_other_training_images_is_reported(of_digits, caplog):
    classifier.open_to_judge(of_digits.root, CLASSES, SHAPE, of_digits.data["identity"])
    assert "other images" not in caplog.text
    classifier.open_to_judge(of_digits.root, CLASSES, SHAPE, "other")
    assert "was trained on other images" in caplog.text


@pytest.mark.parametrize(("classes", "shape"), [(("cat", "dog"), SHAPE), (CLASSES, (8, 8, 3))])
def test_a_classifier_of_other_data_is_refused(classes, shape, of_digits):
    for opened in (classifier.open_to_guide, classifier.open_to_judge):
        with pytest.raises(UserError, match=r"other data: its classes .* of this run are "):
            opened(of_digits.root, classes, shape)


def test_what_is_not_a_classifier_is_refused(trained, tmp_path):
    for path in (tmp_path, trained.root):
        with pytest.raises(UserError, match="is not the folder of a classifier; train one"):
            classifier.open_to_guide(path, CLASSES, SHAPE)


def test_a_judge_needs_a_known_accuracy(of_digits):
    file = of_digits.root / "accuracy.json"
    content = file.read_bytes()
    file.unlink()
    try:
        with pytest.raises(UserError, match="is not complete; run --mode=classifier again"):
            classifier.open_to_judge(of_digits.root, CLASSES, SHAPE)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("name", ["swissroll", "digits"])
def test_data_without_classes_are_refused(name):
    wanted = settings.from_config({"data.name": name, "network.name": "resnet32"})
    source = load(wanted.data)._replace(labels=None)
    with pytest.raises(UserError, match=f"data.name={name}: a classifier needs labelled images"):
        classifier.build(wanted, source)


def test_images_of_one_class_are_refused(tiny):
    wanted = tiny("classifier", {"data.source_class": "3", "data.target_class": "8"})
    with pytest.raises(UserError, match="training images of at least two classes"):
        classifier.build(wanted, load(wanted.data))


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
        state, metrics = run_steps(training.root_key, state, constants, None, 10, 0)
        losses += list(np.asarray(parallel.unreplicate(metrics)["loss"]))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    holder = SimpleNamespace(root=tmp_path)
    found = classifier.write_accuracy(holder, training, parallel.unreplicate(state))
    assert found["robust_accuracy"] <= found["clean_accuracy"]
    assert found["num_images"] == len(training.source.labels.held_out)
    assert found["robust_at_epsilon"] == wanted.classifier.epsilon


def test_features_are_the_input_of_the_last_affine_map():
    network = networks.resnet(networks.ResNetSpec(4, ((6, 2),)), num_outputs=3)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = network.init(jax.random.key(1), x)
    features = network.apply(variables, x, features=True)
    head = variables["params"]["linear"]
    assert features.shape == (2, 6)
    expected = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(network.apply(variables, x), expected, rtol=1e-5)


def test_shifts_are_at_most_the_given_length_and_depend_only_on_positions():
    images = np.zeros((40, 9, 9, 1), np.float32)
    images[:, 4, 4] = 1.0
    keys = jax.random.split(jax.random.key(0), 40)
    moved = np.asarray(adversarial.shifted(keys, images, 2))
    places = np.argwhere(moved[..., 0] == 1.0)[:, 1:]
    assert len(places) == 40, "a point in the middle stays in the image"
    assert set((places - 4).ravel()) == {-2, -1, 0, 1, 2}
    np.testing.assert_array_equal(adversarial.shifted(keys[7:], images[7:], 2), moved[7:])


def linear(x):
    """Logits whose difference is linear, so the worst perturbation is along the weights."""
    weights = np.array([0.6, -0.8], np.float32)
    return jax.numpy.stack([jax.numpy.zeros(len(x)), x @ weights], axis=-1)


def test_the_worst_perturbation_of_a_linear_classifier_is_found_on_the_ball():
    x, labels = np.float32([[0.1, 0.2], [0.9, -0.3]]), np.array([0, 1])
    moved = adversarial.perturb(linear, x, labels, adversarial.Attack(0.5, 5))
    np.testing.assert_allclose(moved, x + 0.5 * np.array([[0.6, -0.8], [-0.6, 0.8]]), atol=1e-5)
    np.testing.assert_array_equal(
        adversarial.perturb(linear, x, labels, adversarial.Attack(0.0, 5)), x
    )
    at_edge = adversarial.perturb(linear, np.sign(x), labels, adversarial.Attack(0.5, 5))
    assert np.abs(at_edge).max() <= 1.0
