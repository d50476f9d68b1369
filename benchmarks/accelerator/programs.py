"""Training steps of the paper's configs, compiled once per case for machines that are not there."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.accelerator import compiler, hlo, targets, work
from benchmarks.accelerator.compiler import Compiled
from benchmarks.accelerator.targets import Target
from experiments import settings
from experiments.main import read_config
from experiments.settings import Settings

# Every kind of layer of the paper's networks, in seconds of compilation.
SMALL = {
    "network.name": "resnet",
    "network.width": 16,
    "network.blocks": ((16, 1), (32, 2)),
}


class Case(NamedTuple):
    """A training step to compile.

    Attributes:
      config: of the paper; it fixes the size of the images.
      target: the machine.
      kernels: pinned number of kernels per flow step; `None` where nobody has counted them yet.
      is_full: whether it has the paper's network; others have a small one.
      precision: of the computation.
      rank: of the prior of a small network; 0 for the full covariance.
    """

    config: str
    target: str
    kernels: int | None
    is_full: bool = False
    precision: str = "bfloat16"
    rank: int = 64

    def __str__(self) -> str:
        size = "full" if self.is_full else f"small-rank{self.rank}"
        return f"{self.config}-{self.target}-{self.precision}-{size}"


CASES = (
    Case("cifar10", "gpu:h100:8", 28),
    Case("celeba", "gpu:h100:8", 28, rank=0),
    Case("lsun_church", "gpu:h100:8", 29),
    Case("cifar10", "gpu:h100:8", 27, precision="float32"),
    Case("cifar10", "tpu:v5e:2x2", None),
    Case("cifar10", "gpu:h100:8", 112, is_full=True),
    Case("celeba", "gpu:h100:8", 75, is_full=True),
    Case("lsun_church", "gpu:h100:8", 86, is_full=True),
    Case("cifar10", "tpu:v5e:4x4", 198, is_full=True),
    Case("celeba", "tpu:v5e:4x4", 144, is_full=True),
    Case("lsun_church", "tpu:v5e:4x4", None, is_full=True),
)


class Step(NamedTuple):
    """A compiled training step.

    Attributes:
      compiled: what XLA made.
      program: its text, read.
      flow: name of the computation of one flow step.
      target: the machine.
      settings: of the run.
      state: shapes of the train state, with a leading axis of devices.
      has_distributed_factor: whether each device has only some rows of the prior's factor.
    """

    compiled: Compiled
    program: hlo.Program
    flow: str
    target: Target
    settings: Settings
    state: object
    has_distributed_factor: bool

    @property
    def flow_instructions(self) -> list[hlo.Instruction]:
        """All instructions of one flow step, also those inside fusions."""
        return list(self._inside(self.flow))

    def collectives(self, computation: str | None = None) -> list[work.Kernel]:
        """Returns the kernels that move data between devices, of all or of one computation."""
        return [k for k in work.kernels(self.program, computation) if k.collective]

    @property
    def batch_size(self) -> int:
        """Examples per device."""
        return self.settings.train.batch_size // self.target.num_devices

    def _inside(self, computation: str) -> Iterator[hlo.Instruction]:
        for instruction in self.program.computations.get(computation, ()):
            yield instruction
            for name in instruction.called:
                yield from self._inside(name)


@functools.cache
def step(case: Case) -> Step:
    """Compiles a case."""
    changes = {} if case.is_full else {**SMALL, "prior.rank": case.rank}
    config, _ = read_config(case.config)
    wanted = settings.from_config(config.to_dict())
    used = compiler.prepare(settings.replace(wanted, {**changes, "precision": case.precision}))
    target, source = targets.parse(case.target), compiler.source_of(used.data)
    compiled = compiler.training_step(used, source, compiler.devices_of(target))
    program = hlo.parse(compiled.text)
    flow = program.loop_body(used.flow.num_steps)
    assert flow is not None
    arguments, _ = compiled.lowered.args_info
    _, state, constants, *_ = arguments
    rows = constants.prior["factor"].shape[1]
    is_distributed = rows < math.prod(source.event_shape)
    return Step(compiled, program, flow, target, used, state, is_distributed)
