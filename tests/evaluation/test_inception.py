"""Inception metrics equal those of the library that computes them, for all ways to call them.

Real weights cannot be had here, so the tests draw random ones; of what the network knows the
agreement does not depend.
"""

import io
import json

import numpy as np
import pytest

from experiments import evaluate
from experiments.data import to_uint8
from experiments.errors import UserError
from experiments.evaluation import inception, inception_process
from experiments.evaluation.image_sets import ImageSet, in_memory
from experiments.evaluation.protocols import LEGACY, METRICS, STANDARD
from fdrl_jax.metrics import manifold_metrics

NUM_SAMPLES, NUM_REFERENCE = 14, 16


@pytest.fixture(scope="module")
def sets(stripes):
    return (
        in_memory("samples", stripes(NUM_SAMPLES, 0)),
        in_memory("reference", stripes(NUM_REFERENCE, 1)),
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


@pytest.fixture(scope="module")
def evaluated(sets, weights, tmp_path_factory):
    """The result of the command for all metrics, and the folder of kept features."""
    root = tmp_path_factory.mktemp("evaluated")
    for images in sets:
        np.savez(root / f"{images.where}.npz", arr_0=to_uint8(images.unit))
    arguments = [str(root / f"{images.where}.npz") for images in sets]
    arguments += [f"--weights={weights}", f"--metrics={','.join(METRICS)}"]
    arguments += [f"--cache_dir={root / 'cache'}", f"--out={root / 'result.json'}"]
    assert evaluate.main(arguments) == 0
    return json.loads((root / "result.json").read_text()), root / "cache"


def value(result, metric):
    suffix = f"weights_{result['protocols'][0]['weights_sha256'][:8]}_{NUM_SAMPLES}"
    return result["metrics"][f"{metric}_{suffix}"]["value"]


@pytest.mark.slow
def test_metrics_equal_a_direct_call_of_torch_fidelity(sets, weights, evaluated):
    import torch
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.pixels = torch.from_numpy(to_uint8(images.unit)).permute(0, 3, 1, 2)

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
    result, _ = evaluated
    ours = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    ours |= {"precision": "precision", "recall": "recall"}
    ours |= {"inception_score": "inception_score_mean"}
    for name, theirs in ours.items():
        assert value(result, name) == pytest.approx(direct[theirs], rel=1e-6), name
    assert value(result, "fid") > 0
    assert 0 <= value(result, "coverage") <= 1


@pytest.mark.slow
def test_features_of_the_reference_are_kept_and_used(sets, weights, evaluated, tmp_path):
    result, cache = evaluated
    (kept,) = cache.iterdir()
    changed = tmp_path / kept.name
    np.save(changed, 2.0 * np.load(kept))
    wanted = ["kid", "precision_recall", "density_coverage"]
    found, _ = inception.compute(*sets, STANDARD, weights, wanted, cache=tmp_path)
    inception.compute(sets[1], sets[0], STANDARD, weights, ["fid"], cache=tmp_path / "samples")
    (features,) = (tmp_path / "samples").iterdir()
    manifold = manifold_metrics(np.load(features), np.load(changed))._asdict()
    for metric in found:
        if metric.definition == "kid":
            assert metric.value != value(result, "kid")
        else:
            assert metric.value == pytest.approx(manifold[metric.definition]), metric.name
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [changed]


def test_damaged_features_of_a_reference_are_dropped(tmp_path, caplog):
    kept = tmp_path / "features.npy"
    np.save(kept, np.zeros((10, 2048), np.float32))
    inception.drop_damaged(kept, 10)
    assert kept.exists()
    kept.write_bytes(kept.read_bytes()[:1_000])
    inception.drop_damaged(kept, 10)
    assert not kept.exists()
    assert "is damaged; computing it again" in caplog.text


def test_too_few_images_for_metrics_by_neighbours_are_an_error(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "check_ready", lambda protocol, weights: "")
    few = in_memory("few", to_uint8(sets[0].unit[:5]))
    with pytest.raises(UserError, match="precision_recall: expected at least 6 images, got 5"):
        inception.compute(few, sets[1], STANDARD, "", ["fid", "precision_recall"], cache=tmp_path)


@pytest.mark.slow
def test_the_legacy_protocol_uses_floats_that_are_not_rounded(sets, tmp_path):
    needs_torch()
    import torch
    from torchvision.models import Inception3

    network = Inception3(init_weights=False)
    weights = save_random(network, tmp_path / "legacy.pth")
    with pytest.raises(UserError, match="was rounded to 256 levels"):
        inception.compute(*sets, LEGACY, weights, ["fid"], cache=tmp_path)
    floats = sets[0].unit[:3] * np.float32(0.999)
    job = {"protocol": LEGACY.name, "weights": weights, "pixels": "float32", "batch_size": 2}
    ours = inception_process.build_network(job)
    stream = io.BytesIO(floats.tobytes())
    features = inception_process.extract(ours, job, floats.shape, stream)["2048"]
    network.fc = torch.nn.Identity()
    large = torch.nn.functional.interpolate(
        torch.from_numpy(floats).permute(0, 3, 1, 2), (299, 299), mode="bilinear"
    )
    with torch.no_grad():
        direct = network.eval()(large)
    torch.testing.assert_close(features, direct, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_file_without_weights_is_reported_in_one_line(sets, tmp_path):
    needs_torch()
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match=r"text\.pth does not contain weights of this network"):
        inception.compute(*sets, STANDARD, str(tmp_path / "text.pth"), ["fid"], cache=tmp_path)


@pytest.mark.slow
def test_a_reference_is_streamed_and_gives_the_numbers_of_the_same_images_in_memory(
    sets, weights, evaluated, tmp_path
):
    samples, reference = sets
    batches = [reference.unit[:5], reference.unit[5:]]
    stream = ImageSet("stream", lambda: iter(batches))
    (fid,), _ = inception.compute(samples, stream, STANDARD, weights, ["fid"], cache=tmp_path)
    result, cache = evaluated
    assert fid.value == pytest.approx(value(result, "fid"), rel=1e-12)
    names = [{path.name for path in folder.iterdir()} for folder in (cache, tmp_path)]
    assert names[0] == names[1], "the cache knows them as the same images"
