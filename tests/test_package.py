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
STRANGERS = ("experiments", "configs", "docs", "benchmarks", "matplotlib", "sklearn", "grain")
CHECK = f"""
import sys
from importlib.util import find_spec
import jax, fdrl_jax
assert fdrl_jax.__file__.startswith(sys.prefix), fdrl_jax.__file__
assert not [name for name in {STRANGERS} if find_spec(name)]
assert fdrl_jax.pretrained("swissroll")(jax.random.key(0), 4).shape == (4, 2)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the source tree, which stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("fdrl_jax", "experiments", "configs", "docs", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, folder / "tree" / name)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder, folder / "tree"], check=True)
    (built,) = folder.glob("*.whl")
    return built


def required(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        return re.findall(r"^Requires-Dist: (.*)$", archive.read(name).decode(), re.M)


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
def test_the_wheel_contains_only_the_library_and_runs_with_the_declared_packages(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    shipped = {name for name in names if name.startswith("fdrl_jax/pretrained/")}
    files = (ROOT / "fdrl_jax" / "pretrained").rglob("*")
    files = {path for path in files if path.is_file() and path.suffix != ".pyc"}
    assert shipped == {str(path.relative_to(ROOT)) for path in files}
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"fdrl_jax"}
    assert {re.split(r"\W", t.replace("-", "_"))[0] for t in required(wheel) if ";" not in t} == (
        DECLARED
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # Links to the installed files of these distributions avoid a download of hundreds of MB.
    for name in needed(required(wheel)):
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).symlink_to(file.locate())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-c", CHECK], cwd=tmp_path, env=environment, check=True)


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
