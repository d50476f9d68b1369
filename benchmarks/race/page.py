"""The rows of the race, as in docs/results.jsonl, and its table."""

import json
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
RUN = ("task", "contestant", "settings", "budget", "seed", "machine")  # What determines a run.
METRIC = "Fréchet distance"
CLASSIFIER, PUBLIC = "classifier", "public network"  # What the names of judges begin with.
NAMES = {
    "prior": "prior and denoiser, no flow",
    "fdrl": "FDRL",
    "flow_matching": "flow matching",
    "coupled": "coupled flow matching",  # From FDRL's mixture.
}
_HEAD = "| method | passes, ms per sample | top probability | classes | distance, classifier |"
_HEAD += " distance, public network |\n|---|---|---|---|---|---|"


def rows(of_run: Row, found: Row, prior: Row, real: Row, judges: Row) -> list[Row]:
    """Returns a row for each judge, from figures of samples, of the prior if any, and of images."""

    def row(figure: str, judge: str) -> Row:
        others = {"prior": prior[figure]} if prior else {}
        return {"metric": METRIC, "value": found[figure], **of_run, "judge": judge, **others}

    every = [of for of in (found, prior, real) if of]
    also = {
        "top probability": [of["top_probability"] for of in every],
        "class shares": [[of["min_share"], of["max_share"]] for of in every],
    }
    made = [{**row(figure, name), "real": real[figure]} for figure, name in judges.items()]
    return [{**made[0], "also": also}, *made[1:]]


def read(file: Path, task: str) -> list[Row]:
    """Reads the rows of a task, one JSON object per line; a missing file has none."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [row for row in map(json.loads, lines) if row["task"] == task]


def table(found: list[Row]) -> str:
    """Returns a table in Markdown for each budget and machine, with means over seeds."""
    parts = []
    for place in dict.fromkeys((row["budget"], row["machine"]) for row in found):
        those = [row for row in found if (row["budget"], row["machine"]) == place]
        lines = [", ".join(place) + "\n", _HEAD]
        lines.append(_line("real images", those, "real", -1))
        for name, passes in dict.fromkeys((row["method"], _passes(row)) for row in those):
            chosen = [r for r in those if (r["method"], _passes(r)) == (name, passes)]
            lines.append(_line(name, chosen, "value", 0))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "no results yet; run with --data"


def _passes(row: Row) -> int:
    # A gradient with respect to the input is a pass forward and one backward, which takes about as
    # long as two forward.
    return int(row["evaluations"] if "evaluations" in row else 3 * row["gradients"])


def _line(name: str, found: list[Row], key: str, place: int) -> str:
    def distance(judge: str) -> str:
        values = [row[key] for row in found if row["judge"].startswith(judge)]
        of_seeds = f" ({', '.join(f'{v:.3g}' for v in values)})"
        several = len(values) > 1 and key == "value"
        return f"{np.mean(values):.3g}{of_seeds if several else ''}" if values else ""

    also = [row["also"] for row in found if "also" in row]
    shares = np.mean([of["class shares"][place] for of in also], axis=0)
    cost = f"{_passes(found[0])}, {np.mean([row['ms_per_sample'] for row in found]):.2g}"
    cells = (
        name,
        cost if key == "value" else "",
        f"{np.mean([of['top probability'][place] for of in also]):.3f}",
        f"{shares[0]:.1%} to {shares[1]:.1%}",
        distance(CLASSIFIER),
        distance(PUBLIC),
    )
    return f"| {' | '.join(cells)} |"
