"""Counts the work of a compiled program: kernels, FLOPs, and bytes through memory and links.

XLA's own `cost_analysis` counts the body of a loop once, and is empty for GPUs that this machine
does not have. Here, a loop counts as often as its trip count, if XLA states it, and otherwise once.
The loop over training steps of a dispatch has no trip count, so the figures are those of one train
step.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.accelerator.hlo import Array, Instruction, Program

# Instructions that name or regroup arrays without moving data.
_FREE = (
    *("parameter", "constant", "iota", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("partition-id", "replica-id", "add-dependency", "opt-barrier", "domain"),
)
_CALLS = ("while", "conditional", "call", "async-start")
_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "collective-broadcast",
)
ONEDNN = "__onednn$"  # Before the names of its kernels, in XLA's custom calls for CPUs.
_SLICES = ("dynamic-slice", "slice", "gather")


class Kernel(NamedTuple):
    """A unit of work that a device starts as a whole."""

    instruction: Instruction
    times: int  # How often the program, such as a training step, runs it.
    flops: float  # Of matrix products and convolutions, per run and without padding.
    num_bytes: int  # Read and written in the device's memory, per run.

    @property
    def collective(self) -> str | None:
        """XLA's name of the operation if it moves data between devices, and otherwise `None`."""
        opcode = self.instruction.opcode.removesuffix("-start")
        return opcode if opcode in _COLLECTIVES else None

    def sent_bytes(self, num_devices: int) -> float:
        """Returns the bytes that leave each device in a collective operation, by rings."""
        arrays = self.instruction.arrays
        num_read = sum(len(operand.arrays) for operand in self.instruction.operands)
        if self.instruction.opcode.endswith("-start") and len(arrays) > num_read:
            # It names its operands before its results; an all-reduce only the results.
            arrays = arrays[num_read:]
        share = (num_devices - 1) / num_devices
        times = {
            None: 0.0,
            "all-reduce": 2.0 * share,
            "reduce-scatter": share * num_devices,
            "all-gather": share,
            "all-to-all": share,
        }
        return times.get(self.collective, 1.0) * _all_bytes(arrays)


def kernels(program: Program, computation: str | None = None, times: int = 1) -> Iterator[Kernel]:
    """Yields the units of work of a device, starting at the entry or another computation."""
    for instruction in program.computations[computation or program.entry]:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode in _CALLS:
            rounds = program.trip_count(instruction) or 1
            for name in instruction.called:
                yield from kernels(program, name, times * rounds)
            continue
        num_bytes = _num_bytes(program, instruction)
        yield Kernel(instruction, times, _flops(program, instruction), num_bytes)


def flops(program: Program) -> float:
    """Returns the FLOPs of matrix products and convolutions in one run of a program."""
    return sum(kernel.times * kernel.flops for kernel in kernels(program))


def _flops(program: Program, instruction: Instruction) -> float:
    """Returns the FLOPs of products and convolutions, without padding; others count nothing."""
    opcode, target = instruction.opcode, instruction.target
    if opcode in ("fusion", "async-start", "fusion-start"):
        bodies = (program.computations[name] for name in instruction.called)
        return sum(_flops(program, inner) for body in bodies for inner in body)
    if opcode == "dot" or target.startswith("__cublas$"):
        axes = re.findall(r"\d+", instruction.find(r'lhs_contracting_dim\w*"?[=:][{\[]([^}\]]*)'))
        left = instruction.operands[0].arrays[0].dims
        contracted = math.prod(left[int(axis)] for axis in axes)
        return 2.0 * math.prod(instruction.arrays[0].dims) * contracted
    if opcode == "convolution" or target.startswith("__cudnn$conv"):
        return _convolution_flops(instruction)
    if target.startswith(ONEDNN):
        return _onednn_flops(instruction)
    return 0.0


def _onednn_flops(instruction: Instruction) -> float:
    """Counts the FLOPs of a kernel of oneDNN from its shapes, of a convolution with the padding."""
    left, right = (math.prod(operand.arrays[0].dims) for operand in instruction.operands[:2])
    result = math.prod(instruction.arrays[0].dims)
    if instruction.target == f"{ONEDNN}convolution":
        return 2.0 * result * right / instruction.operands[1].arrays[0].dims[-1]
    # Of matrices of m x k, k x n and m x n numbers, the root of the product is m n k.
    return 2.0 * math.sqrt(left * right * result)


def _convolution_flops(instruction: Instruction) -> float:
    """Counts the products of the entries of the kernel and of the image, without the padding."""
    image, kernel = (operand.arrays[0].dims for operand in instruction.operands[:2])
    output = instruction.arrays[0].dims
    # cuDNN writes a derivative with the labels and the window of the forward convolution.
    if "BackwardInput" in instruction.target:
        image, output = output, image
    elif "BackwardFilter" in instruction.target:
        kernel, output = output, kernel
    labels = instruction.find(r"dim_labels=(\w+->\w+)")
    of_image, of_kernel, of_output = re.split("_|->", labels)
    count = 2.0 * output[of_output.index("b")] * output[of_output.index("f")]
    count *= kernel[of_kernel.index("i")]
    for axis, along in enumerate(_windows(instruction)):
        length, num_outputs = image[of_image.index(str(axis))], output[of_output.index(str(axis))]
        count *= _num_products(length, num_outputs, *along)
    return count


def _windows(instruction: Instruction) -> list[tuple[int, ...]]:
    """Returns size, stride, padding before, and dilations of image and kernel, by axis."""
    parts = dict(part.split("=") for part in instruction.find(r"window=\{([^}]*)\}").split())
    num_axes = parts["size"].count("x") + 1 if parts else 0
    names = {"size": "1", "stride": "1", "pad": "0", "lhs_dilate": "1", "rhs_dilate": "1"}
    texts = [parts[n].split("x") if n in parts else [d] * num_axes for n, d in names.items()]
    # Of a padding, such as 1_2, the first number is that before the image.
    return [tuple(int(text.split("_")[0]) for text in axis) for axis in zip(*texts, strict=True)]


@functools.cache
def _num_products(
    length: int, num_outputs: int, size: int, stride: int, before: int, dilation: int, gap: int
) -> int:
    """Counts the taps of all positions that meet an entry of the image, along one axis."""
    dilated = (length - 1) * dilation + 1
    places = (i * stride + tap * gap - before for tap in range(size) for i in range(num_outputs))
    return sum(0 <= place < dilated and place % dilation == 0 for place in places)


def _num_bytes(program: Program, instruction: Instruction) -> int:
    opcode = instruction.opcode
    read = [_main_bytes(operand.arrays) for operand in instruction.operands]
    written = _main_bytes(instruction.arrays)
    if opcode in _SLICES:
        return 2 * written
    if opcode == "dynamic-update-slice":
        return 2 * read[1]
    if opcode.endswith("-start"):
        # The result of an asynchronous operation names its operands again.
        written = max(written - sum(read), 0)
    if opcode == "fusion":
        return _fusion_bytes(program.computations[instruction.called[0]], read, written)
    return sum(read) + written


def _fusion_bytes(inner: list[Instruction], read: list[int], written: int) -> int:
    """Returns the bytes that a fusion moves: of an array that it slices only the slice."""
    for instruction in inner:
        if instruction.opcode == "parameter":
            number = instruction.number
            users = [i for i in inner if instruction in i.operands]
            if users and all(i.opcode in _SLICES for i in users):
                read[number] = min(read[number], sum(_all_bytes(i.arrays) for i in users))
            elif users and all(
                i.opcode == "dynamic-update-slice" and i.operands[0] is instruction for i in users
            ):
                read[number] = 0
        elif instruction.opcode == "dynamic-update-slice":
            # Only the slice is written, in place.
            part = instruction.operands[1].arrays
            written -= max(_all_bytes(instruction.arrays) - _all_bytes(part), 0)
    return sum(read) + max(written, 0)


def _main_bytes(arrays: list[Array]) -> int:
    return sum(a.num_bytes for a in arrays if a.is_in_main_memory)


def _all_bytes(arrays: list[Array]) -> int:
    return sum(a.num_bytes for a in arrays)
