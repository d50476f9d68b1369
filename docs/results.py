"""Writes docs/results.md and the table of the README from docs/results.jsonl.

Command: python -m docs.results
docs/results.toml says which rows stand in one table: those of one metric, judge and machine.
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
DATA, PAGE, README = ROOT / "docs/results.jsonl", ROOT / "docs/results.md", ROOT / "README.md"
MARKS = "<!-- results -->\n", "<!-- end of results -->"
DISTANCE = "Fréchet distance"
COLUMNS = "prior", "real data", "passes", "ms"
METHODS = "FDRL", "flow matching", "coupled flow matching"  # The README compares these.
PASSES_PER_GRADIENT = 3  # A gradient of a network costs about three evaluations of it.


def read(file: Path = DATA) -> list[Row]:
    """Returns all results, one JSON object per line."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def tables() -> Row:
    """Returns the introduction, the tables and the lines of that of the README."""
    return tomllib.loads((ROOT / "docs/results.toml").read_text("utf-8"))


def groups(table: Row, rows: list[Row]) -> list[list[Row]]:
    """Returns the rows of a table, those of all seeds of a method together, the smallest first.

    Raises:
      ValueError: if there is none, or if they cannot be compared.
    """
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        # The number of gradients selects among the rows of FDRL only.
        wanted = {"metric": DISTANCE, "gradients": row.get("gradients")} | table["rows"]
        wanted |= {} if "gradients" in row else {"gradients": None}
        named = re.fullmatch(table.get("methods", ".*"), row["method"])
        if named and all(row.get(key) == value for key, value in wanted.items()):
            keys = ("method", "gradients", "evaluations", "viewer")
            found.setdefault(tuple(map(row.get, keys)), []).append(row)
    places = {(row.get("judge"), row.get("machine")) for group in found.values() for row in group}
    if len(places) != 1:
        raise ValueError(f"{table['title']}: rows of {len(places)} judges or machines, expected 1")
    best: dict[tuple[Any, ...], list[Row]] = {}  # The best of several numbers of passes.
    for key, group in sorted(found.items(), key=lambda item: mean(item[1], "value") or 0.0):
        best.setdefault((key[0], key[-1]), group)
    return list(best.values())


def judged(table: Row, judge: str) -> Row:
    """Returns a table of the rows of one of its judges."""
    return {**table, "rows": {**table["rows"], "judge": judge}}


def mean(rows: list[Row], key: str) -> float | None:
    """Returns the mean over seeds of a figure, or None where there is none."""
    found = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return sum(found) / len(found) if found else None


def number(value: float | None, digits: int = 3) -> str:
    """Returns a figure as text, with so many significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.{digits}g}'):g}"


def markdown(table: Row, rows: list[Row]) -> str:
    """Returns a table of at most six columns; columns without a figure are left out."""
    metric = table["rows"].get("metric", DISTANCE)
    body = []
    for group in groups(table, rows):
        spreads = [f" ± {number(row['sd'], 2)}" if "sd" in row else "" for row in group]
        values = [number(row["value"]) + row.get("unit", "") for row in group]
        gradients, kept = mean(group, "gradients"), mean(group, "kept") or 1.0
        passes = mean(group, "evaluations") or PASSES_PER_GRADIENT * (gradients or 0) / kept
        cells = [number(mean(group, key)) for key in ("prior", "real")]
        cells += [number(passes or None), number(mean(group, "ms_per_sample"), 2)]
        body.append([group[0]["method"], "; ".join(map(str.__add__, values, spreads)), *cells])
    header = ["method", metric + (", not an FID" if DISTANCE in metric else ""), *COLUMNS]
    used = [i for i in range(len(header)) if any(cells[i] for cells in body)]
    lines = [f"| {' | '.join(cells[i] for i in used)} |" for cells in [header, *body]]
    lines.insert(1, "|---" * len(used) + "|")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Returns the page of results in Markdown."""
    rows, spec = read(), tables()
    introduction = spec["introduction"].strip().replace("NUMBER", f"{len(rows):,}")
    text = f"# Results\n\n{introduction}\n"
    for table in spec["table"]:
        section = f"\n## {table['section']}\n" if "section" in table else ""
        text += f"{section}\n### {table['title']}\n\n{table['about'].strip()}\n\n"
        for judge in table.get("judges", ()):
            text += f"By a {judge}:\n\n{markdown(judged(table, judge), rows)}\n"
        if "judges" not in table:
            text += markdown(table, rows)
    return re.sub(r"\n{3,}", "\n\n", text)


def readme() -> str:
    """Returns the README with its table: means over seeds of tables of the page."""
    rows, spec = read(), tables()
    by_title = {table["title"]: table for table in spec["table"]}
    lines = ["| equal training time | features of | FDRL | flow matching | coupled | real images |"]
    lines.append("|---" * 6 + "|")
    for title, judge, *cells in spec["readme"]:
        table = by_title[title]
        found = groups(judged(table, judge), rows)
        for name in METHODS:
            (group,) = (g for g in found if g[0]["method"].partition(",")[0] == name)
            cells.append(number(mean(group, "value"), 2))
        lines.append(f"| {' | '.join([*cells, number(mean(found[0], 'real'), 2)])} |")
    before, rest = README.read_text("utf-8").split(MARKS[0])
    table = MARKS[0] + "\n".join(lines) + "\n" + MARKS[1]
    return before + table + rest.split(MARKS[1])[1]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    README.write_text(readme(), "utf-8")
