"""What the code imports and reads, and what the wheel contains."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("fdrl_jax", "experiments", "configs", "benchmarks", "examples", "docs")


def test_the_library_imports_only_what_it_declares():
    # The estimator of scikit-learn is imported by its users only, who have scikit-learn.
    files = {*(ROOT / "fdrl_jax").rglob("*.py")} - {ROOT / "fdrl_jax" / "ratio" / "estimator.py"}
    imported = set()
    for node in (node for path in files for node in ast.parse(path.read_text("utf-8")).body):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.match(r"\w+", text)[0] for text in project["dependencies"]}
    assert {"jax", "flax"} < imported
    assert imported - sys.stdlib_module_names - {"fdrl_jax"} <= declared


def readers_that_may_execute(source: str) -> Iterator[str]:
    """Calls that read a file and may execute what it holds."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        # NumPy reads no pickles unless it is asked to, PyTorch does in older versions.
        pickles = len(node.args) > 2 or options.get("allow_pickle", "False") != "False"
        if (name in ("np.load", "numpy.load") and pickles) or (
            name == "torch.load" and options.get("weights_only") != "True"
        ):
            yield ast.unparse(node)


def test_no_array_file_is_read_in_a_way_that_executes_it():
    for call in ("np.load(f, allow_pickle=a)", "np.load(f, None, True)", "torch.load(f)"):
        assert [*readers_that_may_execute(call)]
    paths = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 50
    assert [p for p in paths if [*readers_that_may_execute(p.read_text("utf-8"))]] == []


@pytest.mark.slow
def test_the_wheel_contains_only_the_library_and_an_editable_install_shows_nothing_else(tmp_path):
    tree = tmp_path / "tree"
    for name in CODE:
        shutil.copytree(ROOT / name, tree / name)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for kind in ("wheel", "editable"):
        build = f"from setuptools.build_meta import build_{kind} as b; b(r'{tmp_path / kind}')"
        (tmp_path / kind).mkdir()
        subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    names = {kind: namelist(tmp_path / kind) for kind in ("wheel", "editable")}
    assert {name.split("/")[0] for name in names["wheel"] if ".dist-info" not in name} == {
        "fdrl_jax"
    }
    files = {p for p in (ROOT / "fdrl_jax").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {str(path.relative_to(ROOT)) for path in files} <= {*names["wheel"]}
    # Only the library becomes importable from elsewhere, by the finder or the path in this wheel.
    with zipfile.ZipFile(*(tmp_path / "editable").glob("*.whl")) as archive:
        finder = "".join(
            archive.read(name).decode() for name in names["editable"] if ".dist-info" not in name
        )
    assert re.findall(rf"'(\w+)': '{tree}", finder) == ["fdrl_jax"]


def namelist(folder):
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()
