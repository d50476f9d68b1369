"""A table in Markdown of the evaluations of several runs, for instance of a shell loop over seeds.

Run: python -m examples.table runs/seed_*
"""

import argparse
import json
from pathlib import Path


def rows(folder: Path) -> list[dict]:
    """Returns the records of the evaluations of a run, oldest first."""
    files = sorted(folder.glob("evaluations/*/record.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text("utf-8")) for path in files]


def main(argv: list[str] | None = None) -> str:
    """Prints and returns the table of the newest evaluation of each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    newest = {run.name: found[-1] for run in parser.parse_args(argv).runs if (found := rows(run))}
    names = list(dict.fromkeys(name for record in newest.values() for name in record["metrics"]))
    lines = [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for run, record in newest.items():
        values = (record["metrics"].get(name, {}).get("value") for name in names)
        cells = ("" if value is None else f"{value:.4g}" for value in values)
        lines.append(f"| {run} | {' | '.join(cells)} |")
    print("\n".join(lines))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
