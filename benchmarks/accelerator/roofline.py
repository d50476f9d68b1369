"""Computes the time of a compiled program at the limits of a machine (the roofline).

The time of a kernel is that of its products at the peak rate, or of its bytes at the memory
bandwidth of the data sheet, whichever is longer. Kernels run one after the other, and communication
does not overlap with them. The time to start kernels, and losses relative to the peak, are ignored:
real steps take longer, and with small batches several times as long. Only data in the cache of a
GPU are faster.

A second figure is closer to real times but only an estimate: for TPUs the compiler's count of
cycles, and for GPUs the roofline with a minimum time per kernel.
"""

from typing import NamedTuple

from benchmarks.accelerator import work
from benchmarks.accelerator.hlo import Program
from benchmarks.accelerator.targets import Target


class Cost(NamedTuple):
    """The cost of one run of a program on each device."""

    memory_bytes: float = 0.0  # Read from and written to the device's memory.
    sent_bytes: float = 0.0  # Sent to other devices.
    num_collectives: int = 0  # Operations that move data between devices.
    num_kernels: int = 0
    num_flow_kernels: int = 0  # Per flow step; 0 if its loop is not found.
    compute_seconds: float = 0.0  # Of kernels that are limited by products.
    memory_seconds: float = 0.0  # Of kernels that are limited by memory.
    link_seconds: float = 0.0  # Of communication.
    expected_seconds: float = 0.0  # The second figure.

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.memory_seconds + self.link_seconds

    @property
    def bound(self) -> str:
        parts = {
            "matrix products": self.compute_seconds,
            "memory bandwidth": self.memory_seconds,
            "communication": self.link_seconds,
        }
        return max(parts, key=lambda name: parts[name])


def cost(program: Program, target: Target, precision: str, num_flow_steps: int) -> Cost:
    """Returns the cost of one run of a program, the training step or the sampler."""
    machine = target.machine
    peak, bandwidth = machine["peak"][precision], machine["memory_bandwidth"]
    total = Cost()
    for kernel in work.kernels(program):
        sent = kernel.sent_bytes(target.num_devices)
        link = sent / target.link_bandwidth
        compute, memory = kernel.flops / peak, kernel.num_bytes / bandwidth
        if target.platform == "tpu":
            expected = kernel.instruction.estimated_cycles / (machine["clock_ghz"] * 1e9)
        else:
            expected = max(compute, memory, machine["kernel_seconds"])
        own = Cost(
            memory_bytes=kernel.num_bytes,
            sent_bytes=sent,
            num_collectives=int(kernel.collective is not None),
            num_kernels=1,
            compute_seconds=compute if compute >= memory else 0.0,
            memory_seconds=memory if memory > compute else 0.0,
            link_seconds=link,
            expected_seconds=link + expected,
        )
        total = Cost._make(a + kernel.times * b for a, b in zip(total, own, strict=True))
    flow = program.loop_body(num_flow_steps) if num_flow_steps > 1 else None
    kernels = work.kernels(program, flow) if flow else ()
    return total._replace(num_flow_kernels=sum(kernel.times for kernel in kernels))
