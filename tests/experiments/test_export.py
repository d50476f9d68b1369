"""The library draws the program's samples from an export."""

import hashlib
import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml
from small_runs import SMALL_RESNET, contents, start

import fdrl_jax
from experiments import export, prior, settings
from experiments.data import load
from experiments.draw import sample_state
from experiments.experiment import build, for_shape

NUM = 12


def experiment_of(wanted, num_classes=None):
    source = load(wanted.data)
    wanted = for_shape(wanted, source.event_shape)
    is_normal = wanted.prior.name == "normal"
    fitted = None if is_normal else prior.fit_to(source, wanted.prior, num_classes)
    return build(wanted, source, fitted)


def moved(array):  # Parameters unlike any initialisation, which need no training.
    return array + 0.05 * np.cos(np.arange(array.size)).reshape(array.shape)


VARIANTS = {
    "swissroll": ("swissroll", {}),
    "digits": ("digits", {**SMALL_RESNET, "network.denoiser_width": 4}),
    "mixture": ("digits", {**SMALL_RESNET, "prior.num_components": 3, "prior.rank": 4}),
    "by_class": ("digits", {**SMALL_RESNET, "network.by_class": True}),
}


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """Returns `name -> (folder, the program's samples, experiment)`."""
    done = {}

    def of(name):
        if name not in done:
            config, changes = VARIANTS[name]
            model = experiment_of(tiny(config, changes), 10 if name == "by_class" else None)
            state, folder = model.init_state(), tmp_path_factory.mktemp(name) / "export"
            ema = jax.tree.map(moved, state.ema_variables)
            state = state._replace(step=np.int32(7), ema_variables=ema)
            export.write(model, state, folder)
            done[name] = folder, sample_state(model, state, NUM).refined, model
        return done[name]

    return of


@pytest.mark.parametrize("name", VARIANTS)
def test_the_code_of_the_card_draws_the_samples_of_the_program(name, exported, monkeypatch):
    folder, expected, _ = exported(name)
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    values = {}
    exec(code.replace("64", str(NUM)), values)
    expected = np.clip(expected, -1.0, 1.0) if expected.ndim == 4 else expected
    np.testing.assert_allclose(values["samples"], expected, rtol=1e-4, atol=1e-4)
    assert ("of_first_class" in values) == (name == "by_class")


def test_an_export_has_plain_arrays_their_digest_and_no_path(exported, tmp_path):
    folder, _, model = exported("digits")
    stored = (folder / "model.safetensors").read_bytes()
    arrays = safetensors.numpy.load(stored)
    assert {name.split("/")[0] for name in arrays} == {"network", "prior"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["step"], config["sha256"]) == (7, hashlib.sha256(stored).hexdigest())
    assert settings.from_config(config["settings"]) == model.settings
    edited = shutil.copytree(folder, tmp_path / "edited")
    (edited / "config.json").write_text(json.dumps({**config, "seed": 8}))
    with pytest.raises(ValueError, match="to edit it, remove its config_sha256"):
        fdrl_jax.pretrained(edited)
    assert len([*folder.iterdir()]) == 3
    assert not set(config["settings"]) & set(settings.PATHS)


def test_the_card_has_the_front_matter_of_the_hub_and_the_metrics_of_the_run(trained):
    start("export", trained.root)
    folder = max(trained.exports.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["license"]) == ("fdrl_jax", "unknown")
    assert front["datasets"] == ["swissroll"]
    (record,) = trained.evaluations.glob("*/record.json")
    for name in json.loads(record.read_text())["metrics"]:
        assert f"| {name} |" in card
    assert str(trained.root.parent) not in card


def test_a_second_export_is_next_to_the_first_which_keeps_what_a_user_wrote(trained, capsys):
    start("export", trained.root)
    folder = max(trained.exports.iterdir(), key=lambda path: path.name)
    (folder / "README.md").write_text("mine")
    before = contents(trained.exports)
    start("export", trained.root)
    after = contents(trained.exports)
    assert before.items() < after.items()
    assert len(after) == len(before) + 3
    path = capsys.readouterr().out.split("pretrained('")[-1].split("'")[0]
    assert fdrl_jax.pretrained(path).config["step"] == 4
