"""Checks values and gradients of the convolutions on this machine against float64.

Run: python -m benchmarks.gradients [--precision bfloat16] [--cases 300] [--seed 0]
Draws cases in which every kernel, stride, image size, batch and width occurs equally often,
computes them in a process with the flags of a real run, and prints every result beyond the bound of
its type. Ends with status 1 if there is one.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.estimators import matmul_precision
from experiments.devices import describe_devices, set_cpu_flags, uses_onednn
from fdrl_jax.networks import convolve

BOUNDS = {"bfloat16": 1.5e-2, "float32": 2e-5}  # Relative to the largest entry.
KERNELS, STRIDES, BATCHES = (1, 3, 5), (1, 2), (1, 2, 4, 8, 16, 17)
SIZES = ((1, 1), (2, 3), (5, 7), (8, 8), (16, 16))
WIDTHS = (1, 2, 3, 4, 8, 16, 17, 31, 32, 48, 64, 128, 256)


class Case(NamedTuple):
    """One convolution."""

    kernel: int
    stride: int
    size: tuple[int, int]
    channels_in: int
    channels_out: int
    batch: int


def draw_cases(num: int, random: np.random.Generator) -> list[Case]:
    """Draws cases; each value of each field occurs as often as the others, give or take one."""

    def stratified(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in random.permutation(np.arange(num) % len(values))]

    fields = (KERNELS, STRIDES, SIZES, WIDTHS, WIDTHS, BATCHES)
    return [Case(*values) for values in zip(*map(stratified, fields), strict=True)]


def errors(case: Case, precision: str, random: np.random.Generator) -> dict[str, float]:
    """Largest errors of the output and of both gradients, relative to the largest entry."""
    outputs = [-(-length // case.stride) for length in case.size]
    shapes = (
        (case.batch, *case.size, case.channels_in),
        (case.kernel, case.kernel, case.channels_in, case.channels_out),
        (case.batch, *outputs, case.channels_out),
    )
    drawn = (random.standard_normal(shape).astype(jnp.dtype(precision)) for shape in shapes)
    x, kernel, g = drawn

    @jax.jit
    def computed(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        output, pullback = jax.vjp(functools.partial(convolve, stride=case.stride), x, kernel)
        return output, *pullback(g)

    names = ("output", "gradient to the input", "gradient to the kernel")
    wanted = _exact(case.stride, *(a.astype(np.float64) for a in (x, kernel, g)))
    return {
        name: float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
        for name, got, want in zip(names, computed(x, kernel, g), wanted, strict=True)
    }


def _exact(
    stride: int, x: np.ndarray, kernel: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convolution and its gradients, computed from the definition."""
    pad = kernel.shape[0] // 2
    height, width = g.shape[1:3]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    output, gx, gk = np.zeros_like(g), np.zeros_like(padded), np.zeros_like(kernel)
    for row, column in np.ndindex(kernel.shape[:2]):
        x_there, gx_there = (
            a[:, row::stride, column::stride][:, :height, :width] for a in (padded, gx)
        )
        output += x_there @ kernel[row, column]
        gx_there += g @ kernel[row, column].T
        gk[row, column] = np.tensordot(x_there, g, ([0, 1, 2], [0, 1, 2]))
    return output, gx[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], gk


def main() -> None:
    """Prints the wrong results and the number of cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bfloat16", choices=BOUNDS, help="type of arrays")
    parser.add_argument("--cases", type=int, default=300, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases and their numbers")
    arguments = parser.parse_args()
    set_cpu_flags(bfloat16=arguments.precision == "bfloat16")
    print(f"{describe_devices()}; oneDNN kernels: {'on' if uses_onednn() else 'off'}", flush=True)
    random = np.random.default_rng(arguments.seed)
    num_wrong, largest = 0, 0.0
    for case in draw_cases(arguments.cases, random):
        with matmul_precision(arguments.precision):
            found = errors(case, arguments.precision, random)
        for name, error in found.items():
            largest = max(largest, error)
            if not error < BOUNDS[arguments.precision]:  # Also for NaN.
                num_wrong += 1
                print(f"wrong {name} by {error:.2g}: {case}", flush=True)
    print(f"{arguments.cases} cases, {num_wrong} wrong results, largest error {largest:.2g}")
    sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
