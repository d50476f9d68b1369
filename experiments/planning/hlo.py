"""Analyses a compiled program from its text in XLA's format (HLO).

XLA's own `cost_analysis` counts the body of a loop once, and is empty for GPUs that this machine
does not have. Here, a loop counts as often as its trip count, if XLA states it, and otherwise once.
The loop over train steps of a dispatch has no trip count, so the figures are those of one train
step.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "s32": 32,
    "u32": 32,
    "s64": 64,
    "u64": 64,
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "c128": 128,
    "f8e4m3fn": 8,
    "f8e5m2": 8,
    "token": 0,
}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
# Instructions that name or regroup arrays without moving data.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "add-dependency",
        "opt-barrier",
        "domain",
        "iota",
    ]
)
_CALLS = frozenset(["while", "conditional", "call", "async-start"])
_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "collective-broadcast",
)
_SLICES = frozenset(["dynamic-slice", "slice", "gather"])


class Array(NamedTuple):
    """One array of a shape.

    Attributes:
      dtype: XLA's name of it.
      dims: sizes of the axes.
      layout: XLA's text between braces; it names the memory, such as `S(1)` on chip.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return -(-math.prod(self.dims) * _BITS.get(self.dtype, 32) // 8)

    @property
    def is_in_main_memory(self) -> bool:
        """Whether it is in the memory of the device, and not on the chip or on the host."""
        return re.search(r"S\([1-9]", self.layout) is None


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      name: its name.
      opcode: its operation, by XLA's name.
      shape: text of its result's shape.
      operands: names of the instructions that it reads.
      attributes: text after the operands.
      is_root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result."""
        return arrays_of(self.shape)

    @property
    def target(self) -> str:
        """The library function that a custom call names, or ""."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs: of loops the body only."""
        single = re.findall(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)", self.attributes)
        several = re.search(r"\bbranch_computations=\{([^}]*)\}", self.attributes)
        return (*single, *(_NAME.findall(several[1]) if several else ()))

    @property
    def estimated_cycles(self) -> int:
        """Cycles that the TPU compiler expects; 0 if it states none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """Its origin in the Python program, by JAX's name."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Kernel(NamedTuple):
    """A unit of work that a device starts as a whole.

    Attributes:
      instruction: the instruction of the compiled program.
      times: number of runs per train step.
      flops: FLOPs of matrix products and convolutions per run, without padding.
      num_bytes: bytes read and written in the device's memory per run.
    """

    instruction: Instruction
    times: int
    flops: float
    num_bytes: int


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: instructions by the name of their computation.
      entry: name of the one that runs first.
      text: all of it.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    text: str

    def kernels(self, computation: str | None = None, times: int = 1) -> Iterator[Kernel]:
        """Yields the units of work of a device, starting at the entry or another computation."""
        instructions = self.computations[computation or self.entry]
        shapes = {i.name: i for i in instructions}
        for instruction in instructions:
            opcode = instruction.opcode
            if opcode in _FREE or opcode.endswith(("-done", "-update")):
                continue
            if opcode in _CALLS:
                rounds = self.trip_count(instruction) or 1
                for name in instruction.called:
                    yield from self.kernels(name, times * rounds)
                continue
            operands = [shapes[name] for name in instruction.operands if name in shapes]
            yield Kernel(
                instruction,
                times,
                self._flops(instruction, operands),
                self._num_bytes(instruction, operands),
            )

    @property
    def flops(self) -> float:
        """FLOPs of matrix products and convolutions, of one run."""
        return sum(kernel.times * kernel.flops for kernel in self.kernels())

    def loops(self) -> list[Instruction]:
        """Returns the loops, wherever they are."""
        return [i for body in self.computations.values() for i in body if i.opcode == "while"]

    def trip_count(self, instruction: Instruction) -> int | None:
        """Returns the trip count of a loop, or `None` if the text does not state it."""
        attributes = instruction.attributes
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', attributes):
            return int(found[1])
        # The TPU compiler omits it. The loop of a scan counts from 0 up to a constant.
        condition = re.search(r"\bcondition=%?([\w.\-]+)", attributes)
        by_name = {i.name: i for i in self.computations.get(condition[1] if condition else "", ())}
        for compare in by_name.values():
            if compare.opcode == "compare" and "direction=LT" in compare.attributes:
                limit = by_name.get(compare.operands[1])
                if limit is not None and limit.opcode == "constant":
                    return _number(limit)
        return None

    def loop_body(self, trip_count: int) -> str:
        """Returns the computation that a loop of this many rounds runs: the flow's, for `K` steps.

        Raises:
          ValueError: if there is none, or more than one.
        """
        counts = [self.trip_count(loop) for loop in self.loops()]
        found = [
            loop.called[0]
            for loop, count in zip(self.loops(), counts, strict=True)
            if count == trip_count
        ]
        if len(found) != 1:
            raise ValueError(
                f"expected one loop of {trip_count} rounds, found {len(found)} among loops of "
                f"{', '.join(map(str, counts)) or 'none'}"
            )
        return found[0]

    def collectives(self) -> list[Kernel]:
        """Returns what moves data between devices."""
        return [k for k in self.kernels() if is_collective(k.instruction)]

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yields an instruction, and those of the computations that it calls."""
        yield instruction
        for name in instruction.called:
            for inner in self.computations.get(name, ()):
                yield from self.inside(inner)

    def _flops(self, instruction: Instruction, operands: list[Instruction]) -> float:
        if instruction.opcode in ("fusion", "async-start", "fusion-start"):
            return sum(self._flops_of(name) for name in instruction.called)
        return _own_flops(instruction, operands)

    def _flops_of(self, computation: str) -> float:
        instructions = self.computations.get(computation, [])
        by_name = {i.name: i for i in instructions}
        return sum(
            self._flops(i, [by_name[name] for name in i.operands if name in by_name])
            for i in instructions
        )

    def _num_bytes(self, instruction: Instruction, operands: list[Instruction]) -> int:
        read = [_main_bytes(operand.arrays) for operand in operands]
        written = _main_bytes(instruction.arrays)
        if instruction.opcode in _SLICES:
            return 2 * written
        if instruction.opcode == "dynamic-update-slice":
            return 2 * read[1] if len(read) > 1 else written
        if instruction.opcode.endswith("-start"):
            # The result of an asynchronous operation names its operands again.
            written = max(written - sum(read), 0)
        if instruction.opcode != "fusion" or not instruction.called:
            return sum(read) + written
        inner = self.computations.get(instruction.called[0], [])
        parameters = {_number(i): i for i in inner if i.opcode == "parameter"}
        for number in range(len(read)):
            if number not in parameters:
                continue
            users = [i for i in inner if parameters[number].name in i.operands]
            if users and all(i.opcode in _SLICES for i in users):
                read[number] = min(read[number], sum(_all_bytes(i.arrays) for i in users))
            elif users and all(
                i.opcode == "dynamic-update-slice" and i.operands[0] == parameters[number].name
                for i in users
            ):
                read[number] = 0
        by_name = {i.name: i for i in inner}
        for update in inner:
            if update.opcode == "dynamic-update-slice" and update.operands[1] in by_name:
                # Only the slice is written, in place.
                whole, part = update.arrays, by_name[update.operands[1]].arrays
                written -= max(_all_bytes(whole) - _all_bytes(part), 0)
        return sum(read) + max(written, 0)


def parse(text: str) -> Program:
    """Reads the text of a program: `compiled.as_text()`, or `lowered.as_text(dialect="hlo")`."""
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    entry = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _parse_instruction(line)
            if instruction is not None:
                current.append(instruction)
    return Program(computations, entry, text)


def arrays_of(shape: str) -> list[Array]:
    """Returns the arrays that the text of a shape names."""
    return [
        Array(dtype, tuple(map(int, dims.split(","))) if dims else (), layout or "")
        for dtype, dims, layout in _SHAPE.findall(shape)
    ]


def is_collective(instruction: Instruction) -> bool:
    """Whether an instruction moves data between devices."""
    return kind_of_collective(instruction) is not None


def sent_bytes(kernel: Kernel, num_devices: int) -> float:
    """Returns the bytes that leave each device in a collective operation, by rings."""
    instruction = kernel.instruction
    arrays = instruction.arrays
    if instruction.opcode.endswith("-start") and len(arrays) > 1:
        arrays = arrays[len(arrays) // 2 :]
    size = _all_bytes(arrays)
    share = (num_devices - 1) / num_devices
    kind = kind_of_collective(instruction)
    if kind == "all-reduce":
        return 2.0 * share * size
    if kind == "reduce-scatter":
        return share * size * num_devices
    if kind in ("all-gather", "all-to-all"):
        return share * size
    return float(size)


def kind_of_collective(instruction: Instruction) -> str | None:
    """Returns XLA's name of a collective operation; `None` for other instructions."""
    opcode = instruction.opcode.removesuffix("-start")
    return opcode if opcode in _COLLECTIVES else None


def _parse_instruction(line: str) -> Instruction | None:
    line = line.strip()
    is_root = line.startswith("ROOT ")
    name, equals, rest = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    if not bracket:
        return None
    closing = _closing(rest, len(opcode))
    inner, attributes = rest[len(opcode) + 1 : closing], rest[closing + 1 :]
    if opcode in ("parameter", "constant"):
        attributes = f"number={inner} {attributes}"
        inner = ""
    return Instruction(name.removeprefix("%"), opcode, shape, _operands(inner), attributes, is_root)


def _operands(text: str) -> tuple[str, ...]:
    """Names between the brackets, with or without their shapes and percent signs."""
    without_shapes = re.sub(r"/\*.*?\*/|\{[^{}]*\}|\[[^\]]*\]", "", text)
    words = (part.split() for part in without_shapes.replace("(", ",").split(","))
    return tuple(word[-1].removeprefix("%") for word in words if word)


def _closing(text: str, start: int) -> int:
    """Returns where the bracket that opens at `start` closes."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] == "(":
            depth += 1
        elif text[position] == ")":
            depth -= 1
            if depth == 0:
                return position
    return len(text)


def _number(instruction: Instruction) -> int:
    """Returns the number of a parameter, or the value of a constant."""
    found = re.match(r"number=(\d+)", instruction.attributes)
    return int(found[1]) if found else -1


def _main_bytes(arrays: list[Array]) -> int:
    return sum(a.num_bytes for a in arrays if a.is_in_main_memory)


def _all_bytes(arrays: list[Array]) -> int:
    return sum(a.num_bytes for a in arrays)


def _own_flops(instruction: Instruction, operands: list[Instruction]) -> float:
    if instruction.opcode == "dot":
        return _dot_flops(instruction, operands, r"lhs_contracting_dims=\{([\d,]*)\}")
    if instruction.opcode == "convolution":
        window, labels = _window(instruction.attributes), _labels(instruction.attributes)
        left, right = (operand.arrays[0].dims for operand in operands[:2])
        return _convolution_flops(left, right, instruction.arrays[0].dims, labels, window)
    target = instruction.target
    if target.startswith("__cudnn$conv"):
        return _cudnn_flops(instruction, operands)
    if target.startswith("__cublas$"):
        return _dot_flops(instruction, operands, r'"lhs_contracting_dimensions":\[([^\]]*)\]')
    return 0.0


def _dot_flops(instruction: Instruction, operands: list[Instruction], pattern: str) -> float:
    found = re.search(pattern, instruction.attributes)
    axes = [int(n) for n in re.findall(r"\d+", found[1])] if found else []
    left = operands[0].arrays[0].dims
    return 2.0 * math.prod(instruction.arrays[0].dims) * math.prod(left[axis] for axis in axes)


class _Window(NamedTuple):
    """How a kernel moves over an image along one axis."""

    size: int
    stride: int
    before: int
    input_dilation: int
    kernel_dilation: int


def _window(attributes: str) -> list[_Window]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    if found is None:
        return []
    parts = dict(part.split("=") for part in found[1].split())
    sizes = [int(n) for n in parts["size"].split("x")]

    def per_axis(name: str) -> list[int]:
        return [int(n) for n in parts[name].split("x")] if name in parts else [1] * len(sizes)

    pads = [pad.split("_")[0] for pad in parts["pad"].split("x")] if "pad" in parts else []
    befores = [int(pad) for pad in pads] or [0] * len(sizes)
    return [
        _Window(*axis)
        for axis in zip(
            sizes,
            per_axis("stride"),
            befores,
            per_axis("lhs_dilate"),
            per_axis("rhs_dilate"),
            strict=True,
        )
    ]


def _labels(attributes: str) -> tuple[str, str, str]:
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if found is None:
        return "", "", ""
    return found[1], found[2], found[3]


def _convolution_flops(
    left: tuple[int, ...],
    right: tuple[int, ...],
    output: tuple[int, ...],
    labels: tuple[str, str, str],
    window: list[_Window],
) -> float:
    """Counts the products of the entries of the kernel and of the image, without the padding."""
    in_labels, kernel_labels, out_labels = labels
    count = 2.0 * output[out_labels.index("b")] * output[out_labels.index("f")]
    count *= right[kernel_labels.index("i")]
    for axis, along in enumerate(window):
        count *= _num_products(
            left[in_labels.index(str(axis))], output[_of(out_labels, axis)], along
        )
    return count


def _of(labels: str, axis: int) -> int:
    return labels.index(str(axis))


@functools.cache
def _num_products(length: int, num_outputs: int, along: _Window) -> int:
    dilated = (length - 1) * along.input_dilation + 1
    count = 0
    for tap in range(along.size):
        for position in range(num_outputs):
            place = position * along.stride + tap * along.kernel_dilation - along.before
            count += 0 <= place < dilated and place % along.input_dilation == 0
    return count


def _cudnn_flops(instruction: Instruction, operands: list[Instruction]) -> float:
    """FLOPs of a convolution of cuDNN, whose derivatives are written as the forward one."""
    labels, window = _labels(instruction.attributes), _window(instruction.attributes)
    first, second = (operand.arrays[0].dims for operand in operands[:2])
    result = instruction.arrays[0].dims
    if "BackwardInput" in instruction.target:
        left, right, output = result, second, first
    elif "BackwardFilter" in instruction.target:
        left, right, output = first, result, second
    else:
        left, right, output = first, second, result
    return _convolution_flops(left, right, output, labels, window)
