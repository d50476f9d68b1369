"""What the import rules of pyproject.toml (import-linter and ruff) cannot express."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("fdrl_jax", "experiments", "configs", "benchmarks", "examples", "docs")


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


@pytest.mark.parametrize("folder", CODE)
def test_no_array_file_is_read_in_a_way_that_executes_it(folder):
    texts = {str(path): path.read_text("utf-8") for path in (ROOT / folder).rglob("*.py")}
    assert texts
    assert not {
        path: found for path, t in texts.items() if (found := [*readers_that_may_execute(t)])
    }


def test_such_a_call_is_found():
    for source in ("np.load(f, allow_pickle=a)", "np.load(f, None, True)", "torch.load(f)"):
        assert [*readers_that_may_execute(source)]
    safe = "np.load(f); np.load(f, allow_pickle=False); torch.load(f, weights_only=True)"
    assert not [*readers_that_may_execute(safe)]
