"""What the compilers for GPUs and TPUs make of the training step, read from the compiled text.

Nothing runs: there is no GPU and no TPU. Each test names what would be slow, or wrong, on one. A
case is compiled once.
"""

import functools
import math
import re
from typing import NamedTuple

import jax
import pytest

from benchmarks.accelerator import compiler, hlo, targets, work
from experiments import settings
from experiments.main import read_config

HOST_TARGETS = re.compile(r"callback|infeed|outfeed|SendToHost|RecvFromHost", re.I)
# XLA sends the gradients in a few parts of limited size, so that the first may start early.
MAX_ALL_REDUCE_BYTES = 30 * 2**20
# The slope of LeakyReLU's derivative and the like; no activation is that small.
MIN_CHANNELS = 8

# Every kind of layer of the paper's networks, in seconds of compilation.
SMALL = {
    "network.name": "resnet",
    "network.width": 16,
    "network.blocks": ((16, 1), (32, 2)),
}


class Case(NamedTuple):
    """A training step of the paper to compile, in full or with a small network."""

    config: str
    target: str
    kernels: int | None  # Pinned number per flow step; `None` where nobody has counted them yet.
    is_full: bool = False
    precision: str = "bfloat16"
    rank: int = 64  # Of the prior of a small network; 0 for the full covariance.

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


class Step:
    """A compiled training step and its text, read."""

    def __init__(self, case: Case) -> None:
        changes = {} if case.is_full else {**SMALL, "prior.rank": case.rank}
        config, _ = read_config(case.config)
        wanted = settings.from_config(config.to_dict())
        used = compiler.prepare(settings.replace(wanted, {**changes, "precision": case.precision}))
        self.target, source = targets.parse(case.target), compiler.source_of(used.data)
        self.batch_size = used.train.batch_size // self.target.num_devices  # Per device.
        self.compiled = compiler.training_step(used, source, compiler.devices_of(self.target))
        self.program = hlo.parse(self.compiled.text)
        self.flow = self.program.loop_body(used.flow.num_steps)
        assert self.flow is not None
        self.flow_instructions = self._inside(self.flow)  # Also those inside fusions.
        # Shapes, of the state with a leading axis of devices.
        (_, self.state, constants, *_), _ = self.compiled.lowered.args_info
        # Whether each device has only some rows of the prior's factor.
        rows = constants.prior["factor"].shape[1]
        self.has_distributed_factor = rows < math.prod(source.event_shape)

    def collectives(self, computation=None):
        """Returns the kernels that move data between devices, of all or of one computation."""
        return [k for k in work.kernels(self.program, computation) if k.collective]

    def _inside(self, computation):
        found = []
        for instruction in self.program.computations.get(computation, ()):
            inner = (self._inside(name) for name in instruction.called)
            found += [instruction, *(one for part in inner for one in part)]
        return found


compiled_once = functools.cache(Step)


def pytest_generate_tests(metafunc):
    full = metafunc.config.getoption("--full")
    cases = [case for case in CASES if full or not case.is_full]
    metafunc.parametrize("case", cases, ids=str, scope="session")


@pytest.fixture
def step(case):
    return compiled_once(case)


def gradient_bytes(step):
    shapes = jax.tree.leaves(step.state.variables["params"])
    return sum(4 * math.prod(leaf.shape[1:]) for leaf in shapes)


def convolutions(step):
    """Convolutions of the flow: of XLA's own, and of cuDNN."""
    found = step.flow_instructions
    own = [i for i in found if i.opcode == "convolution"]
    return own, [i for i in found if i.target.startswith("__cudnn$conv")]


def test_gradients_are_all_reduced_once_and_nothing_is_sent_in_the_flow(step):
    sent = step.collectives()
    assert all(kernel.times == 1 for kernel in sent)
    reduced = [kernel for kernel in sent if kernel.collective == "all-reduce"]
    one_way = sum(kernel.sent_bytes(2) for kernel in reduced)
    # Gradients, and a few numbers of metrics.
    assert gradient_bytes(step) <= one_way <= gradient_bytes(step) + 1_000
    assert len(reduced) <= 1 + gradient_bytes(step) // MAX_ALL_REDUCE_BYTES
    # The noise of all examples and its products with the rows of the factor on each device.
    others = {kernel.collective for kernel in sent} - {"all-reduce"}
    assert others == ({"all-gather", "all-to-all"} if step.has_distributed_factor else set())
    assert not step.collectives(step.flow)


def test_the_flow_calls_native_convolutions_in_the_type_of_the_run(step, case):
    own, of_cudnn = convolutions(step)
    if step.target.platform == "gpu":
        assert not own, "XLA computes a convolution itself, in a slow kernel"
        names = {i.target for i in of_cudnn}
        assert "__cudnn$convBackwardInput" in names
        assert not [name for name in names if "BackwardFilter" in name]
        forward = [i for i in of_cudnn if "BackwardInput" not in i.target]
        assert len(of_cudnn) == 2 * len(forward)
        assert not [i for i in of_cudnn if "lhs_dilate" in i.attributes]
        # Channels last: anything else would be transposed for the tensor cores.
        assert all("b01f" in i.attributes for i in of_cudnn)
    else:
        assert not of_cudnn
        # Only at stride 2: there the TPU skips the zeros between.
        dilated = [i for i in own if "lhs_dilate" in i.attributes]
        strided = [i for i in own if "stride=2x2" in i.attributes]
        assert len(dilated) == len(strided)
    dtype = {"bfloat16": "bf16", "float32": "f32"}[case.precision]
    assert {i.arrays[0].dtype for i in (*own, *of_cudnn)} == {dtype}


def test_weights_are_cast_outside_of_the_loop(step, case):
    carried = {
        array.dims: array.dtype
        for loop in step.program.loops()
        if loop.called[0] == step.flow
        for array in loop.arrays
        if len(array.dims) == 4 and array.dims[0] != step.batch_size
    }
    dtype = {"bfloat16": "bf16", "float32": "f32"}[case.precision]
    kernels = {dims: found for dims, found in carried.items() if dims[0] == dims[1] <= 3}
    assert kernels
    assert set(kernels.values()) == {dtype}
    casts = [i for i in step.flow_instructions if i.opcode == "convert"]
    shapes = {array.dims for i in casts for array in i.arrays}
    assert not [dims for dims in kernels if dims in shapes]


def test_the_state_is_donated(step):
    header = step.compiled.text.partition("\n")[0]
    num = len(jax.tree.leaves(step.state))
    assert len(re.findall(r"\{\d+\}: \(\d+", header)) == num
    assert step.compiled.memory["results"] < 2**20


def test_the_host_is_never_called(step):
    everything = [i for body in step.program.computations.values() for i in body]
    assert not [i for i in everything if i.opcode in ("infeed", "outfeed", "send", "recv")]
    assert not [i.target for i in everything if HOST_TARGETS.search(i.target)]


def test_no_activation_is_transposed_in_the_flow(step):
    if step.target.platform == "tpu" and step.batch_size < MIN_CHANNELS:
        pytest.skip("the TPU compiler trades positions for examples in batches below 8")

    def is_activation(array):
        return len(array.dims) >= 4 and array.dims[-1] >= MIN_CHANNELS

    moved = [
        i
        for i in step.flow_instructions
        if i.opcode in ("transpose", "copy") and any(map(is_activation, i.arrays))
    ]
    assert not moved


def test_the_program_fits_into_the_memory_of_a_device(step):
    assert sum(step.compiled.memory.values()) < step.target.memory_bytes


def test_flops_before_and_after_compilation_agree(step):
    # Both rewrite small products, and the TPU compiler pads; a loop that counts once loses 99%. In
    # float32, XLA for GPUs computes one input gradient at stride 2, outside of the flow, with the
    # zeros between: 0.4% of the work of the small network.
    before, after = step.compiled.flops, work.flops(step.program)
    slack = 1.5 if step.target.platform == "tpu" else 1.005
    assert 0.98 * before <= after <= slack * before


def test_the_number_of_kernels_per_flow_step_is_the_pinned_one(step, case):
    num = len(list(work.kernels(step.program, step.flow)))
    if case.kernels is None:
        pytest.skip(f"not pinned yet: {num} kernels per flow step")
    assert num == case.kernels, (
        f"{num} kernels per flow step, and not {case.kernels}. Fewer: write the new number into "
        "CASES. More: a change of the code has split or copied something in the loop; "
        "look for it in work.kernels(step.program, step.flow). If an update of JAX or cuDNN "
        "changes it for every case, write the new numbers and say so in the changelog."
    )
