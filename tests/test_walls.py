"""The walls between the packages hold: who imports whom, read from the source, not run."""

import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("fdrl_jax", "experiments", "configs", "benchmarks", "examples")
MAX_LINES = 300

# All that the library stands on; nothing here reads flags or files, or draws.
FOUNDATION = {"jax", "flax", "optax", "chex", "ott", "numpy", "scipy", "fdrl_jax"}
FOUNDATION |= sys.stdlib_module_names
# Heavy or optional packages: imported only inside the function that needs them.
ON_DEMAND = ("ott", "tensorflow", "torch", "torch_fidelity", "torchvision", "tensorboardX", "wandb")
# Readers that execute what the file tells them to. (`pickletools` only takes pickles apart.)
EXECUTING = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml")
# Where experiments/ may know the library of configurations: the flags and the builder.
READERS_OF_CONFIGS = ("main.py", "build")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(nodes: Iterable[ast.AST], package: str) -> Iterator[tuple[str, str]]:
    """Pairs (name bound in the file, full name) of the import statements among the nodes."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -node.level + 1 or None] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{origin}.{alias.name}"


def names_used(source: str, package: str = "") -> set[str]:
    """Full names of the imports and attributes in a file: `jnp.sum` is `jax.numpy.sum`."""
    nodes = list(ast.walk(ast.parse(source)))
    bound = dict(imports(nodes, package))
    names = set(bound.values())
    for node in nodes:
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            names.add(f"{bound.get(first, first)}.{rest}")
    return names


def imported_at_once(source: str) -> set[str]:
    """Full names of the imports that run when the file is imported: those outside of functions."""

    def outside(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield child
                yield from outside(child)

    return {name for _, name in imports(outside(ast.parse(source)), package="")}


def unsafe_calls(source: str) -> Iterator[str]:
    """Calls that execute code, or that read a file and execute what it holds."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        # NumPy takes no pickles unless it is told to, PyTorch does in older versions.
        pickles = len(node.args) > 2 or options.get("allow_pickle", "False") != "False"
        if (
            name in ("eval", "exec")
            or (name in ("np.load", "numpy.load") and pickles)
            or (name == "torch.load" and options.get("weights_only") != "True")
        ):
            yield ast.unparse(node)


def within(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def offenders(files: list[Path], forbidden: Iterable[str]) -> list[str]:
    """`file: name` for every use of a forbidden package or name."""
    assert files, "a wall around no file holds nothing"
    found = []
    for path in files:
        place = path.relative_to(ROOT)
        names = names_used(path.read_text(), package=".".join(place.parent.parts))
        found += [f"{place}: {name}" for name in sorted(names) if within(name, forbidden)]
    return found


def test_the_library_imports_nothing_but_its_foundation():
    files = python_files("fdrl_jax")
    assert files
    strangers = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for _, name in imports(ast.walk(ast.parse(path.read_text())), "fdrl_jax")
        if name.split(".")[0] not in FOUNDATION
    ]
    assert not strangers


def test_the_flow_knows_no_divergence_loss_or_network():
    files = [path for path in python_files("fdrl_jax") if path.stem == "langevin"]
    assert files
    upper = ("fdrl_jax.divergences", "fdrl_jax.bregman", "fdrl_jax.networks")
    assert not offenders(files, upper)


def test_the_examples_use_the_library_alone():
    assert not offenders(python_files("examples"), ["experiments", "configs", "benchmarks"])


def test_only_parallel_maps_over_devices():
    parallel = ROOT / "fdrl_jax" / "parallel.py"
    files = [path for path in python_files(*CODE) if path != parallel]
    assert not offenders(files, ["jax.pmap"])


def test_a_configuration_goes_no_further_than_its_readers():
    room = ROOT / "experiments"
    readers = {room / name for name in READERS_OF_CONFIGS}
    assert all(path.exists() for path in readers)
    files = [
        path for path in python_files("experiments") if readers.isdisjoint((path, *path.parents))
    ]
    assert not offenders(files, ["ml_collections"])


def test_the_rooms_of_the_program_import_each_other_in_one_direction():
    rooms: dict[str, set[str]] = {}
    for path in python_files("experiments"):
        room = path.relative_to(ROOT).with_suffix("").parts[1]
        names = [name.split(".") for name in imported_at_once(path.read_text())]
        known = {parts[1] for parts in names if parts[0] == "experiments"}
        rooms.setdefault(room, set()).update(known - {room})
    order = list(graphlib.TopologicalSorter(rooms).static_order())  # A circle has none.
    assert order.index("storage") < order.index("training") < order.index("modes")


def test_optional_packages_are_imported_only_on_demand():
    files = python_files("fdrl_jax", "experiments", "configs")
    early = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in sorted(imported_at_once(path.read_text()))
        if within(name, ON_DEMAND)
    ]
    assert files
    assert not early


def test_nobody_uses_the_private_parts_of_jax():
    assert not offenders(python_files(*CODE, "tests"), ["jax._src"])


def test_nothing_executes_what_a_file_holds():
    files = python_files(*CODE)
    assert not offenders(files, EXECUTING)
    assert not [f"{path}: {call}" for path in files for call in unsafe_calls(path.read_text())]


@pytest.mark.parametrize(
    "source",
    ["eval(x)", "exec(x)", "np.load(f, allow_pickle=a)", "np.load(f, None, True)", "torch.load(f)"],
)
def test_the_reader_sees_calls_that_may_execute_a_file(source):
    assert list(unsafe_calls(source))
    safe = "np.load(f); np.load(f, allow_pickle=False); torch.load(f, weights_only=True)"
    assert not list(unsafe_calls(f"{safe}; literal_eval(x)"))


def test_no_file_is_a_drawer_for_everything():
    assert not [path for path in python_files(*CODE, "tests") if path.stem in ("util", "utils")]


def test_files_are_short_enough_to_read():
    lengths = {path: len(path.read_text().splitlines()) for path in python_files(*CODE, "tests")}
    assert not {str(path): length for path, length in lengths.items() if length > MAX_LINES}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import jax\njax.pmap(f)", "jax.pmap"),
        ("import jax as j\nj.pmap(f)", "jax.pmap"),
        ("from jax import pmap as p", "jax.pmap"),
        ("import jax.numpy as jnp\njax.pmap", "jax.pmap"),
        ("def f():\n  from jax._src import core", "jax._src"),
        ("import jax._src.core", "jax._src"),
        ("import fdrl_jax as fdrl\nfdrl.networks.MLP()", "fdrl_jax.networks"),
        ("from . import networks", "fdrl_jax.networks"),
        ("from .networks.mlp import MLP", "fdrl_jax.networks"),
    ],
)
def test_the_reader_sees_every_way_to_reach_a_name(source, name):
    assert any(within(used, [name]) for used in names_used(source, package="fdrl_jax"))


def test_the_reader_climbs_with_relative_imports():
    names = names_used("from ..bregman import get", package="fdrl_jax.networks")
    assert names == {"fdrl_jax.bregman.get"}


def test_the_reader_tells_imports_on_demand_from_imports_at_once():
    source = "try:\n  import torch\nexcept ImportError:\n  pass\ndef f():\n  import wandb"
    assert imported_at_once(source) == {"torch"}
