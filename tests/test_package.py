"""`pip install` and `make` in empty environments."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
DECLARED = {"flax", "jax", "jaxlib", "numpy", "optax", "safetensors", "scipy"}
# What the README's example assumes.
GIVEN = """
import jax
key = jax.random.key(0)
real, x0 = jax.random.normal(key, (2, 4, 2))
estimator = lambda x: 0.1 * (x**2).sum(-1)
"""
STRANGERS = ("experiments", "configs", "matplotlib", "sklearn", "ml_collections", "grain")
CHECK = f"""
from importlib.util import find_spec
import fdrl_jax
assert fdrl_jax.__file__.startswith(__import__("sys").prefix), fdrl_jax.__file__
assert samples.shape == (4, 2) and float((samples**2).sum()) < float((x0**2).sum())
assert bool((record.flowed == samples).all()) and loss.shape == ()
assert not [name for name in {STRANGERS} if find_spec(name)]
assert fdrl_jax.pretrained("swissroll")(key, 4).shape == (4, 2)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source tree, which stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("fdrl_jax", "experiments", "configs", "docs", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("*.pt"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    return folder / "tree"


@pytest.fixture(scope="module")
def wheel(tree):
    """The wheel, built from a copy."""
    folder = tree.parent
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder, folder / "tree"], check=True)
    (built,) = folder.glob("*.whl")
    return built


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        return archive.read(name).decode()


def needed(requirements):
    """Names of the distributions that requirements need, directly or indirectly."""
    found, waiting = set(), [(text, "") for text in requirements]
    while waiting:
        text, extra_of_parent = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra_of_parent}):
            continue
        for extra in {"", *requirement.extras}:
            item = canonicalize_name(requirement.name), extra
            if item not in found:
                found.add(item)
                requires = importlib.metadata.requires(requirement.name) or []
                waiting += [(text, extra) for text in requires]
    return {name for name, _ in found}


@pytest.mark.slow
def test_the_wheel_contains_only_the_library(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names}
    shipped = {name for name in names if name.startswith("fdrl_jax/pretrained/")}
    files = (ROOT / "fdrl_jax" / "pretrained").rglob("*")
    assert shipped == {
        str(p.relative_to(ROOT)) for p in files if p.is_file() and p.suffix != ".pyc"
    }
    assert {name for name in folders if not name.endswith(".dist-info")} == {"fdrl_jax"}
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata(wheel), re.M)
    assert set(required) == DECLARED


@pytest.mark.slow
def test_an_editable_install_makes_only_the_library_importable(tree, tmp_path):
    build = f"from setuptools.build_meta import build_editable as build; build(r'{tmp_path}')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "installed")
    names = ("fdrl_jax", "experiments", "configs", "docs", "benchmarks")
    program = (
        f"import site; site.addsitedir(r'{tmp_path / 'installed'}')\n"
        f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    )
    # Without the packages of this environment, in which the source tree may be installed.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "['fdrl_jax']\n", done.stderr


@pytest.mark.slow
def test_the_readmes_example_runs_with_the_declared_dependencies_only(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # Links to the installed files of these distributions avoid a download of hundreds of MB.
    for name in needed(re.findall(r"^Requires-Dist: (.*)$", metadata(wheel), re.M)):
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).symlink_to(file.locate())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    example = next(block for block in blocks if "import fdrl_jax" in block)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", GIVEN + example + CHECK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_picks_the_newest_python_that_runs(tmp_path):
    for version, status in (("3.14", 127), ("3.13", 1), ("3.12", 0), ("3.11", 0)):
        script = tmp_path / f"python{version}"
        script.write_text(f"#!/bin/sh\nexit {status}\n")
        script.chmod(0o755)
    # Without the variables of an outer make that may have started the tests.
    outer = ("PYTHON", "VENV", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")
    environment = {k: v for k, v in os.environ.items() if k not in outer}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"

    def chosen(*arguments):
        make = ["make", "-n", "-f", ROOT / "Makefile", "setup", f"VENV={tmp_path}/env", *arguments]
        done = subprocess.run(
            make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()[0]

    assert chosen() == "python3.12"
    assert chosen("PYTHON=python3.11") == "python3.11"
