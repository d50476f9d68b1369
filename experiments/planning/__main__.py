"""The process that compiles a plan: `python -m experiments.planning REQUEST.json ANSWER.json`.

`process.run` starts it. It writes its results, and errors for the user, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

from experiments.data import DataOptions, load_if_given
from experiments.errors import UserError, first_line
from experiments.machine import memory
from experiments.planning import compiler, hlo, roofline, targets
from experiments.planning.compiler import Compiled
from experiments.planning.targets import Target
from experiments.settings import Settings, section


def main(request: Path, answer: Path) -> None:
    """Compiles the programs of a request."""
    wanted = json.loads(request.read_text())
    try:
        found = plan(wanted["settings"], wanted["data_dir"], wanted["target"])
    except UserError as error:
        found = {"error": str(error)}
    answer.write_text(json.dumps(found))


def plan(settings: Settings, data_dir: str, text: str) -> dict[str, Any]:
    """Compiles train step and sampler, and returns what they need, as values for JSON.

    Raises:
      UserError: for settings that cannot run on the target.
    """
    target = targets.parse(text)
    try:
        devices = compiler.devices_of(target)
    except RuntimeError as error:  # A slice that does not exist, such as 3x3.
        raise UserError(f"--target={text}: {first_line(error)[:300]}") from error
    settings = compiler.prepare(settings)
    options = DataOptions(**section(settings, "data"))
    source, is_given = load_if_given(options._replace(dir=data_dir or options.dir))
    found: dict[str, Any] = {
        "settings": settings,
        "num_devices": len(devices),
        "has_data": is_given,
        "event_shape": source.event_shape,
    }
    try:
        compiled = compiler.train_step(settings, source, devices)
    except RuntimeError as error:
        if memory.explain(error) is None:
            raise
        return {**found, "out_of_memory": first_line(error)[:300]}
    found["train"] = _described(compiled, target, settings, settings["flow.num_steps"])
    if target.platform == "gpu":
        # A second size, for the line through both. The TPU compiler needs minutes for it.
        double = {**settings, "train.batch_size": 2 * settings["train.batch_size"]}
        found["double"] = compiler.train_step(double, source, devices).memory
    compiled, size = compiler.sampler(settings, source, devices)
    num_flow_steps = settings["flow.num_steps"] + settings["flow.num_refine_steps"]
    found["sampler"] = _described(compiled, target, settings, num_flow_steps)
    return {**found, "samples_per_device": size}


def _described(
    compiled: Compiled, target: Target, settings: Settings, num_flow_steps: int
) -> dict[str, Any]:
    found = roofline.cost(hlo.parse(compiled.text), target, settings["precision"], num_flow_steps)
    return {
        "compilation_seconds": compiled.seconds,
        "memory": compiled.memory,
        "flops": compiled.flops,
        "cost": found._asdict(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
