"""Reads the text of a compiled program in XLA's format (HLO): instructions, loops and trip counts.

`work` counts what the program costs.
"""

import math
import re
from typing import NamedTuple

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")


class Array(NamedTuple):
    """One array of a shape, by XLA's names.

    The layout is XLA's text between braces, which names the memory, such as `S(1)` on chip.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def num_bytes(self) -> int:
        # The first number in the name of a type is its size: bf16, f8e4m3fn, c64.
        found = re.search(r"\d+", self.dtype)
        bits = int(found[0]) if found else {"pred": 8, "token": 0}.get(self.dtype, 32)
        return -(-math.prod(self.dims) * bits // 8)

    @property
    def is_in_main_memory(self) -> bool:
        """Whether it is in the memory of the device, and not on the chip or on the host."""
        return re.search(r"S\([1-9]", self.layout) is None


class Instruction(NamedTuple):
    """One instruction, with the names of the instructions that it reads.

    The shape is the text of its result's shape, and the attributes are the text after the operands.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def arrays(self) -> list[Array]:
        return [
            Array(dtype, tuple(map(int, dims.split(","))) if dims else (), layout or "")
            for dtype, dims, layout in _SHAPE.findall(self.shape)
        ]

    @property
    def target(self) -> str:
        """The library function that a custom call names, or ""."""
        return self._find(r'custom_call_target="([^"]*)"')

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs: of loops the body only."""
        single = re.findall(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)", self.attributes)
        return (*single, *_NAME.findall(self._find(r"\bbranch_computations=\{([^}]*)\}")))

    @property
    def condition(self) -> str:
        """Name of the computation that decides whether a loop continues, or ""."""
        return self._find(r"\bcondition=%?([\w.\-]+)")

    @property
    def estimated_cycles(self) -> int:
        """Cycles that the TPU compiler expects; 0 if it states none."""
        return int(self._find(r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def number(self) -> int:
        """The number of a parameter, or the value of a constant; -1 for others."""
        return int(self._find(r"^number=(\d+)") or -1)

    def _find(self, pattern: str) -> str:
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


class Program(NamedTuple):
    """A compiled program: instructions by the name of their computation.

    The `entry` is the computation that runs first.
    """

    computations: dict[str, list[Instruction]]
    entry: str

    def loops(self) -> list[Instruction]:
        return [i for body in self.computations.values() for i in body if i.opcode == "while"]

    def trip_count(self, instruction: Instruction) -> int | None:
        """Returns the trip count of a loop, or `None` if the text does not state it."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes):
            return int(found[1])
        # The TPU compiler omits it. The loop of a scan counts from 0 up to a constant.
        by_name = {i.name: i for i in self.computations.get(instruction.condition, ())}
        for compare in by_name.values():
            if compare.opcode == "compare" and "direction=LT" in compare.attributes:
                limit = by_name.get(compare.operands[1])
                if limit is not None and limit.opcode == "constant":
                    return limit.number
        return None

    def loop_body(self, trip_count: int) -> str | None:
        """Returns the computation that a loop of this many rounds runs: the flow's, for `K` steps.

        It is `None` if there is no such loop, or more than one.
        """
        found = {i.called[0] for i in self.loops() if self.trip_count(i) == trip_count}
        return found.pop() if len(found) == 1 else None


def parse(text: str) -> Program:
    """Reads the text of a program: `compiled.as_text()`, or `lowered.as_text(dialect="hlo")`."""
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _parse_instruction(line)):
            current.append(instruction)
    return Program(computations, entry)


def _parse_instruction(line: str) -> Instruction | None:
    name, equals, rest = line.strip().removeprefix("ROOT ").partition(" = ")
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
    return Instruction(name.removeprefix("%"), opcode, shape, _operands(inner), attributes)


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
