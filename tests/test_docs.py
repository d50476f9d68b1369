"""Checks of the documentation: commands, links, names, pictures, scores and generated pages."""

import inspect
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdrl_jax
from docs import reference, results
from experiments import command as program
from experiments.errors import UserError
from experiments.settings import DECLARED

ROOT = Path(__file__).parents[1]
GENERATED = ("settings.md", "metrics.md")  # By `make docs`, not stored.
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in GENERATED)
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")), *DOCS]
MAIN = "python -m experiments.main"
MAX_PICTURE_BYTES, MAX_PICTURES_BYTES, MAX_SIDEBAR = 165_000, 2_400_000, 18


def expand_loops(code: str) -> str:
    """Unrolls the loops `for NAME in VALUES; do ... done` of a shell."""

    def unrolled(loop: re.Match) -> str:
        name, values, body = loop.groups()
        return "".join(body.replace(f"${name}", value) for value in values.split())

    return re.sub(r"^for (\w+) in ([^;\n]+); do\n(.*?)^done$", unrolled, code, flags=re.M | re.S)


def commands(text: str) -> list[str]:
    """The commands of the program in the code blocks of a page, each in one line."""
    blocks = re.findall(
        r"^```(?:bash)?\n(.*?)^```", expand_loops(text.replace("\\\n", " ")), re.M | re.S
    )
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{MAIN} ") and "--help" not in line]


def check_parses(command: str) -> None:
    program.parse(shlex.split(command.removeprefix(MAIN), comments=True))


def place(page: Path) -> str:
    return str(page.relative_to(ROOT))


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def other_flags(text: str) -> Iterator[tuple[str, str]]:
    """Pairs (module, flag) of commands of other programs."""
    called = r"python -m ((?:benchmarks|docs|examples)[.\w]*)([^`\n]*)"
    for module, arguments in re.findall(called, text.replace("\\\n", " ")):
        for flag in sorted(set(re.findall(r"--(\w+)", arguments)) - {"help"}):
            yield module, flag


def unknown_keys(text: str) -> list[str]:
    """Keys of the config in code that do not exist."""
    sections = "|".join({key.partition(".")[0] for key in DECLARED if "." in key})
    found = re.findall(rf"(?:`|config\.)((?:{sections})\.(?!npz|json|py\b)[a-z]\w*)[`=]", text)
    return sorted(set(found) - DECLARED.keys())


def unknown_names(text: str) -> list[str]:
    """Paths and dotted names of the project in code that do not exist."""
    folders = "fdrl_jax|experiments|configs|benchmarks|examples|tests|docs"
    code = " ".join(re.findall(r"`+([^`]+)`+", text))
    found = set(re.findall(rf"(?<![\w/.])((?:{folders})[./][\w./]*\w)", code))
    return sorted(n for n in found if not n.split(".")[-1].isupper() and not exists(n))


def exists(name: str) -> bool:
    if "/" in name:
        return (ROOT / name).exists()
    try:
        return pkgutil.resolve_name(name) is not None
    except (ImportError, AttributeError):
        return False


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_the_commands_flags_keys_names_and_links_of_a_page_exist(page):
    text = page.read_text("utf-8")
    for command in commands(text):
        check_parses(command)
    for module, flag in other_flags(text):
        code = file_of(module).read_text("utf-8")
        assert re.search(rf"""--{flag}\b|["']{flag}["']""", code), f"{module} --{flag}"
    assert unknown_keys(text) == []
    assert unknown_names(text) == []
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http") and Path(target).name not in GENERATED:
            assert (page.parent / target).exists(), target


def test_what_is_wrong_in_a_page_is_found():
    text = f"```\nfor s in 1 2; do\n  {MAIN} --workdir=runs/$s --config.seed=$s\ndone\n```\n"
    assert [c.rpartition("=")[2] for c in commands(text)] == ["1", "2"]
    with pytest.raises(UserError, match="step_size"):
        check_parses(f"{MAIN} --workdir=runs/x --config.flow.step_sise=1")
    assert [*other_flags("`python -m examples.table --jsno=x`")] == [("examples.table", "jsno")]
    text = "`flow.step_sise=1`, `flow.step_size=1`, `prior.npz`, `fdrl_jax.langevin.drift`"
    assert unknown_keys(text) == ["flow.step_sise"]
    text = "`experiments/loop.py`, `fdrl_jax.langevin.flown`, `examples.NAME`, `docs/conf.py`"
    assert unknown_names(text) == ["experiments/loop.py", "fdrl_jax.langevin.flown"]
    assert scores("`--x=1 +- 2`\nA distance of 7.4 ± 1.2, or 3 +- 1.") == ["4 ± 1", "3 +- 1"]
    text = "the Fréchet distance of 2,000 samples is lower, the Fréchet distance of samples is 7.4"
    assert scores(text) == ["Fréchet distance of samples is 7.4"]


def test_the_targets_of_make_and_the_extras_of_pip_in_the_pages_exist():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)(?= *(?:`|#|$| [A-Z_]+=))", text, re.M))
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.M)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(",".join(re.findall(r"'?\.\[([\w,]+)\]", text)).split(","))
    assert extras - project["optional-dependencies"].keys() <= {""}
    urls = project.get("urls", {})
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert urls.get("Repository", "") == "".join(re.findall("^repository-code: (.*)", citation))


def test_the_version_is_the_same_everywhere():
    version = fdrl_jax.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    released = r"^## \[(\d.+?)\] - \d{4}-\d\d-\d\d$"
    assert re.search(released, (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1] == version


def test_the_sidebar_is_short_and_has_every_page():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    blocks = " ".join(re.findall(r"```\{toctree\}\n(.*?)```", index, re.S))
    shown = [word for word in blocks.split() if re.match(r"[a-z]", word)]
    assert len(shown) <= MAX_SIDEBAR
    missing = {path.stem for path in DOCS if path.parent.name == "docs"} - {*shown}
    assert missing == {"index", "changelog"}  # The changelog is below contributing.


def test_pictures_are_drawn_by_known_commands_and_are_small():
    drawn = tomllib.loads((ROOT / "docs" / "pictures.toml").read_text("utf-8"))
    for command in "\n".join(drawn.values()).split("\n"):
        if command.startswith(MAIN):
            check_parses(command)
        elif command:
            assert exists(command.split()[2])
    files = [path for path in (ROOT / "docs" / "images").iterdir() if path.suffix != ".svg"]
    assert {file.name for file in files} == {*drawn}
    assert max(file.stat().st_size for file in files) < MAX_PICTURE_BYTES
    assert sum(file.stat().st_size for file in files) < MAX_PICTURES_BYTES


def scores(text: str) -> list[str]:
    """Figures with an uncertainty, and Fréchet distances, outside of code."""
    prose = re.sub(r"```.*?```|`[^`]*`|<!-- results -->.*?<!-- end", "", text, flags=re.S)
    distance = r"Fréchet distances?(?: \w+){0,3} (?:is|was|of|to|=) (?!\d[\d,]* samples)\d[\d.]*"
    return re.findall(rf"\d (?:±|\+-) \d|{distance}", re.sub(r"\s+", " ", prose))


@pytest.mark.parametrize("file", [*PAGES, *sorted((ROOT / "configs").rglob("*.py"))], ids=place)
def test_scores_are_only_in_the_generated_results(file):
    if file.name != "results.md":
        assert scores(file.read_text("utf-8")) == []


def test_the_results_in_the_pages_are_those_of_the_data():
    assert results.PAGE.read_text("utf-8") == results.page(), "run: python -m docs.results"
    assert results.README.read_text("utf-8") == results.readme()
    mixed = {"title": "all of MNIST", "rows": {"task": "MNIST"}}
    with pytest.raises(ValueError, match=r"all of MNIST: rows of .* judges or machines"):
        results.groups(mixed, results.read())


def test_everything_public_has_a_docstring_and_is_in_the_reference():
    pages = {module.__name__: reference.api_page(module) for module in reference.modules()}
    for name in fdrl_jax.__all__:
        value = getattr(fdrl_jax, name)
        if inspect.ismodule(value):
            assert value.__name__ in pages
        elif callable(value):
            assert re.search(rf"^.. auto\w+:: fdrl_jax\.{name}$", pages["fdrl_jax"], re.M), name
    for module in reference.modules():
        assert [n for n in reference.public_names(module) if not getattr(module, n).__doc__] == []
    assert "`flow.step_size`" in reference.settings_page()
    assert "`energy_ratio`" in reference.metrics_table()
