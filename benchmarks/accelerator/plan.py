"""Plans a run for hardware that you do not have, from what XLA compiles for it.

Run: python -m benchmarks.accelerator.plan --config=cifar10 --target=gpu:h100:8 [--config.KEY=VALUE]
The GPUs are a100, h100, h200 and b200, followed by their number; the TPUs v4, v5e, v5p and v6e,
followed by the shape of the slice, as in tpu:v5e:4x4. Neither images nor devices are needed, but
XLA's compiler: python -m pip install 'jax[cuda13]' for GPUs, 'jax[tpu]' for TPUs. docs/scaling.md
says how to read the plan.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # Imported later, because JAX reads its environment when it is imported.
    from benchmarks.accelerator.compiler import Compiled
    from benchmarks.accelerator.roofline import Cost
    from benchmarks.accelerator.targets import Target
    from experiments.settings import Settings

_GIB = 2**30
_ADVICE = (
    "  try network.remat=True, a larger train.num_micro_batches, or a smaller train.batch_size or "
    "prior.rank; for sampling, a smaller evaluate.batch_size"
)


def main(argv: Sequence[str]) -> None:
    """Prints the plan, or an error that the user can fix in one line."""
    if not any(argument.startswith("--target=") for argument in argv):
        print(__doc__)
        return
    set_up()
    from benchmarks.accelerator import targets
    from experiments.errors import UserError

    *_, text = (a.removeprefix("--target=") for a in argv if a.startswith("--target="))
    rest = [argument for argument in argv if not argument.startswith("--target=")]
    try:
        target = targets.parse(text)
        targets.check_compiler(target)
        print(
            f"compiling for {target.text}: up to a minute for GPUs, several minutes for TPUs",
            file=sys.stderr,
            flush=True,
        )
        print(*lines(make(rest, target)), sep="\n")
    except UserError as error:
        sys.exit(f"error: {error}")


def set_up() -> None:
    """Lets XLA's compilers work without their devices, while JAX itself runs on the CPU.

    It must be called before JAX is imported, which reads these variables.
    """
    os.environ.pop("XLA_FLAGS", None)  # Flags for XLA's CPU compiler have no effect.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # There may be no driver.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # Outside of Google's cloud there is no answer.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # Several compilers may share libtpu.


class Program(NamedTuple):
    """A compiled program: its memory per device in bytes by purpose, and its cost."""

    memory: Mapping[str, int]
    cost: "Cost"

    @property
    def num_bytes(self) -> int:
        return sum(self.memory.values())


class Plan(NamedTuple):
    """A run on a target. Programs are `None` if the compiler ran out of the target's memory."""

    settings: "Settings"  # With the precision that the target uses.
    target: "Target"
    event_shape: tuple[int, ...]
    data_bytes: int  # Images that stay in the memory of each device, at most.
    out_of_memory: str = ""  # The compiler's message.
    train: Program | None = None
    flops: float = 0.0  # Of a training step per device.
    double: int | None = None  # Bytes per device with twice the batch, if they were computed.
    sampler: Program | None = None
    num_drawn: int = 0  # Samples of one run of the sampler on all devices.

    @property
    def batch_size(self) -> int:
        """Examples per device and step."""
        return self.settings.train.batch_size // self.target.num_devices


def make(argv: Sequence[str], target: "Target") -> Plan:
    """Compiles the training step and the sampler of the config that the arguments name.

    Raises:
      UserError: for settings that are not possible, or a compiler that does not work here.
    """
    from benchmarks.accelerator import compiler, hlo, roofline
    from experiments import main as program
    from experiments import settings, train
    from experiments.errors import UserError, first_line

    command, _ = program.parse(["--mode=dry_run", *argv])
    if command.config is None:
        raise UserError("--config=FILE.py is missing; the folder configs/ has examples")
    try:
        devices = compiler.devices_of(target)
    except RuntimeError as error:  # Such as a slice that does not exist, 3x3.
        raise UserError(f"--target={target.text}: {first_line(error)[:300]}") from error
    wanted = settings.from_config(command.config)
    source = compiler.source_of(wanted.data)
    wanted = train.fitted(command, wanted, target.platform, source.event_shape)
    used = compiler.prepare(wanted)
    stored = source.open_feed is not None
    data_bytes = used.data.in_memory_megabytes * 2**20 if stored else 0
    plan = Plan(used, target, source.event_shape, data_bytes)

    def described(compiled: "Compiled", num_flow_steps: int) -> Program:
        cost = roofline.cost(hlo.parse(compiled.text), target, used.precision, num_flow_steps)
        return Program(compiled.memory, cost)

    num_steps, num_refine_steps = used.flow.num_steps, used.flow.num_refine_steps
    try:
        compiled = compiler.training_step(used, source, devices)
        plan = plan._replace(train=described(compiled, num_steps), flops=compiled.flops)
        compiled, per_device = compiler.sampler(used, source, devices)
        drawn = described(compiled, num_steps + num_refine_steps)
        plan = plan._replace(sampler=drawn, num_drawn=per_device * target.num_devices)
        if target.platform == "gpu":
            # A second size, for the line through both. The TPU compiler needs minutes for it.
            twice = settings.replace(used, {"train.batch_size": 2 * used.train.batch_size})
            memory = compiler.training_step(twice, source, devices).memory
            plan = plan._replace(double=sum(memory.values()))
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if plan.sampler is None:  # Otherwise only the second size does not fit.
            plan = plan._replace(out_of_memory=first_line(error)[:300])
    return plan


def lines(plan: Plan) -> Iterator[str]:
    """Yields the lines of a plan, with the answer first."""
    target, used = plan.target, plan.settings
    hosts = f" in {target.num_hosts} hosts" if target.num_hosts > 1 else ""
    devices = f"{target.num_devices} x {target.machine['title']}{hosts}"
    yield f"plan for {devices} ({target.text}); compiled for it and not run"
    if plan.train is None or plan.sampler is None:
        what = "sampling" if plan.train else "training"
        yield f"does not fit: {what}: {plan.out_of_memory}"
        yield _ADVICE
        return
    yield from _memory_lines(plan, plan.train, plan.sampler)
    step, draw = plan.train.cost, plan.sampler.cost
    how = (
        "the TPU compiler's own count of cycles"
        if target.platform == "tpu"
        else f"at least {target.machine['kernel_seconds'] * 1e6:g} microseconds per kernel"
    )
    num_steps, num_samples = used.train.num_steps, used.evaluate.num_samples
    num_batches = -(-num_samples // plan.num_drawn)
    for what, of_step, of_batch in (
        ("roofline:", step.seconds, draw.seconds),
        (f"an estimate with {how}: about", step.expected_seconds, draw.expected_seconds),
    ):
        hours = (num_steps * of_step + num_batches * of_batch) / 3_600
        yield (
            f"whole run, {what} {hours:.3g} h, {hours * target.num_devices:.3g} device hours "
            f"({num_steps:,} training steps, {num_samples:,} samples)"
        )
    yield f"training step, roofline: {_ms(step.seconds)}, limited by {step.bound}"
    yield (
        f"  {_ms(step.compute_seconds)} in kernels that matrix products limit, "
        f"{_ms(step.memory_seconds)} in those that memory limits, "
        f"{_ms(step.link_seconds)} of communication"
    )
    yield (
        f"  per device: {plan.flops / 1e12:.4g} TFLOP, "
        f"{step.memory_bytes / 1e9:.4g} GB through memory, {step.sent_bytes / 1e6:.4g} MB to "
        f"other devices in {step.num_collectives} collective operations"
    )
    of_flow = f", {step.num_flow_kernels} per flow step" if step.num_flow_kernels else ""
    yield f"  {step.num_kernels:,} kernels{of_flow}"
    yield f"{plan.num_drawn} samples, roofline: {draw.seconds:.3g} s, limited by {draw.bound}"
    yield (
        f"network: input {plan.event_shape}, {used.precision}; batch {used.train.batch_size}, "
        f"{plan.batch_size} per device"
    )


def _memory_lines(plan: Plan, train: Program, sampler: Program) -> Iterator[str]:
    there = plan.target.memory_bytes
    needed = [program.num_bytes + plan.data_bytes for program in (train, sampler)]
    parts = [f"{name} {size / _GIB:.2f}" for name, size in train.memory.items()]
    if plan.data_bytes:
        parts.append(f"images (at most) {plan.data_bytes / _GIB:.2f}")
    usable = plan.target.machine["usable"]
    share = f", the {usable:.0%} that JAX uses by default" if usable < 1 else ""
    yield (
        f"{'fits' if max(needed) <= there else 'does not fit'}: training needs "
        f"{needed[0] / _GIB:.2f} and sampling {needed[1] / _GIB:.2f} of {there / _GIB:.2f} GiB "
        f"per device{share}; training: {', '.join(parts)}"
    )
    if max(needed) > there:
        yield _ADVICE
    # From two compiled sizes or, from one, as if all temporary memory grew with the batch.
    size, added = plan.batch_size, train.memory["temporary"]
    how = f"in proportion to {size}"
    if plan.double is not None:
        added, how = plan.double - train.num_bytes, f"the line through {size} and {2 * size}"
    if added <= 0:
        yield "largest batch per device: memory does not limit it"
        return
    largest = max(size + int((there - needed[0]) // (added / size)), 0)
    yield f"largest batch per device that fits: about {largest:,} (an estimate, {how})"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    main(sys.argv[1:])
