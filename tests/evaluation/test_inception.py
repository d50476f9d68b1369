"""Inception metrics equal those of the library that computes them.

The real weights are not available here, so the tests use random ones; the agreement does not depend
on them.
"""

import numpy as np
import pytest

from experiments import settings
from experiments.errors import UserError
from experiments.evaluation import inception
from experiments.evaluation.inception import (
    LEGACY,
    METRICS,
    STANDARD,
    ImageSet,
    Inception,
    name_of,
)
from experiments.evaluation.sets import Stored

NUM_SAMPLES, NUM_REFERENCE = 14, 16


@pytest.fixture(scope="module")
def sets(stripes):
    return Stored("samples", stripes(NUM_SAMPLES, 0)), Stored(
        "reference", stripes(NUM_REFERENCE, 1)
    )


def needs_torch():
    for package in ("torch", "torchvision", "torch_fidelity"):
        pytest.importorskip(package, reason=f"{package} is of the extra 'eval'")


def save_random(network, path):
    """Draws weights whose activations neither explode nor vanish with depth."""
    import torch

    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights in the format of torch-fidelity's network."""
    needs_torch()
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("random", ["2048"])
    return save_random(network, tmp_path_factory.mktemp("weights") / "random.pth")


def compute(sets, weights, metrics, protocol=STANDARD):
    """Returns metrics by definition, with their description."""
    samples, reference = (images.for_inception() for images in sets)
    networks = Inception({protocol.name: weights}, metrics)
    found, (details,) = inception.by_inception(samples, reference, networks)
    return {metric.definition: metric for metric in found}, details


@pytest.fixture(scope="module")
def computed(sets, weights):
    """All metrics, with their description."""
    return compute(sets, weights, METRICS)


@pytest.mark.slow
def test_metrics_equal_a_direct_call_of_torch_fidelity(sets, weights, computed):
    import torch
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2)

        def __len__(self):
            return len(self.pixels)

        def __getitem__(self, index):
            return self.pixels[index]

    direct = torch_fidelity.calculate_metrics(
        input1=Images(sets[0]),
        input2=Images(sets[1]),
        cuda=torch.cuda.is_available(),
        feature_extractor="inception-v3-compat",
        fid=True,
        kid=True,
        prc=True,
        isc=True,
        kid_subset_size=NUM_SAMPLES,
        feature_extractor_weights_path=weights,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    found, details = computed
    ours = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    ours |= {"precision": "precision", "recall": "recall"}
    ours |= {"inception_score": "inception_score_mean"}
    for name, theirs in ours.items():
        assert found[name].value == pytest.approx(direct[theirs], rel=1e-6), name
    suffix = details["weights_sha256"][:8]
    assert found["fid"].name == f"fid_weights_{suffix}_{NUM_SAMPLES}"
    assert 0 <= found["coverage"].value <= 1


@pytest.mark.slow
def test_a_stream_gives_the_numbers_of_the_same_images_in_memory(sets, weights, computed):
    whole = sets[1].unit
    stream = ImageSet("stream", lambda: iter([whole[:5], whole[5:]]))
    networks = Inception({STANDARD.name: weights}, ["fid"])
    (fid,), _ = inception.by_inception(sets[0].for_inception(), stream, networks)
    assert fid.value == pytest.approx(computed[0]["fid"].value, rel=1e-5)


@pytest.mark.slow
def test_the_legacy_protocol_uses_floats_that_are_not_rounded(sets, tmp_path):
    needs_torch()
    import torch
    from torchvision.models import Inception3

    network = Inception3(init_weights=False)
    weights = save_random(network, tmp_path / "legacy.pth")
    with pytest.raises(UserError, match="was rounded to 256 levels"):
        compute(sets, weights, ["fid"], LEGACY)
    floats = Stored("floats", sets[0].unit[:3] * np.float32(0.999))
    ours = inception._network(LEGACY, weights)
    features = inception._features(ours, floats.for_inception(), LEGACY)["2048"]
    network.fc = torch.nn.Identity()
    large = torch.nn.functional.interpolate(
        torch.from_numpy(floats.pixels).permute(0, 3, 1, 2), (299, 299), mode="bilinear"
    )
    with torch.no_grad():
        direct = network.eval()(large)
    torch.testing.assert_close(features, direct, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_few_images_and_files_without_weights_are_errors_of_one_line(sets, weights, tmp_path):
    few = Stored("few", sets[0].pixels[:5]), sets[1]
    with pytest.raises(UserError, match="expected at least 6 images, got 5"):
        compute(few, weights, ["fid", "precision_recall"])
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match=r"text\.pth does not contain weights of this network"):
        compute(sets, str(tmp_path / "text.pth"), ["fid"])


def test_missing_weights_and_packages_are_named(tmp_path, monkeypatch):
    def wanted(file):
        return settings.from_config({"evaluate.inception_weights": str(file)})

    assert inception.check_weights(settings.Settings()) is None
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist: .*6726825d\.pth \(SHA-256"):
        inception.check_weights(wanted("nowhere.pth"))
    (tmp_path / "weights.pth").write_text("weights")
    monkeypatch.setattr(inception, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"torch is not installed: pip install -e '\.\[eval\]'"):
        inception.check_weights(wanted(tmp_path / "weights.pth"))


def test_metrics_of_other_protocols_or_weights_have_other_names():
    assert name_of(STANDARD, f"{STANDARD.sha256}5e", "fid") == "fid"
    assert name_of(LEGACY, f"{LEGACY.sha256}5e", "fid") == "fid_legacy_fdrl"
    assert name_of(STANDARD, "1a2b3c4d5e", "fid") == "fid_weights_1a2b3c4d"
