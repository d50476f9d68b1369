"""The residual networks in PyTorch eager, in a separate process, for comparison only.

`benchmarks.estimators` runs it. It reads one word per line, "flow" or "train", and answers with a
line. Its layout channels_last is the fastest in PyTorch on CPU.
"""

import copy
import json
import sys

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, features_in: int, features: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(features_in, features, 3, stride, 1, bias=bias)
        self.second = nn.Conv2d(features, features, 3, 1, 1, bias=bias)
        same = stride == 1 and features_in == features
        shortcut = nn.Conv2d(features_in, features, 1, stride, bias=False)
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(nn.functional.leaky_relu(self.first(x), 0.2))
        return nn.functional.leaky_relu(y + self.shortcut(x), 0.2)


class Network(nn.Module):
    """Maps images [B, C, H, W] to [B]; the head computes in float32."""

    def __init__(self, stem: int, blocks: list[tuple[int, int]], channels: int, bias: bool) -> None:
        super().__init__()
        features, strides = zip(*blocks, strict=True)
        widths = [stem, *features]
        found = [Block(*b, bias) for b in zip(widths[:-1], widths[1:], strides, strict=True)]
        first = nn.Conv2d(channels, stem, 3, 1, 1, bias=bias)
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.2), *found)
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).float().mean(dim=(2, 3)))[:, 0]


def flow(net: Network, x: torch.Tensor, num_steps: int, step_size: float, noise_scale: float):
    """Flows float32 images with a copy of the network in the given precision."""
    net.requires_grad_(False)
    dtype = net.layers[0].weight.dtype
    for _ in range(num_steps):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(x.to(dtype)).sum(), x)
        x = x.detach() - step_size * gradient + noise_scale * torch.randn_like(x)
    return x


def main() -> None:
    settings = json.loads(sys.argv[1])
    device, hyper = settings["device"], settings["flow"]
    dtype = torch.bfloat16 if settings["precision"] == "bfloat16" else torch.float32
    torch.backends.cudnn.benchmark = True
    height, width, channels = settings["shape"]
    layout = {"device": device, "memory_format": torch.channels_last}
    x = (torch.rand(settings["batch"], channels, height, width) * 2.0 - 1.0).to(**layout)
    net = Network(settings["stem"], settings["blocks"], channels, settings["bias"]).to(**layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    sampler = copy.deepcopy(net)
    sampler.layers.to(dtype)  # The head stays in float32.

    def train() -> None:
        sampler.load_state_dict(net.state_dict())  # Also casts.
        flowed = flow(sampler, x.clone(), **hyper)
        softplus = nn.functional.softplus
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = softplus(net(x)).mean() + softplus(-net(flowed)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    work = {"flow": lambda: flow(sampler, x.clone(), **hyper), "train": train}
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        work[line.strip()]()
        if device == "cuda":
            torch.cuda.synchronize()
        print("done", flush=True)


if __name__ == "__main__":
    main()
