"""The rows of the race, as in docs/results.jsonl."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RUN = ("task", "contestant", "settings", "budget", "seed", "machine")  # What determines a run.
METRIC = "Fréchet distance"
NAMES = {"prior": "prior and denoiser, no flow", "fdrl": "FDRL", "flow_matching": "flow matching"}


def of_entry(of_run: Row, found: Row, prior: Row, real: Row, judges: Row) -> list[Row]:
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


def line(row: Row) -> str:
    """Returns a row as a line of text."""
    unit = next(unit for unit in ("evaluations", "gradients") if unit in row)
    return (
        f"{row['budget']}, seed {row['seed']}, {row['method']}, {row[unit]} {unit}: "
        f"{row['value']:.3g} by {row['judge']} (real images {row['real']:.3g})"
    )
