"""From a compiled program to its time at the limits of a machine: the roofline.

Each kernel takes as long as its products at the peak, or as its bytes through memory at the
bandwidth of the data sheet, whichever is longer. Kernels run one after the other, and communication
is not hidden behind them. What it takes to start a kernel, and what it misses of the peak, is not
counted: real steps take longer, and those of small batches several times as long. Only what a GPU
finds in its cache is faster.

A second figure is nearer to what will be seen, and only an estimate: for TPUs the compiler's own
count of cycles, for GPUs the roofline with a least time per kernel.
"""

from typing import NamedTuple

from experiments.planning import hlo
from experiments.planning.hlo import Program
from experiments.planning.targets import Target


class Cost(NamedTuple):
    """What one run of a program costs on each device.

    Attributes:
      memory_bytes: through the device's memory.
      sent_bytes: that leave the device for others.
      num_collectives: operations that move data between devices.
      num_kernels: started on the device.
      num_flow_kernels: kernels per flow step; 0 where the flow is no loop.
      compute_seconds: of the kernels that products limit.
      memory_seconds: of the kernels that memory limits.
      link_seconds: of communication.
      expected_seconds: the second figure.
    """

    memory_bytes: float = 0.0
    sent_bytes: float = 0.0
    num_collectives: int = 0
    num_kernels: int = 0
    num_flow_kernels: int = 0
    compute_seconds: float = 0.0
    memory_seconds: float = 0.0
    link_seconds: float = 0.0
    expected_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Time of one run."""
        return self.compute_seconds + self.memory_seconds + self.link_seconds

    @property
    def bound(self) -> str:
        """What most of the time goes to."""
        parts = {
            "matrix products": self.compute_seconds,
            "memory bandwidth": self.memory_seconds,
            "communication": self.link_seconds,
        }
        return max(parts, key=lambda name: parts[name])


def cost(program: Program, target: Target, precision: str, num_flow_steps: int) -> Cost:
    """Returns what one run of a program costs.

    Args:
      program: the train step or the sampler.
      target: what it is compiled for.
      precision: of the run, never "auto".
      num_flow_steps: rounds of the loop of the flow.
    """
    peak, bandwidth = target.peaks[precision], target.memory_bandwidth
    total = Cost()
    for kernel in program.kernels():
        sent = 0.0
        if hlo.is_collective(kernel.instruction):
            sent = hlo.sent_bytes(kernel, target.num_devices)
        compute, memory = kernel.flops / peak, kernel.num_bytes / bandwidth
        own = Cost(
            memory_bytes=kernel.num_bytes,
            sent_bytes=sent,
            num_collectives=int(hlo.is_collective(kernel.instruction)),
            num_kernels=1,
            compute_seconds=compute if compute >= memory else 0.0,
            memory_seconds=memory if memory > compute else 0.0,
            link_seconds=sent / target.link_bandwidth,
            expected_seconds=sent / target.link_bandwidth
            + (
                kernel.instruction.estimated_cycles / target.clock
                if target.platform == "tpu"
                else max(compute, memory, target.kernel_seconds)
            ),
        )
        total = Cost._make(a + kernel.times * b for a, b in zip(total, own, strict=True))
    flow = program.loop_body(num_flow_steps) if num_flow_steps > 1 else None
    kernels = program.kernels(flow) if flow else ()
    return total._replace(num_flow_kernels=sum(kernel.times for kernel in kernels))
