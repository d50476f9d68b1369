"""Faults of numbers and of time: NaN in a batch, and a jumping clock."""

import json
from pathlib import Path

from benchmarks.faults import program
from benchmarks.faults.outcome import Outcome


def poison_batch(folder: Path) -> Outcome:
    """Puts NaN into a batch of a run with train.on_divergence=rollback."""
    run, log, last = folder / "run", folder / "log", 20
    changes = {"train.on_divergence": "rollback", "log.every_steps": 1}
    _run_with("nan=8", run, last, log, changes)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    printed, skipped = program.printed(log), records[-1]["skipped_batches"]
    expected = "rollback 1 of 3: resuming from step 5"
    complaints = [] if expected in printed else [printed]
    if records[-1]["loss"] is None or records[-1]["rollbacks"] != 1:
        complaints.append(f"the last record is {records[-1]}")
    return Outcome("NaN in a batch", 1, f"the {skipped} batches since the checkpoint", complaints)


def let_clock_jump(folder: Path) -> Outcome:
    """Trains with a clock that jumps back by ten hours, and forward by ten hours at a restart."""
    run, log, last = folder / "run", folder / "log", 20
    often = {"log.every_steps": 1}
    _run_with("clock=5", run, 10, log, often)
    _run_with("clock=5", run, last, log, often)
    whole = program.train_to(folder / "whole", last, log)
    complaints = [] if program.state_digest(run, last) == whole else ["the state differs"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    complaints += [f"record {r}" for r in records if r["steps_per_second"] <= 0]
    return Outcome("clock jumps by hours", 3, "nothing: equal bit for bit", complaints)


def _run_with(
    fault: str, run: Path, last: int, log: Path, changes: dict[str, object] | None = None
) -> None:
    changes = (changes or {}) | {"train.num_steps": last}
    process = program.start(program.injected_command(fault, run, changes), log)
    try:
        program.wait_for_step(process, run, last)
    finally:
        program.kill(process)
