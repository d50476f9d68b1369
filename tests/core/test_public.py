"""Tab completion shows what is public and nothing else."""

import importlib
import pkgutil
import sys

import pytest

import fdrl_jax

NAMES = [module.name for module in pkgutil.walk_packages(fdrl_jax.__path__, "fdrl_jax.")]
PUBLIC = [name for name in NAMES if not any(part[0] == "_" for part in name.split("."))]


@pytest.mark.parametrize("name", ["fdrl_jax", *PUBLIC])
def test_a_module_lists_its_public_names(name):
    importlib.import_module(name)
    module = sys.modules[name]  # A function of the same name may hide the attribute.
    assert sorted(set(dir(module)) - {"__version__"}) == sorted(module.__all__)


def test_sixteen_names():
    assert {*dir(fdrl_jax)} == {
        *("FDRL", "fit", "Sampler", "pretrained", "flow", "drift", "first_variation", "fit_ratio"),
        *("DensityRatio", "mutual_information", "refine", "condition", "priors", "networks"),
        *("metrics", "training", "__version__"),
    }
