"""Every config, in every variant, is one that can run, and those of the paper are the paper's."""

import importlib
import re
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from small_runs import command, train

from configs import base
from experiments import data, main, run, settings
from experiments import train as program
from experiments.errors import UserError
from experiments.experiment import for_shape, make_network

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "base"))
PAPER = ("cifar10", "celeba", "lsun_church")


def load(name, variant=""):
    """Returns the flat settings of a config."""
    config = main.read_config(f"{name}:{variant}").to_dict()
    return settings.to_flat(settings.from_config(config))


BUILT_IN = [name for name in NAMES if load(name)["data.name"] in data.BUILT_IN]


@pytest.mark.parametrize("variant", ["", "tiny", "tiny,up", *base.PAIRS])
@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_every_variant_are_valid(name, variant):
    wanted = settings.from_config(load(name, variant))
    if name in BUILT_IN:
        data.load(wanted.data)


@pytest.mark.parametrize("name", [n for n in BUILT_IN if not n.endswith("_classifier")])
def test_every_config_of_built_in_data_trains_in_its_tiny_variant(name, tmp_path):
    rarely = {"snapshot.every_steps": 100, "checkpoint.every_steps": 100}
    state = train(tmp_path, rarely, f"{name}:tiny")
    assert int(state.step) == load(name, "tiny")["train.num_steps"]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_in_60_words_its_command_and_where_its_scores_are(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config={name}" in text
    assert "docs/" in text
    assert len(text.split()) <= 60


@pytest.mark.parametrize("name", PAPER)
def test_image_configs_have_the_papers_hyperparameters(name):
    c = load(name)
    assert (c["flow.num_steps"], c["flow.step_size"], c["flow.noise_scale"]) == (100, 3.0, 0.01)
    assert (c["train.batch_size"], c["train.num_steps"]) == (64, 100_000)
    assert c["optimizer.learning_rate"] == 1e-4
    assert c["optimizer.boundaries"] == [80_000, 90_000]
    assert (c["train.ema_rate"], c["data.dequantisation"]) == (0.998, 0.03)
    assert (c["prior.name"], c["flow.num_refine_steps"]) == ("data_dependent", 20)


@pytest.mark.parametrize("name", PAPER)
def test_the_uniform_prior_refines_for_ten_steps_and_trains_longer_on_cifar(name):
    c = load(name, "lr_kl,up")
    assert (c["prior.name"], c["flow.num_refine_steps"]) == ("uniform", 10)
    assert (c["loss.name"], c["loss.divergence"]) == ("lr", "kl")
    assert c["train.num_steps"] == (120_000 if name == "cifar10" else 100_000)
    # The rate falls when 20,000 and 10,000 steps remain.
    last = c["train.num_steps"]
    assert c["optimizer.boundaries"] == [last - 20_000, last - 10_000]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in PAPER and n != "folder"])
@pytest.mark.parametrize("prior", ["up", "ddp"])
def test_the_variant_of_a_prior_changes_only_the_prior(name, prior):
    c, other = load(name), load(name, prior)
    assert {key for key in c if c[key] != other[key]} <= {"prior.name", "prior.num_components"}
    if prior == "ddp":
        assert (other["prior.name"], other["prior.num_components"]) == ("data_dependent", 1)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("classifier")])
def test_the_network_of_every_tiny_variant_has_one_block(name):
    wanted = settings.from_config(load(name, "tiny"))
    if wanted.network.name != "mlp":  # Deep ones compile for minutes.
        assert len(make_network(wanted, (16, 16, 3)).spec.blocks) == 1


def test_the_sets_of_tfds_that_configs_name_exist_with_the_splits_that_they_use():
    text = "".join((CONFIGS / f"{name}.py").read_text() for name in NAMES)
    named = {found for found in re.findall(r"tfds:([\w/]+)", text) if found != "NAME"}
    assert {"celeb_a", "cifar10", "mnist", "lsun/church_outdoor"} == named
    for name in named:
        builder, _, config = name.partition("/")
        builder_class = tfds.builder_cls(builder)
        assert not config or config in builder_class.builder_configs


def test_translation_has_the_papers_hyperparameters():
    c = load("cat2dog")
    assert (c["train.num_steps"], c["optimizer.boundaries"]) == (40_000, [20_000, 30_000])
    assert c["flow.num_steps"] + c["flow.num_refine_steps"] == 110
    assert (c["prior.name"], c["data.resize"], c["data.image_size"]) == ("source", 84, 64)


def test_only_data_whose_mirror_images_are_plausible_are_mirrored():
    mirrored = {name for name in NAMES if load(name)["data.random_flip"]}
    small = {"cifar10_small", "cifar10_classifier", "cat2dog_small"}
    assert mirrored == {*PAPER, "cat2dog", *small}


def test_the_error_for_an_unknown_variant_lists_the_allowed_ones():
    with pytest.raises(ValueError, match=r"unknown variant 'fast'.*tiny, ddp, up, lsif_pearson"):
        base.variant(base.images(), "fast")


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128])
def test_the_recipe_for_small_images_takes_every_size(size):
    wanted = settings.from_config(base.small_images().to_dict())
    wanted = for_shape(wanted, (size, size, 3))
    smallest = size
    for _, stride in make_network(wanted, (size, size, 3)).spec.blocks:
        smallest = -(-smallest // stride)
    assert 4 <= smallest <= 8


def test_digits_differ_from_the_recipe_for_small_images_only_in_length():
    recipe = settings.to_flat(settings.from_config(base.small_images().to_dict()))
    digits = load("digits")
    assert {key for key in recipe if digits[key] != recipe[key]} == {
        "data.name",
        "train.num_steps",
        "evaluate.num_samples",
        "evaluate.batch_size",
    }


def test_a_fitted_run_keeps_its_settings_when_the_same_command_resumes_it(image_folder, tmp_path):
    changes = {"train.num_steps": 3, "data.dir": image_folder, "data.image_size": 8}
    asked = command("train", tmp_path / "run", "folder", changes)
    with run.locked_folder(asked.folder):
        created, _ = program.create_or_resume(asked)
        resumed, _ = program.create_or_resume(asked)
    assert created.settings.flow.step_size == 3.2
    assert created.settings.train.num_steps == 3
    assert resumed.settings == created.settings
    other = command("train", tmp_path / "run", "folder", {**changes, "data.channels": 1})
    with pytest.raises(UserError, match=r"data\.channels"):
        program.create_or_resume(other)
