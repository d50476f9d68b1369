"""Speed of the estimators' convolutions on CPU, by the form of derivatives and a compiler flag.

Run: python -m benchmarks.convolutions [--json=FILE]
Prints GFLOP/s for each form of a derivative, inside and outside of a loop, with and without the
compiler flag of `experiments.machine.xla_flags`, next to those of a matrix product and of the
forward convolution. It takes a few minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.files import write_json
from experiments.machine.xla_flags import CPU_FLAG

NUM_REPEATS = 3
NUM_LOOP_STEPS = 2


class Shape(NamedTuple):
    """A convolution of the networks."""

    batch: int
    size: int
    channels_in: int
    channels_out: int
    kernel_size: int
    stride: int

    def __str__(self) -> str:
        """Kernel, stride, channels and images."""
        return (
            f"{self.kernel_size}x{self.kernel_size}/{self.stride} "
            f"{self.channels_in}->{self.channels_out} on {self.batch}x{self.size}x{self.size}"
        )

    @property
    def gflop(self) -> float:
        """Floating-point operations in units of 1e9; additions and multiplications count as one."""
        outputs = self.batch * (-(-self.size // self.stride)) ** 2
        taps = self.kernel_size**2 * self.channels_in
        return 2e-9 * outputs * taps * self.channels_out


SHAPES = (
    Shape(8, 32, 128, 128, 3, 1),
    Shape(8, 32, 128, 128, 1, 1),
    Shape(8, 32, 128, 256, 3, 2),
    Shape(8, 64, 64, 64, 3, 2),
    Shape(8, 32, 128, 256, 1, 2),
)


def measure() -> Iterator[dict[str, str | float]]:
    """Yields one row per measurement, with the flags that JAX started with."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def seconds(run: Callable[[], object]) -> float:
        def once() -> float:
            start = time.perf_counter()
            jax.block_until_ready(run())
            return time.perf_counter() - start

        once()
        first = once()
        # The slow forms are so slow that one run suffices.
        return first if first > 1 else min(first, *(once() for _ in range(NUM_REPEATS - 1)))

    def row(what: str, form: str, where: str, gflop: float, duration: float) -> dict:
        return {"what": what, "form": form, "where": where, "gflop_s": gflop / duration}

    square = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    duration = seconds(lambda: product(square, square))
    yield row("matrix product", "2048", "alone", 2e-9 * 2048**3, duration)

    for shape in SHAPES:
        random = np.random.default_rng(0)

        def draw(*size: int, random: np.random.Generator = random) -> jax.Array:
            return jnp.asarray(random.standard_normal(size), jnp.float32)

        outputs = -(-shape.size // shape.stride)
        x = draw(shape.batch, shape.size, shape.size, shape.channels_in)
        g = draw(shape.batch, outputs, outputs, shape.channels_out)
        kernel = draw(*(shape.kernel_size,) * 2, shape.channels_in, shape.channels_out)
        for (what, form), (function, args) in forms(shape, x, kernel, g).items():
            alone = jax.jit(function)
            duration = seconds(lambda alone=alone, args=args: alone(*args))
            yield row(f"{what} {shape}", form, "alone", shape.gflop, duration)

            @jax.jit
            def loop(first, second, function=function):
                def step(first, _):
                    # Depends on the previous step, so that it cannot be moved out of the loop.
                    return first + 1e-6 * function(first, second).mean(), None

                return jax.lax.scan(step, first, length=NUM_LOOP_STEPS)[0]

            duration = seconds(lambda loop=loop, args=args: loop(*args)) / NUM_LOOP_STEPS
            yield row(f"{what} {shape}", form, "in a loop", shape.gflop, duration)


def forms(shape: Shape, x, kernel, g) -> dict:
    """All forms of a shape's convolution and derivatives, with their arguments."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from fdrl_jax.networks import convolve

    size, stride = shape.kernel_size, shape.stride
    layout = ("NHWC", "HWIO", "NHWC")

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, [(size // 2,) * 2] * 2, dimension_numbers=layout
        )

    def ours(x, kernel):
        return convolve(x, kernel, stride)

    def input_gradient(convolution):
        return lambda g, kernel: jax.vjp(lambda x: convolution(x, kernel), x)[1](g)[0]

    def kernel_gradient(convolution):
        return lambda g, x: jax.vjp(lambda kernel: convolution(x, kernel), kernel)[1](g)[0]

    before = size - 1 - size // 2
    after = shape.size + size - 1 - before - ((g.shape[1] - 1) * stride + 1)

    def flipped(kernel):
        return lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))

    def dilated(g, kernel):
        """The input gradient as one convolution of `g`, which XLA dilates."""
        return lax.conv_general_dilated(
            g,
            flipped(kernel),
            (1, 1),
            [(before, after)] * 2,
            lhs_dilation=(stride,) * 2,
            dimension_numbers=layout,
        )

    def zeros(g, kernel):
        """The input gradient as one convolution of `g` with explicit zeros in between."""
        spread = (before, after, stride - 1)
        image = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), spread, spread, (0, 0, 0)))
        image = lax.optimization_barrier(image)  # Else XLA folds the zeros into a dilation.
        return lax.conv_general_dilated(
            image, flipped(kernel), (1, 1), [(0, 0)] * 2, dimension_numbers=layout
        )

    found = {
        ("forward", "plain"): (plain, (x, kernel)),
        ("to the input,", "plain"): (input_gradient(plain), (g, kernel)),
        ("to the input,", "ours"): (input_gradient(ours), (g, kernel)),
        ("to the kernel,", "plain"): (kernel_gradient(plain), (g, x)),
        ("to the kernel,", "ours"): (kernel_gradient(ours), (g, x)),
    }
    if stride > 1:
        found["to the input,", "dilated"] = (dilated, (g, kernel))
        found["to the input,", "zeros"] = (zeros, (g, kernel))
    return found


def run(flag: str) -> list[dict[str, str | float]]:
    """Measures in a separate process, because XLA reads its flags only once."""
    environ = {**os.environ, "XLA_FLAGS": flag}
    command = [sys.executable, "-m", "benchmarks.convolutions", "--measure"]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Prints the table, and writes it to `--json` if given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        for row in measure():
            print(json.dumps(row), flush=True)
        return
    rows = [
        {**without, "gflop_s_with_flag": with_flag["gflop_s"]}
        for without, with_flag in zip(run(""), run(CPU_FLAG), strict=True)
    ]
    print(f"{'GFLOP/s':54} {'form':8} {'where':9} {'default':>8} {'flag':>8}")
    for row in rows:
        print(
            f"{row['what']:54} {row['form']:8} {row['where']:9} "
            f"{row['gflop_s']:8.1f} {row['gflop_s_with_flag']:8.1f}"
        )
    if args.json:
        write_json(args.json, {"flag": CPU_FLAG, "rows": rows})


if __name__ == "__main__":
    main()
