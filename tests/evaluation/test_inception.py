"""The FID equals that of torch-fidelity.

The real weights are not available here, so the test uses random ones; the agreement does not depend
on them.
"""

import pytest

from experiments.data.decode import to_unit
from experiments.errors import UserError
from experiments.evaluation import inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights, whose activations neither explode nor vanish with depth."""
    for package in ("torch", "torchvision", "torch_fidelity"):
        pytest.importorskip(package, reason=f"{package} is of the extra 'eval'")
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("random", ["2048"])
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.mark.slow
def test_the_fid_equals_that_of_torch_fidelity(stripes, weights):
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.utils import create_feature_extractor

    network = create_feature_extractor(
        "inception-v3-compat",
        ["2048"],
        cuda=torch.cuda.is_available(),
        feature_extractor_weights_path=weights,
        verbose=False,
    )

    def statistics(pixels):
        with torch.no_grad():
            (features,) = network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return fid_features_to_statistics(features)

    samples, real = stripes(14, 0), stripes(16, 1)
    direct = fid_statistics_to_metric(statistics(samples), statistics(real), verbose=False)
    features, real = inception.load(weights), to_unit(real)
    found = inception.fid(features, [to_unit(samples)], [real[:5], real[5:]])
    assert found.name == "fid_14"
    assert found.value == pytest.approx(direct["frechet_inception_distance"], rel=1e-4)
    assert features(to_unit(samples[:1, ..., :1])).shape == (1, 2048), "grey images"


def test_missing_or_other_weights_and_missing_packages_are_named(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=r"weights\.pth does not exist: download weights-inception"):
        inception.describe(str(file))
    file.write_bytes(b"other")
    for found, message in ((None, r"pip install -e '\.\[eval\]'"), (True, "d9298a10")):
        monkeypatch.setattr(inception, "find_spec", lambda name, found=found: found)
        with pytest.raises(UserError, match=message):
            inception.describe(str(file))
