"""Every config, in every variant, is one that can run, and those of the paper are the paper's."""

import re
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from small_runs import command, train

from configs import base
from experiments import data, run, settings
from experiments import train as program
from experiments.errors import UserError
from experiments.experiment import for_shape, make_network

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("[!_]*.py") if path.stem != "base")
PAPER = ("cifar10", "celeba", "lsun_church")


def load(name, variant=""):
    """Returns the flat settings of a config."""
    config = command("dry_run", None, f"{name}:{variant}").config
    return settings.to_flat(settings.from_config(config))


def test_a_variant_of_one_config_is_unknown_to_others_which_list_theirs():
    short, usual = load("cifar10_small", "short"), load("cifar10_small")
    assert short["network.blocks"] == [[n // 2, s] for n, s in usual["network.blocks"]]
    assert short["train.num_steps"] < usual["train.num_steps"]
    assert short["optimizer.learning_rate"] == 2 * usual["optimizer.learning_rate"]
    with pytest.raises(UserError, match=r"'short'.*lr_logd, small$"):
        load("cat2dog", "short")


BUILT_IN = [name for name in NAMES if load(name)["data.name"] in data.BUILT_IN]


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_valid_and_tiny_ones_have_one_block(name):
    for variant in ("", "tiny", "tiny,up", *base.PAIRS):
        load(name, variant)
    wanted = settings.from_config(load(name, "tiny"))
    if wanted.network.name != "mlp":  # Deep ones compile for minutes.
        assert len(make_network(wanted, (16, 16, 3)).spec.blocks) == 1
    if name in BUILT_IN:
        assert data.load(wanted.data).name == wanted.data.name


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in BUILT_IN if n != "classifier"])
def test_every_config_of_built_in_data_trains_in_its_tiny_variant(name, tmp_path):
    rarely = {"snapshot.every_steps": 100, "checkpoint.every_steps": 100}
    state = train(tmp_path, rarely, f"{name}:tiny")
    assert int(state.step) == load(name, "tiny")["train.num_steps"]


@pytest.mark.parametrize("name", PAPER)
def test_image_configs_have_the_papers_hyperparameters(name):
    c = load(name)
    assert (c["flow.num_steps"], c["flow.step_size"], c["flow.noise_scale"]) == (100, 3.0, 0.01)
    assert (c["train.batch_size"], c["train.num_steps"]) == (64, 100_000)
    assert c["optimizer.learning_rate"] == 1e-4
    assert c["optimizer.boundaries"] == [80_000, 90_000]
    assert (c["train.ema_rate"], c["data.dequantisation"]) == (0.998, 0.03)
    assert (c["prior.name"], c["flow.num_refine_steps"]) == ("data_dependent", 20)
    # The uniform prior refines for ten steps and trains longer on CIFAR.
    c = load(name, "lr_kl,up")
    assert (c["prior.name"], c["flow.num_refine_steps"]) == ("uniform", 10)
    assert (c["loss.name"], c["loss.divergence"]) == ("lr", "kl")
    assert c["train.num_steps"] == (120_000 if name == "cifar10" else 100_000)
    # The rate falls when 20,000 and 10,000 steps remain.
    last = c["train.num_steps"]
    assert c["optimizer.boundaries"] == [last - 20_000, last - 10_000]


def test_translation_has_the_papers_hyperparameters():
    c = load("cat2dog")
    assert (c["train.num_steps"], c["optimizer.boundaries"]) == (40_000, [20_000, 30_000])
    assert c["flow.num_steps"] + c["flow.num_refine_steps"] == 110
    assert (c["prior.name"], c["data.resize"], c["data.image_size"]) == ("source", 84, 64)


def test_the_sets_of_tfds_that_configs_name_exist():
    text = "".join((CONFIGS / f"{name}.py").read_text() for name in NAMES)
    named = {found for found in re.findall(r"tfds:([\w/]+)", text) if found != "NAME"}
    assert {"celeb_a", "cifar10", "lsun/church_outdoor"} <= named
    for name in named:
        builder, _, config = name.partition("/")
        builder_class = tfds.builder_cls(builder)
        assert not config or config in builder_class.builder_configs


def test_step_size_and_network_follow_from_the_images():
    recipe = settings.from_config(base.small_images().to_dict())
    for size in (8, 16, 28, 32, 64, 128):
        wanted, smallest = for_shape(recipe, (size, size, 3)), size
        for _, stride in make_network(wanted, (size, size, 3)).spec.blocks:
            smallest = -(-smallest // stride)
        assert 4 <= smallest <= 8
    on_digits, on_mnist = (for_shape(recipe, (size, size, 1)) for size in (8, 28))
    assert (on_digits.flow.step_size, on_mnist.flow.step_size) == (1.8, 6.4)
    assert on_mnist.network.blocks == ((64, 2), (64, 2), (128, 1))


def test_a_run_keeps_them_when_the_same_command_resumes_it(image_folder, tmp_path):
    changes = {"train.num_steps": 3, "data.image_size": 8}
    asked = command("train", tmp_path / "run", "folder", changes, data_dir=image_folder)
    with run.locked_folder(asked.folder):
        created, resumed = (program.open_or_create(asked)[0] for _ in range(2))
    assert created.settings.flow.step_size == 3.2
    assert created.settings == resumed.settings
    other = command("train", tmp_path / "run", "folder", {**changes, "data.channels": 1})
    with pytest.raises(UserError, match=r"data\.channels"):
        program.open_or_create(other)
