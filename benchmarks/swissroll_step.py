"""The train step of the swiss roll (batch 256, K = 100) in fdrl_jax and in PyTorch eager.

Run: python -m benchmarks.swissroll_step [--json=FILE]
PyTorch is optional (pip install torch). Without it, only the time of fdrl_jax is printed.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.timing import alternate
from experiments import build, command_line, settings
from experiments.files import write_json
from experiments.machine import xla_flags
from experiments.modes.creation import load_data
from fdrl_jax.training import parallel, rng, steps

BATCH, NUM_FLOW_STEPS, STEP_SIZE, NOISE_SCALE, RATE, EMA = 256, 100, 0.1, 0.01, 2e-3, 0.998
_STEPS_PER_CALL = 10


def ours() -> Callable[[], object]:
    """Returns a function that takes ten train steps of `configs/swissroll.py`."""
    wanted = settings.checked(command_line.load_config("swissroll"))
    training = build.ratio_training(build.experiment(wanted, load_data(wanted)))
    run_steps = parallel.map_steps(steps.repeat_steps(training.train_step, _STEPS_PER_CALL))
    state, constants = map(parallel.replicate, (training.init_state(), training.constants))
    key = rng.root_key(wanted["seed"])

    def run() -> None:
        nonlocal state
        arguments = (key, state, constants, None, _STEPS_PER_CALL, 0)
        state, _ = jax.block_until_ready(run_steps(*arguments))

    return run


def pytorch() -> Callable[[], object]:
    """Returns a function that takes ten steps of the same training, written in PyTorch eager."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    sizes = (2, 64, 64, 64, 64)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU(0.2)]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
    averaged = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def draw() -> "torch.Tensor":
        angle = 1.5 * torch.pi * (1.0 + 2.0 * torch.rand(BATCH))
        spiral = torch.stack([angle * torch.cos(angle), angle * torch.sin(angle)], -1)
        return (spiral + 0.25 * torch.randn(BATCH, 2)) / 7.5

    def step() -> None:
        real, x = draw(), torch.randn(BATCH, 2)
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # The flow needs only the gradient of the input.
        for _ in range(NUM_FLOW_STEPS):
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(model(x).sum(), x)
            x = x.detach() - STEP_SIZE * gradient + NOISE_SCALE * torch.randn(BATCH, 2)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        on_data, on_flowed = model(real), model(x)
        loss = nn.functional.softplus(on_data).mean() + nn.functional.softplus(-on_flowed).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, list(model.parameters()), 1.0 - EMA)

    return lambda: [step() for _ in range(_STEPS_PER_CALL)]


def main() -> None:
    """Prints the median time of a train step for both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    path = parser.parse_args().json
    xla_flags.set_cpu_flags()
    contenders = {"fdrl_jax": ours()}
    try:
        contenders["PyTorch eager"] = pytorch()
    except ImportError:
        print("PyTorch is not installed; only fdrl_jax is timed")
    milliseconds = {k: 1e3 * v / _STEPS_PER_CALL for k, v in alternate(contenders).items()}
    for name, value in milliseconds.items():
        ratio = value / milliseconds["fdrl_jax"]
        print(f"{name:14s} {value:8.2f} ms per train step   {ratio:5.2f} x fdrl_jax")
    if path:
        write_json(path, milliseconds)


if __name__ == "__main__":
    main()
