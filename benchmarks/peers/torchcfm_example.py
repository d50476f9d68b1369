"""Flow matching as in the example of the package torchcfm, on the images of the race.

    pip install torch torchcfm
    taskset -c 0 python -m benchmarks.peers.torchcfm_example --data=MNIST.zip --out=torchcfm.npz
    python -m benchmarks.peers --data=MNIST.zip --judge torchcfm.npz

Network, optimizer, batch and optimal pairs are those of `examples/images/mnist_example.ipynb` of
torchcfm, in float32. Training ends after a number of CPU seconds, on one thread. The example draws
with an adaptive solver; here it is the midpoint rule with a fixed number of evaluations, as for the
race's own flow matching. The second line judges the samples.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
from torchcfm.models.unet import UNetModel
from tqdm import tqdm

from benchmarks.peers import data
from experiments.data.decode import to_uint8, to_unit

_WIDTH, _NUM_BLOCKS, _BATCH, _SAMPLE_BATCH = 32, 1, 128, 250


def main() -> None:
    """Trains, draws, and writes the samples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="zip of images")
    add("--out", type=Path, required=True, help="file for the samples")
    add("--seconds", type=float, default=600.0, help="CPU seconds of the training")
    add("--batch_size", type=int, default=_BATCH, help="smaller than that of the example")
    add("--evaluations", type=int, default=36, help="of the network, per sample")
    add("--num_samples", type=int, default=2_000)
    add("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.evaluations < 2 or arguments.evaluations % 2:
        parser.error("--evaluations must be even, because a step of the midpoint rule takes two")
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    pixels = data.load(arguments.data).contestants.pixels
    network = UNetModel(pixels.shape[:0:-1], num_channels=_WIDTH, num_res_blocks=_NUM_BLOCKS)
    num_steps = train(network, pixels, arguments.batch_size, arguments.seconds)
    started = time.process_time()
    samples = draw(network, arguments.num_samples, pixels.shape[1:], arguments.evaluations)
    spent = (time.process_time() - started) / arguments.num_samples
    np.savez_compressed(arguments.out, arr_0=samples)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{num_steps:,} steps, {num_parameters:,} parameters, {1e3 * spent:.1f} ms per sample")


def train(network: torch.nn.Module, pixels: np.ndarray, batch_size: int, seconds: float) -> int:
    """Trains on images [N, H, W, C] uint8, and returns the number of steps."""
    rs = np.random.default_rng(torch.initial_seed())
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(network.parameters())
    num_steps, spent, started = 0, 0.0, time.process_time()
    with tqdm(total=round(seconds), unit="CPU s", desc="torchcfm") as bar:
        while spent < seconds:
            chosen = to_unit(pixels[rs.integers(len(pixels), size=batch_size)])
            real = torch.from_numpy(chosen).permute(0, 3, 1, 2).contiguous()
            noise = torch.randn_like(real)
            t, x, velocity = matcher.sample_location_and_conditional_flow(noise, real)
            loss = torch.mean((network(t, x) - velocity) ** 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            num_steps += 1
            spent = time.process_time() - started
            bar.set_postfix(loss=f"{loss.item():.3f}", step=num_steps, refresh=False)
            bar.update(min(round(spent), bar.total) - bar.n)
    return num_steps


@torch.no_grad()
def draw(
    network: torch.nn.Module, num: int, shape: tuple[int, ...], evaluations: int
) -> np.ndarray:
    """Draws samples, uint8 [num, H, W, C], with the midpoint rule from noise to data."""
    height, width, channels = shape
    length = 2.0 / evaluations
    parts = []
    for start in range(0, num, _SAMPLE_BATCH):
        x = torch.randn(min(_SAMPLE_BATCH, num - start), channels, height, width)
        for step in range(evaluations // 2):
            t = torch.tensor(step * length)
            middle = x + 0.5 * length * network(t, x)
            x = x + length * network(t + 0.5 * length, middle)
        parts.append(x.permute(0, 2, 3, 1).numpy())
    return to_uint8(np.concatenate(parts))


if __name__ == "__main__":
    main()
