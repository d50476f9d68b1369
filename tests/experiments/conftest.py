"""Small runs that the tests of the program share."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from experiments.request import Request
from experiments.storage.workdir import Workdir

from experiments import modes

Settings = dict[str, Any]


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Settings]:
    """Returns `(config name, {"section.key": value}) -> the nested config of its tiny variant`."""

    def config(name: str = "swissroll", changes: Settings | None = None) -> Settings:
        settings = importlib.import_module(f"configs.{name}").get_config("tiny").to_dict()
        for key, value in (changes or {}).items():
            *sections, last = key.split(".")
            target = settings
            for section in sections:
                target = target[section]
            target[last] = value
        return settings

    return config


@pytest.fixture(scope="session")
def trained_once(tiny, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("trained_once")
    modes.run(Request("train", tiny(), folder, "python -m experiments.main <tiny>"))
    return folder


@pytest.fixture(scope="module")
def trained(trained_once, tmp_path_factory) -> Workdir:
    """The workdir of a tiny run on the swiss roll, which the tests of a module may change."""
    folder: Path = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(trained_once, folder)
    return Workdir(folder)
