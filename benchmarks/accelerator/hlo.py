"""Reads the text of a compiled program in XLA's format (HLO): instructions, loops and trip counts.

`work` counts what the program costs.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)(\(.*)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")


class Array(NamedTuple):
    """One array of a shape, by XLA's names."""

    dtype: str
    dims: tuple[int, ...]
    layout: str  # XLA's text between braces, which names the memory, such as `S(1)` on chip.

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


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction."""

    name: str
    opcode: str
    shape: str  # The text of its result's shape.
    operands: list["Instruction"] = dataclasses.field(repr=False)  # What it reads.
    attributes: str  # The text after the operands.

    @property
    def arrays(self) -> list[Array]:
        return [
            Array(dtype, tuple(map(int, dims.split(","))) if dims else (), layout)
            for dtype, dims, layout in _SHAPE.findall(self.shape)
        ]

    @property
    def target(self) -> str:
        """The library function that a custom call names, or ""."""
        return self.find(r'custom_call_target="([^"]*)"')

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs: of loops the body only."""
        single = re.findall(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)", self.attributes)
        branches = self.find(r"\bbranch_computations=\{([^}]*)\}")
        return (*single, *re.findall(r"%([\w.\-]+)", branches))

    @property
    def estimated_cycles(self) -> int:
        """Cycles that the TPU compiler expects; 0 if it states none."""
        return int(self.find(r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def number(self) -> int:
        """The number of a parameter, or the value of a constant; -1 for others."""
        return int(self.find(r"^number=(\d+)") or -1)

    def find(self, pattern: str) -> str:
        """Returns the first group of a pattern in the attributes, or ""."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


class Program(NamedTuple):
    """A compiled program."""

    computations: dict[str, list[Instruction]]  # By name.
    entry: str  # The computation that runs first.

    def loops(self) -> list[Instruction]:
        return [i for body in self.computations.values() for i in body if i.opcode == "while"]

    def trip_count(self, instruction: Instruction) -> int | None:
        """Returns the trip count of a loop, or `None` if the text does not state it."""
        if known := instruction.find(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        # The TPU compiler omits it. The loop of a scan counts from 0 up to a constant.
        name = instruction.find(r"\bcondition=%?([\w.\-]+)")
        condition = self.computations.get(name, ())
        limits = [i.operands[1] for i in condition if "direction=LT" in i.attributes]
        return next((i.number for i in limits if i.opcode == "constant"), None)

    def loop_body(self, trip_count: int) -> str | None:
        """Returns the computation that a loop of this many rounds runs: the flow's, for `K` steps.

        It is `None` if there is no such loop, or more than one.
        """
        found = {i.called[0] for i in self.loops() if self.trip_count(i) == trip_count}
        return found.pop() if len(found) == 1 else None


def parse(text: str) -> Program:
    """Reads the text of a program: `compiled.as_text()`, or `lowered.as_text(dialect="hlo")`."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            computations[header[2]] = current = []
            by_name: dict[str, Instruction] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, shape, opcode, rest = found.groups()
            # The operands end at the bracket that closes the first one.
            depths = itertools.accumulate((c == "(") - (c == ")") for c in rest)
            end = next((i for i, depth in enumerate(depths) if depth == 0), len(rest))
            inner, attributes = rest[1:end], rest[end + 1 :]
            if opcode in ("parameter", "constant"):
                inner, attributes = "", f"number={inner} {attributes}"
            operands = [by_name[n] for n in _operands(inner) if n in by_name]
            by_name[name] = Instruction(name, opcode, shape, operands, attributes)
            current.append(by_name[name])
    return Program(computations, entry)


def _operands(text: str) -> Iterator[str]:
    """Yields the names between the brackets, with or without their shapes and percent signs."""
    without_shapes = re.sub(r"/\*.*?\*/|\{[^{}]*\}|\[[^\]]*\]", "", text)
    words = (part.split() for part in without_shapes.replace("(", ",").split(","))
    return (word[-1].removeprefix("%") for word in words if word)
