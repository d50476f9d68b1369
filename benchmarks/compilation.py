"""Time to compile the flow of an estimator, without and with JAX's persistent cache.

Run: python -m benchmarks.compilation [--network resnet32] [--batch 8] [--num_steps 100]
Each figure is from a new process. Both processes share one cache, which is empty at first. To use a
cache in a run: JAX_COMPILATION_CACHE_DIR=DIR python -m experiments.main ...
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.sizes import SIZES
from experiments.machine import xla_flags


def compile_flow(name: str, batch: int, num_steps: int) -> dict[str, float]:
    """Compiles a flow in this process and returns the time to each stage, in seconds."""
    started = time.perf_counter()
    xla_flags.set_cpu_flags()
    import jax
    import jax.numpy as jnp

    import fdrl_jax as fdrl

    net = fdrl.networks.resnet(name)
    shape = (SIZES[name], SIZES[name], 3)
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)))
    x = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)

    def run_flow(variables: dict, x: jax.Array) -> jax.Array:
        potential = fdrl.first_variation(
            lambda x: net.apply(variables, x), "kl", output="log_ratio"
        )
        hyper = {"num_steps": num_steps, "step_size": 3.0, "noise_scale": 0.01}
        return fdrl.flow(jax.random.key(1), x, potential, **hyper)

    imported = time.perf_counter()
    lowered = jax.jit(run_flow).lower(variables, x)
    traced = time.perf_counter()
    lowered.compile()
    return {
        "import_seconds": imported - started,
        "trace_seconds": traced - imported,
        "compile_seconds": time.perf_counter() - traced,
    }


def main() -> None:
    """Prints the figures without and with the cache as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet32", choices=SIZES, help="the estimator")
    parser.add_argument("--batch", type=int, default=8, help="images, %(default)s by default")
    parser.add_argument("--num_steps", type=int, default=100, help="steps of the flow")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(compile_flow(arguments.network, arguments.batch, arguments.num_steps)))
        return
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        command = [sys.executable, "-m", "benchmarks.compilation", "--child", *sys.argv[1:]]
        results = {}
        for state in ("cold", "warm"):
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            results[state] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
