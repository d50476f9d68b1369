"""An exported sampler draws the program's samples in a process without the program."""

import ast
import dataclasses
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml
from scipy.fft import dctn
from small_runs import command, contents, start

import fdrl_jax
from experiments import export, prior
from experiments.data import load
from experiments.data.decode import to_uint8
from experiments.draw import sample_state
from experiments.errors import UserError
from experiments.experiment import build
from experiments.export import card as model_card
from experiments.export.load_sampler import Sampler
from experiments.run import open_checkpoint, open_run
from fdrl_jax import priors

NUM = 12
# Draws from each given folder, and then prints the packages it has imported.
ALONE = """
import runpy, sys
for folder in sys.argv[1:]:
    sampler = runpy.run_path(folder + "/load_sampler.py")["Sampler"](folder)
    import numpy
    numpy.save(folder + "/drawn.npy", sampler(12, batch_size=5))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def experiment_of(wanted):
    return build(wanted, load(wanted.data))


def trained_state(experiment):
    """A state with parameters unlike any initialisation, which needs no training."""
    state = experiment.init_state()
    moved = jax.tree.map(
        lambda a: a + 0.05 * np.cos(np.arange(a.size)).reshape(a.shape), state.ema_variables
    )
    return state._replace(step=np.int32(7), ema_variables=moved)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """Returns the folder and the program's samples, for points and for images with a prior."""
    found = {}
    for name, changes in (("swissroll", {}), ("digits", {"network.denoiser_width": 4})):
        experiment = experiment_of(tiny(name, changes))
        state, folder = trained_state(experiment), tmp_path_factory.mktemp(name) / "export"
        export.write(experiment, state, folder, ("cpu", "cuda", "tpu"))
        found[name] = folder, sample_state(experiment, state, NUM).refined
    return found


def test_a_process_that_imports_only_jax_draws_the_same_samples(exported):
    folders = [str(folder) for folder, _ in exported.values()]
    # With one device, and without the flags of the program or the tests.
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    command = [sys.executable, "-W", "error", "-c", ALONE, *folders]
    done = subprocess.run(
        command, cwd=folders[0], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not {"fdrl_jax", "experiments", "configs", "flax", "optax"} & {*done.stdout.split()}
    for folder, samples in exported.values():
        drawn = np.load(folder / "drawn.npy")
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, samples, rtol=1e-4, atol=1e-5)


def test_a_sample_depends_only_on_its_index(exported):
    sampler = Sampler(exported["swissroll"][0])
    np.testing.assert_allclose(
        sampler(3, first=4), sampler(NUM, batch_size=3)[4:7], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="indices out of range"):
        sampler(2, first=2**31 - 1)


def test_the_metadata_have_versions_shapes_settings_and_the_lifetime(exported):
    folder, _ = exported["digits"]
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["platforms"] == ["cpu", "cuda", "tpu"]
    assert metadata["outputs"] == ["float32[batch,8,8,1]"]
    assert metadata["settings"]["flow.num_steps"] == 3
    assert "data.dir" not in metadata["settings"]
    assert {"jax", "jaxlib", "python"} <= metadata["versions"].keys()
    assert "six months" in metadata["lifetime"]
    written, expires = (datetime.date.fromisoformat(metadata[k]) for k in ("written", "expires"))
    assert 150 < (expires - written).days < 200
    card = " ".join((folder / "README.md").read_text().split())
    assert "0.10.2" in card
    assert "| `network.blocks` | `[[8, 2]]` |" in card
    assert f"written on {written} by JAX {jax.__version__}" in card
    assert f"not guaranteed to load after {expires}" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["flow.num_steps"] == config["flow"]["num_steps"] == 3


def test_the_parameters_are_shipped_as_plain_arrays(exported, tiny):
    experiment = experiment_of(tiny("digits"))
    kernel = trained_state(experiment).ema_variables["params"]["conv1"]["kernel"]
    folder, _ = exported["digits"]
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["network/params/conv1/kernel"], kernel)
        assert arrays["prior/factor"].shape == (64, 64)
        assert tensors.keys() == {*arrays.files}
        for name in arrays.files:
            np.testing.assert_array_equal(tensors[name], arrays[name])


def code_of(card):
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("name", ["swissroll", "digits"])
def test_the_code_of_the_card_draws_the_same_samples_with_the_library(name, exported, monkeypatch):
    folder, samples = exported[name]
    monkeypatch.chdir(folder)
    code = code_of((folder / "README.md").read_text())
    assert len(ast.parse(code).body) == 3
    drawn = {}
    exec(code, drawn)
    np.testing.assert_allclose(drawn["samples"][:NUM], samples, rtol=1e-4, atol=1e-5)


def compact_of(tiny, folder, num_components, **options):
    """A mixture of Gaussians of rank 20, and its compact export: the model, arrays and sampler."""
    wanted = tiny("digits", {"prior.num_components": num_components, "prior.rank": 20})
    source = load(wanted.data)
    model = build(wanted, source, prior.fit_to(source, wanted.prior, 0))
    export.write_compact(model, model.init_state(), folder, **options)
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    return model, stored, fdrl_jax.pretrained(folder)


def of_low_rank(tiny, rank):
    """An experiment with a combined divergence and a prior of a rank, and a state."""
    changes = {"loss.name": "lr", "loss.divergence": "js", "prior.rank": rank}
    changes |= {"network.denoiser_width": 4}
    wanted = tiny("digits", changes)
    source = load(wanted.data)
    fitted = prior.fit(source.train_batches(), rank, wanted.prior.jitter)
    experiment = build(wanted, source, fitted)
    return experiment, trained_state(experiment)


def test_the_library_draws_from_combinations_and_low_rank_priors(tiny, tmp_path):
    experiment, state = of_low_rank(tiny, 3)
    assert experiment.constants.prior["remainder_scale"].shape == (8, 8, 1)
    export.write(experiment, state, tmp_path / "export", ("cpu",))
    drawn = fdrl_jax.pretrained(tmp_path / "export")(experiment.root_key, 8)
    samples = sample_state(experiment, state, 8).refined
    np.testing.assert_allclose(drawn, samples, rtol=1e-4, atol=1e-5)


def test_a_compact_export_is_small_and_draws_nearly_the_same_samples(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(export.compact, "_MIN_SIZE", 100)
    experiment, state = of_low_rank(tiny, 0)
    folder = tmp_path / "export"
    export.write_compact(experiment, state, folder, rank=40, num_frequencies=64)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "README.md")
    }
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    assert stored["prior/factor"].dtype == np.int8
    sampler = fdrl_jax.pretrained(folder)
    assert sampler.prior_params["factor"].shape == (64, 40)
    assert sampler.config["settings"]["prior.rank"] == 40
    before, after = (
        params["factor"] @ params["factor"].T
        for params in (experiment.constants.prior, sampler.prior_params)
    )
    assert np.linalg.norm(after - before) < 0.02 * np.linalg.norm(before)
    left = np.square(sampler.prior_params["remainder_scale"]).sum()
    assert np.trace(after) + left == pytest.approx(np.trace(before), rel=0.01)
    original = experiment.sampling_variables(state)
    for a, b in zip(jax.tree.leaves(original), jax.tree.leaves(sampler.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=float(np.abs(a).max()) / 250)
    # What is compact already is exported with the same numbers.
    rounded = export.compact.rounded({"a": np.asarray(sampler.prior_params["factor"])})
    np.testing.assert_array_equal(rounded["a"], stored["prior/factor"])


def test_a_compact_export_keeps_the_leading_directions_of_each_gaussian(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(export.compact, "_MIN_SIZE", 100)
    options = {"rank": 5, "num_frequencies": 64}
    model, stored, sampler = compact_of(tiny, tmp_path / "export", 3, **options)
    assert stored["prior/remainder_scale"].dtype == np.float16
    assert sampler.config["settings"]["prior.rank"] == 5
    before, after = (
        {name: np.asarray(a, np.float64) for name, a in params.items()}
        for params in (model.constants.prior, sampler.prior_params)
    )
    np.testing.assert_allclose(after["weights"], before["weights"])
    assert after["factor"].shape == (64, 15)

    def spectrum(factor, scale):
        cosines = dctn(factor.reshape(8, 8, -1), axes=(0, 1), norm="ortho")
        return np.square(cosines).sum(axis=-1) + np.square(scale.reshape(8, 8))

    for number in range(3):
        factor = before["factor"][:, 20 * number : 20 * (number + 1)]
        small = after["factor"][:, 5 * number : 5 * (number + 1)]
        left, singular, _ = np.linalg.svd(factor)
        leading = left[:, :5] * singular[:5]
        expected = leading @ leading.T
        assert np.linalg.norm(small @ small.T - expected) < 0.02 * np.linalg.norm(expected)
        np.testing.assert_allclose(
            spectrum(small, after["remainder_scale"][number]),
            spectrum(factor, before["remainder_scale"][number]),
            rtol=0.03,
            atol=1e-4,
        )


@pytest.mark.parametrize("num_components", [1, 3])
def test_a_compact_export_keeps_its_directions_at_few_frequencies_and_the_variance_at_all(
    tiny, tmp_path, monkeypatch, num_components
):
    monkeypatch.setattr(export.compact, "_MIN_SIZE", 100)
    options = {"rank": 20, "num_frequencies": 25}
    model, stored, sampler = compact_of(tiny, tmp_path / "export", num_components, **options)
    assert stored["prior/factor"].shape == (25, 20 * num_components)

    def cosines(params):
        rows = np.reshape(np.asarray(params["factor"], np.float64).T, (num_components, 20, 8, 8))
        return dctn(rows, axes=(2, 3), norm="ortho").reshape(num_components, 20, 64)

    def spectrum(params):
        scale = np.reshape(np.asarray(params["remainder_scale"], np.float64), (-1, 64))
        return np.square(cosines(params)).sum(axis=1) + np.square(scale)

    before = model.constants.prior
    largest = np.argsort(np.square(cosines(before)).sum(axis=(0, 1)))[-25:]
    assert {*stored["prior/frequencies"].tolist()} == {*largest.tolist()}
    after = sampler.prior_params
    assert sampler.prior(jax.random.key(0), 2).shape == (2, 8, 8, 1)
    kept, found = cosines(before)[..., largest], cosines(after)
    np.testing.assert_allclose(found[..., largest], kept, atol=0.01 * np.abs(kept).max())
    np.testing.assert_allclose(np.delete(found, largest, axis=2), 0.0, atol=1e-6)
    np.testing.assert_allclose(spectrum(after), spectrum(before), rtol=0.03, atol=1e-4)


def test_the_card_has_the_front_matter_of_the_hub_and_the_metrics_of_the_run(trained):
    start("export", trained.root, platforms="cpu")
    card = (trained.exports / "step_4" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    header = yaml.safe_load(front)
    assert header["license"] == "unknown"
    assert header["library_name"] == "fdrl_jax"
    assert header["datasets"] == ["swissroll"]
    assert "jax" in header["tags"]
    record = json.loads((trained.evaluations / "step_4" / "record.json").read_text())
    assert record["metrics"]
    for name in record["metrics"]:
        assert f"| {name} |" in text
    assert f"{record['key']['num_samples']:,} samples" in text
    start("export", trained.root, checkpoint=2, platforms="cpu")
    assert "was not evaluated" in (trained.exports / "step_2" / "README.md").read_text()
    assert "before its arrays were rounded" not in text
    opened = open_checkpoint(command("export", trained.root))
    few = {"key": {"num_samples": 64}, "metrics": {}, "details": {"num_samples": 20}}
    compact = model_card.write(opened.experiment, opened.state, few)
    assert "Protocol: 20 samples; " in compact
    assert "before its arrays were rounded to 8 bits" in " ".join(compact.split())


@pytest.mark.parametrize("name", ["sampler.stablehlo", "arrays.npz", "model.safetensors"])
def test_a_damaged_file_of_an_export_is_named(name, exported):
    path = exported["swissroll"][0] / name
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + b"?")
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            Sampler(path.parent)
    finally:
        path.write_bytes(content)


def test_a_sampler_that_translates_needs_its_source_images_as_input(tiny, tmp_path):
    experiment = experiment_of(tiny())
    starts = experiment.source.held_out(20, 0)
    of_source = priors.batch("source")
    experiment = dataclasses.replace(
        experiment,
        source=experiment.source._replace(starts=lambda positions: starts[positions]),
        problem=experiment.problem._replace(prior_sample=of_source.sample),
        constants=experiment.constants._replace(prior=of_source.params),
    )
    state = trained_state(experiment)
    export.write(experiment, state, tmp_path / "export", ("cpu",))
    sampler, samples = Sampler(tmp_path / "export"), sample_state(experiment, state, 6).refined
    np.testing.assert_allclose(sampler(6, source=starts[:6]), samples, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs images to start from"):
        sampler(6)
    with pytest.raises(ValueError, match=r"source must have the shape \(6, 2\)"):
        sampler(6, source=starts[:5])


def test_the_mode_writes_the_sampler_of_a_checkpoint(trained, capsys):
    start("export", trained.root, checkpoint=2, platforms="cpu")
    folder = trained.exports / "step_2"
    assert str(folder) in capsys.readouterr().out
    opened = open_checkpoint(command("export", trained.root, checkpoint=2))
    samples = sample_state(opened.experiment, opened.state, 5).refined
    np.testing.assert_allclose(Sampler(folder)(5), samples, rtol=1e-4, atol=1e-5)


def test_the_printed_command_can_be_pasted(trained, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained.root, tmp_path / "it's <b>")
    monkeypatch.setattr(export, "write", lambda *arguments: arguments[2].mkdir())
    start("export", folder, platforms="cpu")
    (line,) = re.findall("try: (.*)", capsys.readouterr().out)
    assert shlex.split(line)[1] == f"{folder}/export/step_4/load_sampler.py"


def test_a_compact_export_becomes_a_run_that_draws_its_samples(
    of_digits, classifier_of_digits, tmp_path, capsys
):
    start("export", of_digits.root, compact="true")
    folder = of_digits.exports / "step_4_compact"
    assert str(folder) in capsys.readouterr().out
    start("import", tmp_path / "run", sampler=folder)
    start("sample", tmp_path / "run", num_samples=7)
    opened = open_checkpoint(command("sample", tmp_path / "run"))
    sampler = fdrl_jax.pretrained(folder)
    drawn = sampler(opened.experiment.root_key, 7)
    with np.load(tmp_path / "run" / "samples" / "step_4.npz") as file:
        gaps = np.int32(file["arr_0"]) - np.int32(to_uint8(np.asarray(drawn)))
    assert np.abs(gaps).max() <= 1
    start("interpolate", tmp_path / "run")
    of_class = {"class": "3", "classifier": classifier_of_digits}
    start("sample", tmp_path / "run", num_samples=7, **of_class)
    assert (tmp_path / "run" / "samples" / "step_4_class_3.npz").exists()
    start("export", tmp_path / "run", compact="true")
    again = fdrl_jax.pretrained(tmp_path / "run" / "export" / "step_4_compact")
    for a, b in zip(*map(jax.tree.leaves, (sampler.variables, again.variables)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_sampler_of_images_becomes_a_run_without_their_data_or_with_them(
    of_images, image_folder, tmp_path
):
    start("export", of_images.root, compact="true")
    folder = of_images.exports / "step_4_compact"
    start("import", tmp_path / "without", sampler=folder)
    start("sample", tmp_path / "without", num_samples=3)
    assert (tmp_path / "without" / "samples" / "step_4.npz.picture.png").exists()
    start("import", tmp_path / "with", sampler=folder, data_dir=image_folder)
    reference = open_run(tmp_path / "with").metric_reference
    np.testing.assert_array_equal(reference.images, of_images.metric_reference.images)
    (image_folder / "ant" / "0.png").rename(image_folder / "ant" / "renamed.png")
    try:
        with pytest.raises(UserError, match="was trained on other images"):
            start("import", tmp_path / "other", sampler=folder, data_dir=image_folder)
    finally:
        (image_folder / "ant" / "renamed.png").rename(image_folder / "ant" / "0.png")


def test_several_processes_cannot_import(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="--mode=import is for one process"):
        start("import", tmp_path / "run", sampler="swissroll")


def test_what_cannot_be_imported_is_explained(trained, tmp_path):
    with pytest.raises(UserError, match="--mode=import needs --sampler=NAME"):
        start("import", tmp_path / "run")
    with pytest.raises(UserError, match="--sampler: no sampler 'swisroll'; did you mean"):
        start("import", tmp_path / "run", sampler="swisroll")
    with pytest.raises(UserError, match=r"flow\.step_size: the run of a sampler has"):
        start("import", tmp_path / "run", None, {"flow.step_size": 9.0}, sampler="swissroll")
    with pytest.raises(UserError, match="exists; choose another folder"):
        start("import", trained.root, sampler="swissroll")
    assert not (tmp_path / "run").exists()


def test_an_export_does_not_reject(trained):
    with pytest.raises(UserError, match="an exported sampler does not reject samples"):
        start("export", trained.root, None, {"sample.rejection": True})


def test_an_export_of_other_settings_does_not_replace_the_first(trained):
    start("export", trained.root, platforms="cpu")
    first = (trained.exports / "step_4" / "metadata.json").read_bytes()
    start("export", trained.root, None, {"flow.num_steps": 5}, platforms="cpu")
    assert (trained.exports / "step_4" / "metadata.json").read_bytes() == first
    (other,) = trained.exports.glob("step_4_*")
    assert json.loads((other / "metadata.json").read_text())["settings"]["flow.num_steps"] == 5


def test_a_new_export_replaces_an_earlier_one_only_when_it_is_complete(trained, monkeypatch):
    start("export", trained.root, platforms="cpu")
    first = contents(trained.exports)
    monkeypatch.setattr("experiments.export.card.write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start("export", trained.root, platforms="cpu")
    assert contents(trained.exports) == first


@pytest.mark.parametrize("platforms", ["cpu,cude", "gpu"])
def test_the_error_for_an_unknown_platform_lists_the_allowed_ones(platforms, trained):
    with pytest.raises(UserError, match=rf"--platforms={platforms}: allowed are cpu, cuda, rocm"):
        start("export", trained.root, platforms=platforms)
