"""A trained classifier is a feature space, known by its accuracy and digest."""

import numpy as np
import pytest
from experiments.request import Request
from experiments.storage.workdir import read_json

from experiments import classifiers, modes
from experiments.errors import UserError


@pytest.mark.slow
def test_a_classifier_evaluates_samples_under_its_accuracy_and_digest(tiny, tmp_path, capsys):
    config = tiny("digits_classifier", {"attack.num_steps": 0, "augment.max_shift": 1})
    folder = tmp_path / "digits_classifier"
    modes.run(Request("train_classifier", config, folder, "a command"))
    printed = capsys.readouterr().out
    source_classes, shape = tuple("0123456789"), (8, 8, 1)
    found = classifiers.load_features(folder, source_classes, shape)
    assert f"digest: {found.digest}" in printed
    assert f"accuracy on 360 held-out images: {100 * found.accuracy:.2f}%" in printed
    images = np.random.default_rng(0).uniform(-1, 1, (300, 8, 8, 1)).astype(np.float32)
    probabilities, features = found.probabilities_and_features(images)
    assert probabilities.shape == (300, 10)
    assert len(features) == 300
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        features[270:], found.probabilities_and_features(images[270:])[1], rtol=1e-5
    )
    run = tmp_path / "digits"
    modes.run(Request("train", tiny("digits", {"condition.classifier": str(folder)}), run, "x"))
    stored = read_json(run / "evaluation.json")
    assert stored["classifier"] == found.describe()
    assert "frechet_classifier_64" in stored["metrics"]
    (folder / "evaluation.json").unlink()
    with pytest.raises(UserError, match="has no known accuracy"):
        classifiers.load_features(folder, source_classes, shape)
