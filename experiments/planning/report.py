"""The report of a plan."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.planning.roofline import Cost
from experiments.planning.targets import Target
from experiments.settings import Settings

_GIB = 2**30


class Plan(NamedTuple):
    """A run on a target machine."""

    settings: Settings  # With the precision that the machine uses.
    target: Target
    found: dict[str, Any]  # The result of the process that compiles.

    @property
    def batch_size(self) -> int:
        """Examples per device and step."""
        return int(self.settings["train.batch_size"]) // self.target.num_devices

    @property
    def num_drawn(self) -> int:
        """Samples of one run of the sampler on all devices."""
        return int(self.found["samples_per_device"]) * self.target.num_devices

    @property
    def data_bytes(self) -> int:
        """Largest size of images in memory on each device, if the images are not available."""
        if self.found["has_data"]:
            return 0
        return int(self.settings["data.in_memory_megabytes"]) * 2**20

    def needed_bytes(self, part: str) -> int:
        """Bytes per device of "train" or "sampler"."""
        return sum(self.found[part]["memory"].values()) + self.data_bytes

    def fits(self, *parts: str) -> bool:
        """Whether "train", "sampler" or both fit into the memory of a device."""
        return all(
            part in self.found and self.needed_bytes(part) <= self.target.memory_bytes
            for part in parts
        )

    @property
    def largest_batch_size(self) -> int | None:
        """Estimated largest batch per device; `None` where memory does not grow with it.

        It is extrapolated linearly from two compiled sizes or, from one, assuming that all
        temporary memory is proportional to the batch.
        """
        own, size = self.found["train"]["memory"], self.batch_size
        added = own["temporary"]
        if "double" in self.found:
            added = sum(self.found["double"].values()) - sum(own.values())
        if added <= 0:
            return None
        free = self.target.memory_bytes - self.needed_bytes("train")
        return max(size + int(free // (added / size)), 0)


def lines(plan: Plan) -> Iterator[str]:
    """Yields the lines of a plan, with the answer first."""
    target, settings, found = plan.target, plan.settings, plan.found
    hosts = f" in {target.num_hosts} hosts" if target.num_hosts > 1 else ""
    devices = f"{target.num_devices} x {target.machine['title']}{hosts}"
    yield f"plan for {devices} ({target.text}); compiled for it and not run"
    if "out_of_memory" in found:
        what = "sampling" if "train" in found else "training"
        yield f"does not fit: {what}: {found['out_of_memory']}"
        yield from _advice(plan)
        return
    yield _fit_line(plan)
    if not plan.fits("train", "sampler"):
        yield from _advice(plan)
    yield _largest_line(plan)
    step, draw = (Cost(**found[part]["cost"]) for part in ("train", "sampler"))
    how = (
        "the TPU compiler's own count of cycles"
        if target.platform == "tpu"
        else f"at least {target.machine['kernel_seconds'] * 1e6:g} microseconds per kernel"
    )
    num_steps, num_samples = settings["train.num_steps"], settings["evaluate.num_samples"]
    num_batches = -(-num_samples // plan.num_drawn)
    for what, of_step, of_batch in (
        ("roofline:", step.seconds, draw.seconds),
        (f"an estimate with {how}: about", step.expected_seconds, draw.expected_seconds),
    ):
        hours = (num_steps * of_step + num_batches * of_batch) / 3_600
        yield (
            f"whole run, {what} {hours:.3g} h, {hours * target.num_devices:.3g} device hours "
            f"({num_steps:,} train steps, {num_samples:,} samples)"
        )
    yield f"train step, roofline: {_ms(step.seconds)}, limited by {step.bound}"
    yield (
        f"  {_ms(step.compute_seconds)} in kernels that matrix products limit, "
        f"{_ms(step.memory_seconds)} in those that memory limits, "
        f"{_ms(step.link_seconds)} of communication"
    )
    yield (
        f"  per device: {found['flops'] / 1e12:.4g} TFLOP, "
        f"{step.memory_bytes / 1e9:.4g} GB through memory, {step.sent_bytes / 1e6:.4g} MB to "
        f"other devices in {step.num_collectives} collective operations"
    )
    of_flow = f", {step.num_flow_kernels} per flow step" if step.num_flow_kernels else ""
    yield f"  {step.num_kernels:,} kernels{of_flow}"
    yield f"{plan.num_drawn} samples, roofline: {draw.seconds:.3g} s, limited by {draw.bound}"
    yield (
        f"network: input {tuple(found['event_shape'])}, {settings['precision']}; batch "
        f"{settings['train.batch_size']}, {plan.batch_size} per device"
    )


def _fit_line(plan: Plan) -> str:
    memory = plan.found["train"]["memory"]
    parts = [f"{name} {size / _GIB:.2f}" for name, size in memory.items()]
    if plan.data_bytes:
        parts.append(f"images (not given, at most) {plan.data_bytes / _GIB:.2f}")
    usable = plan.target.machine["usable"]
    share = f", the {usable:.0%} that JAX uses by default" if usable < 1 else ""
    return (
        f"{'fits' if plan.fits('train', 'sampler') else 'does not fit'}: training needs "
        f"{plan.needed_bytes('train') / _GIB:.2f} and sampling "
        f"{plan.needed_bytes('sampler') / _GIB:.2f} of {plan.target.memory_bytes / _GIB:.2f} GiB "
        f"per device{share}; training: {', '.join(parts)}"
    )


def _largest_line(plan: Plan) -> str:
    if (largest := plan.largest_batch_size) is None:
        return "largest batch per device: memory does not limit it"
    how = (
        f"the line through {plan.batch_size} and {2 * plan.batch_size}"
        if "double" in plan.found
        else f"in proportion to {plan.batch_size}"
    )
    return f"largest batch per device that fits: about {largest:,} (an estimate, {how})"


def _advice(plan: Plan) -> Iterator[str]:
    """Yields suggestions for a run that does not fit."""
    settings, trains = plan.settings, plan.fits("train")
    drawn = min(settings["evaluate.batch_size"], settings["evaluate.num_samples"])
    of_sampling = f"--config.evaluate.batch_size={max(drawn // 2, 1)}"
    if trains:
        yield f"  try {of_sampling}: only sampling does not fit"
    elif "train" in plan.found:
        yield from _micro_batches(plan)
    if not settings["network.remat"]:
        yield "  try --config.network.remat=true, which needs less memory and more time"
    if settings["prior.name"] == "data_dependent":
        yield "  try a smaller --config.prior.rank, such as 512"
    if not trains and plan.batch_size > 1:
        smaller = plan.batch_size // 2 * plan.target.num_devices
        yield f"  try --config.train.batch_size={smaller}, or more devices for the same batch"
    if not trains:
        yield f"  if sampling needs the memory: {of_sampling}"


def _micro_batches(plan: Plan) -> Iterator[str]:
    """Yields the least number of micro-batches that fits; the temporary memory is that of one."""
    temporary, num = plan.found["train"]["memory"]["temporary"], plan.batch_size
    free = plan.target.memory_bytes - plan.needed_bytes("train") + temporary
    if free <= 0:
        yield "  parameters and constants do not fit, so a smaller batch does not help"
        return
    used = plan.settings["train.num_micro_batches"]
    parts = (n for n in range(used + 1, num + 1) if num % n == 0 and temporary * used / n <= free)
    if fewest := next(parts, None):
        yield f"  try --config.train.num_micro_batches={fewest}, with the same results"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
