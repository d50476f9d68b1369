"""What the import rules of pyproject.toml (import-linter and ruff) cannot express."""

import ast
from collections.abc import Iterator
from pathlib import Path

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


def test_no_array_file_is_read_in_a_way_that_executes_it():
    for call in ("np.load(f, allow_pickle=a)", "np.load(f, None, True)", "torch.load(f)"):
        assert [*readers_that_may_execute(call)]
    paths = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 50
    assert [p for p in paths if [*readers_that_may_execute(p.read_text("utf-8"))]] == []
