"""Times of the kernels of a training step on a CPU, by what they compute.

Run: taskset -c 0 python -m benchmarks.kernels [--network cifar10_small] [--batch 32]
  [--precision bfloat16] [--top 10]
Runs training steps under JAX's profiler. GFLOP/s are those of convolutions and matrix products, and
the peak is the rate of the fastest kernel that takes at least 1% of the time.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator import hlo, work
from benchmarks.estimators import NETWORKS, ours
from experiments import devices as precision_lib

_NUM_FLOW_STEPS = 6  # The loops of random numbers have 5 rounds.


def profile(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Returns the mean milliseconds of each kernel in a call of a compiled program, by name."""
    run()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, 3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(rounds):
                run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        milliseconds: dict[str, float] = defaultdict(float)
        for event in (event for plane in planes for line in plane.lines for event in line.events):
            milliseconds[event.name.split(work.ONEDNN)[0]] += event.duration_ns / 1e6 / rounds
    return milliseconds


def kind_and_gflop(program: hlo.Program, kernel: work.Kernel) -> tuple[str, float]:
    """Returns what a kernel computes, and its billions of FLOPs per run (oneDNN: with padding)."""
    bodies = (program.computations[name] for name in kernel.instruction.called)
    inner = [kernel.instruction, *(inner for body in bodies for inner in body)]
    names = {i.target.removeprefix(work.ONEDNN) or i.opcode for i in inner}
    found = {"convolution": "convolutions", "dot": "products", "matmul": "products"}
    kind = next((kind for name, kind in found.items() if name in names), "others")
    return kind, 1e-9 * kernel.flops


def rows(program: hlo.Program, milliseconds: dict[str, float]) -> list[dict[str, Any]]:
    """Returns a row per kernel with its place, kind, milliseconds and FLOPs in a training step."""
    flow = program.loop_body(_NUM_FLOW_STEPS)
    if flow is None:
        raise SystemExit("the compiled program has no loop that is only the flow")
    in_flow = {kernel.instruction.name for kernel in work.kernels(program, flow)}
    found = []
    for kernel in work.kernels(program):
        instruction = kernel.instruction
        if instruction.name not in milliseconds:
            continue
        kind, gflop = kind_and_gflop(program, kernel)
        found.append(
            {
                "place": "flow" if instruction.name in in_flow else "update",
                "kind": kind,
                "ms": milliseconds[instruction.name],
                "gflop": kernel.times * gflop,
                "name": f"{instruction.name} {instruction.shape}",
            }
        )
    return found


def main() -> None:
    """Prints a table of groups and the slowest kernels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="cifar10_small", choices=NETWORKS, help="its name")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=10, help="training steps")
    parser.add_argument("--top", type=int, default=10, help="number of kernels")
    arguments = parser.parse_args()
    precision_lib.set_cpu_flags(bfloat16=arguments.precision == "bfloat16")
    print(precision_lib.describe_devices())
    contenders, _ = ours(
        NETWORKS[arguments.network], arguments.batch, arguments.precision, _NUM_FLOW_STEPS
    )
    step = contenders["train"]
    milliseconds = profile(step, arguments.rounds)
    found = rows(hlo.parse(step.args[0].as_text()), milliseconds)
    whole = sum(row["ms"] for row in found)
    highest = max(row["gflop"] / row["ms"] for row in found if row["ms"] > whole / 100) * 1e3
    print(f"{whole:.1f} ms in kernels per training step; peak {highest:,.0f} GFLOP/s")
    print(f"{'':22}{'ms':>8}{'share':>7}{'GFLOP/s':>9}{'of peak':>8}")

    def line(title: str, part: list[dict[str, Any]]) -> None:
        ms, gflop = (sum(row[key] for row in part) for key in ("ms", "gflop"))
        rate = 1e3 * gflop / ms if ms else 0.0
        of_peak = f"{rate:9,.0f}{rate / highest:8.0%}" if rate else ""
        print(f"{title:22}{ms:8.1f}{ms / whole:7.0%}{of_peak}")

    for place in ("flow", "update"):
        for what in ("convolutions", "products", "others"):
            part = [row for row in found if (row["place"], row["kind"]) == (place, what)]
            line(f"{place}, {what}", part)
    for row in sorted(found, key=lambda row: -row["ms"])[: arguments.top]:
        line(row["place"], [row])
        print(f"  {row['name'][:90]}")


if __name__ == "__main__":
    main()
