"""Checks of the documentation: commands, links, names, pictures and words."""

import ast
import inspect
import io
import json
import pkgutil
import re
import shlex
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdrl_jax
from docs import api_pages, example_pages, gallery, repository, results, settings_page
from experiments import main as program
from experiments.errors import UserError
from experiments.settings import DECLARED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
# Without the pages that `make docs` writes into folders from files that are tested elsewhere.
PAGES += [p for p in sorted((ROOT / "docs").rglob("*.md")) if "examples" not in p.parts]
MAIN = "python -m experiments.main"
CODE = [
    path
    for folder in ("benchmarks", "docs", "examples", "experiments", "fdrl_jax", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# Words that read as translated, as regular expressions, and what to write instead.
UNUSUAL_WORDS = {
    "anew": "again",
    "beside": "next to",
    "besides": "also",
    "mend": "fix",
    "at hand": "available",
    "in the place of": "in place of",
    "(?<!there )is no (?!longer)": "is not a",
    "goes on": "resumes, continues",
    "stands in": "is in",
    "stands at": "is at",
    "stands? for": "represents, replaces",
    "of one's own": "your",
    "of (?:ours|yours)": "our, your",
    "so long as": "while",
    "tells": "prints, reports",
    "told": "printed, reported",
}
MAX_PICTURE_BYTES, MAX_PICTURES_BYTES = 165_000, 2_400_000


def expand_loops(code: str) -> str:
    """Unrolls the loops `for NAME in VALUES; do ... done` of a shell."""

    def unrolled(loop: re.Match) -> str:
        name, values, body = loop.groups()
        return "".join(body.replace(f"${name}", value) for value in values.split())

    return re.sub(r"^for (\w+) in ([^;\n]+); do\n(.*?)^done$", unrolled, code, flags=re.M | re.S)


def commands(page: Path, program: str) -> list[str]:
    """The commands in a page's code blocks that call a program, each in one line."""
    text = expand_loops(page.read_text().replace("\\\n", " "))
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    called = [line for line in lines if line.startswith(f"{program} ")]
    return [line for line in called if "--help" not in line]


def check_parses(command: str) -> str:
    """Parses a command like the program and returns its mode."""
    argv = shlex.split(command.removeprefix(MAIN), comments=True)
    return program.parse(argv)[0].mode


def place(page: Path) -> str:
    return str(page.relative_to(ROOT))


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def other_flags(text: str) -> Iterator[tuple[str, str]]:
    """Pairs (module, flag) of commands whose parsers are not checked otherwise."""
    packages = "benchmarks|docs|examples|experiments"
    called = rf"python -m ((?:{packages})[.\w]*)([^`\n]*)"
    for module, arguments in re.findall(called, text.replace("\\\n", " ")):
        if module != "experiments.main":
            flags_given = set(re.findall(r"--(\w+)", arguments)) - {"help"}
            yield from ((module, flag) for flag in sorted(flags_given))


def unknown_keys(text: str) -> list[str]:
    """Keys of the config in code that do not exist."""
    sections = "|".join({key.partition(".")[0] for key in DECLARED if "." in key})
    found = re.findall(rf"(?:`|config\.)((?:{sections})\.(?!npz|json|py\b)[a-z]\w*)[`=]", text)
    return sorted(set(found) - DECLARED.keys())


def unknown_names(text: str) -> list[str]:
    """Paths and dotted names of the project in code that do not exist."""
    folders = "fdrl_jax|experiments|configs|benchmarks|examples|tests|docs"
    code = " ".join(re.findall(r"`+([^`]+)`+", text))
    found = re.findall(rf"(?<![\w/.])((?:{folders})[./][\w./]*\w)", code)
    placeholders = {name for name in found if name.split(".")[-1].isupper()}
    return sorted(name for name in {*found} - placeholders if not exists(name))


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
def test_every_command_of_a_page_parses(page):
    for command in commands(page, MAIN):
        check_parses(command)


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_flag_of_the_other_commands_of_a_page_exists(page):
    for module, flag in other_flags(page.read_text()):
        code = file_of(module).read_text()
        if "program.parse(" in code:  # It has the flags of the program as well.
            code += file_of("experiments.main").read_text()
        assert re.search(rf"""--{flag}\b|["']{flag}["']""", code), f"{module} --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_key_file_and_name_of_the_code_in_a_page_exists(page):
    text = page.read_text()
    assert unknown_keys(text) == []
    assert unknown_names(text) == []


def test_wrong_names_in_a_page_are_found():
    found = commands(ROOT / "README.md", MAIN)
    assert f"{MAIN} --config=configs/8gaussians.py --workdir=runs/8gaussians" in found
    wrong = [*other_flags("python -m benchmarks.estimators --josn=x")]
    assert wrong == [("benchmarks.estimators", "josn")]
    assert "josn" not in file_of("benchmarks.estimators").read_text()
    text = "`flow.step_sise=1`, `flow.step_size=1`, `prior.npz`, `fdrl_jax.langevin.drift`"
    assert unknown_keys(text) == ["flow.step_sise"]
    text = (
        "`experiments/loop.py`, `fdrl_jax.langevin.flown`, `python -m examples.NAME`, "
        "`docs/conf.py`"
    )
    assert unknown_names(text) == ["experiments/loop.py", "fdrl_jax.langevin.flown"]


def test_the_targets_of_make_and_the_extras_of_pip_in_the_pages_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.M))
    assert all(re.search(rf"^{one or other}:", makefile, re.M) for one, other in targets)
    extras = set(",".join(re.findall(r"'?\.\[([\w,]+)\]", text)).split(","))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras <= project["optional-dependencies"].keys()


def test_the_version_is_the_same_everywhere():
    version = fdrl_jax.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(
        r"^## \[(.+?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert newest[1] == version


def test_the_results_in_the_pages_are_those_of_the_data():
    assert results.PAGE.read_text() == results.page(), "write it again: python -m docs.results"
    assert results.README.read_text() == results.readme()
    mixed = {"title": "all of MNIST", "rows": {"task": "MNIST"}}
    with pytest.raises(ValueError, match=r"all of MNIST: rows of .* judges or machines"):
        results.groups(mixed, results.read())


def test_a_command_that_does_not_parse_is_found():
    with pytest.raises(UserError, match="step_size"):
        check_parses(f"{MAIN} --workdir=runs/x --config.flow.step_sise=1")


def test_the_page_of_settings_is_up_to_date():
    page = ROOT / "docs" / settings_page.FILE
    assert page.read_text() == settings_page.page(), "write it again with `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def unusual_words(text: str) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    return [word for word in UNUSUAL_WORDS if re.search(rf"\b{word}\b", prose, re.I)]


def prose_of(code: str) -> list[str]:
    """The comments, docstrings and messages in Python code, and the names it defines."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            found.append(re.sub(r"\s+", " ", node.value))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name.replace("_", " "))
    return found


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=place)
def test_pages_use_the_words_of_the_field(page):
    found = unusual_words(page.read_text())
    assert not found, {word: UNUSUAL_WORDS[word] for word in found}


def test_code_uses_the_words_of_the_field():
    allowed = {"besides"}  # Common in comments, in the sense of "in addition to".
    found = {
        (place(path), word): UNUSUAL_WORDS[word]
        for path in CODE
        if path != Path(__file__)
        for word in unusual_words("\n".join(prose_of(path.read_text())))
        if word not in allowed
    }
    assert not found


def test_an_unusual_word_in_prose_is_found_and_in_code_is_not():
    assert unusual_words("A run goes on. `anew`\n```\nbeside\n```\n") == ["goes on"]
    code = 'def tells(x):\n    """A\n    run."""  # Anew.\n    raise ValueError(f"{x} at hand")\n'
    found = unusual_words("\n".join(prose_of(code)))
    assert found == ["anew", "at hand", "tells"]


def test_every_picture_comes_from_the_gallery_and_is_small():
    files = sorted((ROOT / "docs" / "images").iterdir())
    drawn = {target for entry in gallery.ENTRIES for target in entry.pictures}
    assert {file.name for file in files} <= drawn
    assert max(file.stat().st_size for file in files) < MAX_PICTURE_BYTES
    assert sum(file.stat().st_size for file in files) < MAX_PICTURES_BYTES


def test_the_api_reference_has_every_public_symbol():
    documented = set()
    for module in api_pages.modules():
        page = api_pages.page(module)
        documented |= {module.__name__, *re.findall(r"^.. auto\w+:: (\S+)", page, re.M)}
        data = re.findall(r"^.. py:(?:data|type):: (\S+)", page, re.M)
        documented |= {f"{module.__name__}.{name}" for name in data}
    assert api_pages.missing(documented) == []
    assert {m.__name__.split(".")[1] for m in api_pages.modules()} <= {*fdrl_jax.__all__}
    pages = "".join(map(api_pages.page, api_pages.modules()))
    assert not re.findall(r"\w*(?:GenericAlias|TypeAlias)|jaxlib", pages), "names of no use"
    assert ".. py:type:: Potential\n   :canonical: Callable[[Array], Array]\n" in pages
    assert api_pages.missing(documented - {"fdrl_jax.langevin.flow"}) == ["fdrl_jax.langevin.flow"]
    index = (ROOT / "docs" / "api" / "index.md").read_text()
    at_the_top = [n for n in fdrl_jax.__all__ if not inspect.ismodule(getattr(fdrl_jax, n))]
    assert [n for n in at_the_top if f"`fdrl.{n}`" not in index] == ["__version__"]


def test_types_in_signatures_have_the_names_of_the_field():
    long = (
        "(x: ~jax.jaxlib._jax.Array | ~numpy.ndarray | ~numpy.bool | ~numpy.number | bool | int | "
        "float | complex, dtype: str | type[~typing.Any] | ~numpy.dtype | "
        "~jax._src.typing.SupportsDType = <class 'jax.numpy.float32'>, parent: ~flax.Module | None "
        "= <flax.linen.module._Sentinel object>, name: str | None = None)"
    )
    assert api_pages.shorter(long) == "(x: ArrayLike, dtype: DTypeLike = float32)"
    assert api_pages.shorter(None) is None
    lines = [":vartype f: ~collections.abc.Callable[[jax.jaxlib._jax.Array], float]", "a.b.C"]
    api_pages.shorten_types(None, "class", "", None, None, lines)
    assert lines == [":vartype f: ~Callable[[Array], float]", "a.b.C"]


def test_every_example_has_a_page_with_its_source_and_outputs():
    pages = example_pages.pages()
    files = {p.stem for p in (ROOT / "examples").iterdir() if p.suffix in (".py", ".ipynb")}
    assert {name.removesuffix(".md") for name in pages if name.endswith(".md")} == files - {
        "__init__"
    }
    for name, content in pages.items():
        if isinstance(content, bytes):
            assert content.startswith(b"\x89PNG")
            continue
        assert content.startswith("# ")
        assert all(picture in pages for picture in re.findall(r"\]\(([^)]+\.png)\)", content)), name
    assert "effective sample size: 1340 of 3000" in pages["density_ratios.md"]


def test_names_of_the_library_in_prose_lead_to_the_api_reference():
    documented = {
        "fdrl_jax.langevin.flow",
        "fdrl_jax.method.FDRL",
        "fdrl_jax.metrics.energy_ratio",
        "fdrl_jax.training",
    }
    names = {
        "fdrl.flow": "fdrl_jax.langevin.flow",
        "fdrl_jax.langevin.flow": "fdrl_jax.langevin.flow",
        "fdrl.FDRL(num_steps=50)": "fdrl_jax.method.FDRL",
        "fdrl.metrics.energy_ratio": "fdrl_jax.metrics.energy_ratio",
        "fdrl_jax.training": "fdrl_jax.training",
        "fdrl.refine": None,
        "fdrl.flown": None,
        "flow.step_size=0.1": None,
        "import fdrl_jax as fdrl": None,
    }
    assert {text: api_pages.documented_name(text, documented) for text in names} == names


def test_the_address_of_the_repository_is_the_same_everywhere():
    for path, text in repository.contents(repository.address()).items():
        assert path.read_text("utf-8") == text, "write it again: python -m docs.repository"


def test_an_address_reaches_all_files_and_can_be_removed():
    url = "https://github.com/me/fdrl_jax"
    given = {path.name: text for path, text in repository.contents(url).items()}
    urls = tomllib.loads(given["pyproject.toml"])["project"]["urls"]
    assert (urls["Repository"], urls["Issues"]) == (url, f"{url}/issues")
    assert f"({url}/actions/workflows/ci.yml/badge.svg)" in given["README.md"]
    assert f"\nrepository-code: {url}\n" in given["CITATION.cff"]
    for path in repository.NOTEBOOKS:
        cells = json.loads(given[path.name])["cells"]
        named = [line for cell in cells for line in cell["source"] if "pip install" in line]
        assert [line for line in named if f"git+{url}" in line] == named
        assert len(named) == 1, "in one place"
    none = {path.name: text for path, text in repository.contents(None).items()}
    assert not [name for name, text in none.items() if "github.com/me" in text]
    assert "urls" not in tomllib.loads(none["pyproject.toml"])["project"]
