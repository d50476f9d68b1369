"""The process that compiles a plan, which `process.run` starts: `... experiments.planning PARENT`.

It reads a request as JSON and writes the results, or an error for the user, as a line of JSON.
"""

import json
import sys
from typing import Any

from experiments.data import DataOptions, load_if_given
from experiments.errors import OUT_OF_MEMORY, UserError, first_line
from experiments.machine import interrupts
from experiments.planning import compiler, hlo, roofline, targets
from experiments.planning.compiler import Compiled
from experiments.settings import Settings, section


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
        "has_data": is_given,
        "event_shape": source.event_shape,
    }

    def described(compiled: Compiled, num_flow_steps: int) -> dict[str, Any]:
        program = hlo.parse(compiled.text)
        cost = roofline.cost(program, target, settings["precision"], num_flow_steps)
        return {"memory": compiled.memory, "cost": cost._asdict()}

    flow_steps = settings["flow.num_steps"]
    try:
        compiled = compiler.train_step(settings, source, devices)
        found["train"] = described(compiled, flow_steps)
        found["flops"] = compiled.flops
        compiled, found["samples_per_device"] = compiler.sampler(settings, source, devices)
        flow_steps += settings["flow.num_refine_steps"]
        found["sampler"] = described(compiled, flow_steps)
        if target.platform == "gpu":
            # A second size, for the line through both. The TPU compiler needs minutes for it.
            double = {**settings, "train.batch_size": 2 * settings["train.batch_size"]}
            found["double"] = compiler.train_step(double, source, devices).memory
    except RuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        if "sampler" not in found:  # Otherwise only the second size does not fit.
            found["out_of_memory"] = first_line(error)[:300]
    return found


if __name__ == "__main__":
    interrupts.end_with(int(sys.argv[1]))
    try:
        answer = plan(*json.load(sys.stdin))
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
