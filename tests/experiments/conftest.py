"""Small runs shared by the tests of the program, each trained once and copied for changes."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL_RESNET, command, start

from experiments import experiment, run, settings
from experiments.run import Run
from experiments.settings import Settings


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Settings]:
    """Returns `(config name, {"section.key": value}) -> settings of its tiny variant`."""

    def config(name: str = "swissroll", changes: dict[str, Any] | None = None) -> Settings:
        values = command("dry_run", None, f"{name}:tiny", changes).config
        found = settings.from_config(values)
        shape = (2,) if found.network.name == "mlp" else (8, 8, 1)
        return experiment.for_shape(found, shape)

    return config


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Returns a folder that all workers share; the first one that asks for it fills it."""
    root: Path = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made(name: str, make: Callable[[Path], None]) -> Path:
        with (root / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_size:
                make(root / name)
                lock.write("made")
        return root / name

    return made


@pytest.fixture(scope="session")
def image_folder(once) -> Path:
    """A folder of 40 small images in two classes."""

    def make(folder: Path) -> None:
        random = np.random.default_rng(0)
        for name in ("ant", "bee"):
            (folder / name).mkdir(parents=True)
            for i in range(20):
                pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{i}.png")

    return once("images", make)


@pytest.fixture(scope="session")
def _trained_once(image_folder, once) -> Callable[[str], Path]:
    """Trains a run of each name once: "swissroll", "digits", "by_class" or "images"."""

    def trained(name: str) -> Path:
        mode, config, changes = "train", f"{name}:tiny", {}
        if name == "images":
            config = "folder:tiny"
            changes = {"data.dir": image_folder, "data.image_size": 8, **SMALL_RESNET}
        if name == "by_class":
            # A denoiser after so few steps would hide what the flow does.
            changes = {"network.by_class": True, "network.denoiser_width": 0, **SMALL_RESNET}
            config = "digits:tiny"
        if name == "digits_classifier":
            mode, config = "classifier", "classifier:digits,tiny"
            changes = {"classifier.attack_steps": 2, "train.steps_per_dispatch": 4}
        return once(f"trained_{name}", lambda folder: start(mode, folder, config, changes))

    return trained


def _copy(trained: Path, folder: Path) -> Run:
    shutil.copytree(trained, folder)
    return run.open_run(folder)


def _copy_for_a_module(name: str) -> Any:
    """A fixture: a tiny run, trained and evaluated, which the tests of a module may change."""

    @pytest.fixture(scope="module")
    def copied(_trained_once, tmp_path_factory) -> Run:
        return _copy(_trained_once(name), tmp_path_factory.mktemp(name) / "run")

    return copied


trained = _copy_for_a_module("swissroll")
of_digits = _copy_for_a_module("digits")
by_class = _copy_for_a_module("by_class")  # A density ratio for each class of digits.


@pytest.fixture(scope="session")
def classifier_of_digits(_trained_once) -> Path:
    """The folder of a classifier of digits, trained for a few steps; tests do not change it."""
    return _trained_once("digits_classifier")


@pytest.fixture
def of_images(_trained_once, tmp_path) -> Run:
    """The same on a folder of images, with a data-dependent prior, copied for each test."""
    return _copy(_trained_once("images"), tmp_path / "of_images")
