"""Counts the FLOPs of matrix products and convolutions, of XLA's own and of NVIDIA's libraries."""

import functools
import math
import re
from typing import NamedTuple

from experiments.planning.hlo import Instruction


def flops(instruction: Instruction, operands: list[Instruction]) -> float:
    """Returns the FLOPs of one instruction without padding, not of those that it calls.

    Only products and convolutions have FLOPs here.
    """
    if instruction.opcode == "dot":
        return _dot_flops(instruction, operands, r"lhs_contracting_dims=\{([\d,]*)\}")
    if instruction.target.startswith("__cublas$"):
        return _dot_flops(instruction, operands, r'"lhs_contracting_dimensions":\[([^\]]*)\]')
    if instruction.opcode == "convolution" or instruction.target.startswith("__cudnn$conv"):
        return _convolution_flops(instruction, operands)
    return 0.0


def _dot_flops(instruction: Instruction, operands: list[Instruction], pattern: str) -> float:
    found = re.search(pattern, instruction.attributes)
    axes = [int(n) for n in re.findall(r"\d+", found[1])] if found else []
    left = operands[0].arrays[0].dims
    return 2.0 * math.prod(instruction.arrays[0].dims) * math.prod(left[axis] for axis in axes)


def _convolution_flops(instruction: Instruction, operands: list[Instruction]) -> float:
    """Counts the products of the entries of the kernel and of the image, without the padding."""
    image, kernel = (operand.arrays[0].dims for operand in operands[:2])
    output = instruction.arrays[0].dims
    # cuDNN writes a derivative with the labels and the window of the forward convolution.
    if "BackwardInput" in instruction.target:
        image, output = output, image
    elif "BackwardFilter" in instruction.target:
        kernel, output = output, kernel
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    of_image, of_kernel, of_output = found.groups() if found else ("", "", "")
    count = 2.0 * output[of_output.index("b")] * output[of_output.index("f")]
    count *= kernel[of_kernel.index("i")]
    for axis, along in enumerate(_window(instruction.attributes)):
        length, num_outputs = image[of_image.index(str(axis))], output[of_output.index(str(axis))]
        count *= _num_products(length, num_outputs, along)
    return count


class _Window(NamedTuple):
    """How a kernel moves over an image along one axis."""

    size: int
    stride: int
    before: int
    input_dilation: int
    kernel_dilation: int


def _window(attributes: str) -> list[_Window]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    parts = dict(part.split("=") for part in found[1].split()) if found else {}
    num_axes = parts["size"].count("x") + 1 if parts else 0

    def per_axis(name: str, default: int) -> list[int]:
        # Of a padding, such as 1_2, the first number is that before the image.
        texts = parts[name].split("x") if name in parts else [str(default)] * num_axes
        return [int(text.split("_")[0]) for text in texts]

    names = {"size": 1, "stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
    axes = zip(*(per_axis(name, default) for name, default in names.items()), strict=True)
    return [_Window(*axis) for axis in axes]


@functools.cache
def _num_products(length: int, num_outputs: int, along: _Window) -> int:
    dilated = (length - 1) * along.input_dilation + 1
    count = 0
    for tap in range(along.size):
        for position in range(num_outputs):
            place = position * along.stride + tap * along.kernel_dilation - along.before
            count += 0 <= place < dilated and place % along.input_dilation == 0
    return count
