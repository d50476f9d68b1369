"""Writes the address of the repository to all files that need it.

`python -m docs.repository https://github.com/me/fdrl_jax` sets `project.urls` in `pyproject.toml`,
the badges of the README, `CITATION.cff`, and the command by which the notebooks install the
library. Without an argument, it writes the other files again from `pyproject.toml`. If no address
is set, there are no badges, and the notebooks install the library from their clone.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
_BADGES = re.compile(r"(<!-- badges -->\n).*?(<!-- end of badges -->)", re.S)
_URLS = re.compile(r"\[project\.urls\]\n(?:\w+ = .*\n)+\n")
_CODE = re.compile(r"^repository-code: .*\n", re.M)
_INSTALL = re.compile(r"(%pip install -q ')[^']*(')")


def address() -> str | None:
    """Returns the address in `pyproject.toml`, or `None` if there is none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: str | None = project.get("urls", {}).get("Repository")
    return found


def contents(url: str | None) -> dict[Path, str]:
    """Returns the texts of all files that name the repository, for an address."""
    texts = {name: (ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "CITATION.cff")}
    urls = (
        f'[project.urls]\nRepository = "{url}"\nIssues = "{url}/issues"\n'
        f'Changelog = "{url}/blob/main/CHANGELOG.md"\n\n'
    )
    before = "[project.optional-dependencies]\n"
    project = _URLS.sub("", texts["pyproject.toml"]).replace(before, urls * bool(url) + before)
    code = f"repository-code: {url}\n" * bool(url)
    licence = "license: MIT\n"
    citation = _CODE.sub("", texts["CITATION.cff"]).replace(licence, licence + code)
    readme = (ROOT / "README.md").read_text("utf-8")
    found = {
        ROOT / "pyproject.toml": project,
        ROOT / "CITATION.cff": citation,
        ROOT / "README.md": _BADGES.sub(rf"\g<1>{badges(url)}\g<2>", readme),
    }
    source = f"fdrl_jax[notebook] @ git+{url}" if url else "..[notebook]"
    for path in NOTEBOOKS:
        found[path] = _INSTALL.sub(rf"\g<1>{source}\g<2>", path.read_text("utf-8"))
    return found


def badges(url: str | None) -> str:
    """Returns the badges of the README: those of the tests and of the tracker, on GitHub."""
    if url is None or not url.startswith("https://github.com/"):
        return ""
    name = url.removeprefix("https://github.com/")
    return (
        f"[![Tests]({url}/actions/workflows/ci.yml/badge.svg)]({url}/actions/workflows/ci.yml)\n"
        f"[![Issues](https://img.shields.io/github/issues/{name})]({url}/issues)\n"
    )


def main(argv: list[str]) -> None:
    """Writes the files that change."""
    for path, text in contents(argv[0].rstrip("/") if argv else address()).items():
        if path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
