"""The residual networks in PyTorch eager, in a separate process, for comparison only.

It is run by `benchmarks.estimators`, possibly with another Python that has PyTorch:
  python benchmarks/torch_resnet.py '{"stem": 128, "shape": [32, 32, 3], ...}'
It reads one word per line, "flow" or "train", runs it, and answers with a line. Images and weights
have the layout channels_last, which is the fastest in PyTorch on CPU. The precision
"tensorfloat32" is float32 that a GPU multiplies in TF32.
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
        changes = stride != 1 or features_in != features
        self.shortcut = (
            nn.Conv2d(features_in, features, 1, stride, bias=False) if changes else nn.Identity()
        )
        self.activate = nn.LeakyReLU(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.activate(self.first(x)))
        return self.activate(y + self.shortcut(x))


class Network(nn.Module):
    """Maps images [B, C, H, W] to [B]; the head computes in float32."""

    def __init__(self, stem: int, blocks: list[tuple[int, int]], channels: int, bias: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, stem, 3, 1, 1, bias=bias)]
        layers.append(nn.LeakyReLU(0.2))
        features_in = stem
        for features, stride in blocks:
            layers.append(Block(features_in, features, stride, bias))
            features_in = features
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(features_in, 1)

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


def train_step(net: Network, optimizer: torch.optim.Optimizer, real: torch.Tensor, x: torch.Tensor):
    """Updates the network on data and flowed samples [B, C, H, W] with the logistic loss."""
    softplus = nn.functional.softplus
    loss = softplus(net(real)).mean() + softplus(-net(x)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    """Answers requests until the input ends."""
    settings = json.loads(sys.argv[1])
    precision, device = settings["precision"], settings.get("device", "cpu")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    torch.backends.cudnn.allow_tf32 = precision == "tensorfloat32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tensorfloat32"
    torch.backends.cudnn.benchmark = True
    (height, width, channels), hyper = settings["shape"], settings["flow"]
    layout = torch.channels_last
    x = torch.rand(settings["batch"], channels, height, width) * 2.0 - 1.0
    x = x.to(device, memory_format=layout)
    net = Network(settings["stem"], settings["blocks"], channels, settings["bias"])
    net = net.to(device, memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    copied = copy.deepcopy(net)
    copied.layers.to(dtype)  # The head stays in float32.
    trained, sampler = net, copied
    if settings["compiled"]:
        trained, sampler = torch.compile(net), torch.compile(copied)

    def train() -> None:
        copied.load_state_dict(net.state_dict())  # Also casts.
        flowed = flow(sampler, x.clone(), **hyper)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            train_step(trained, optimizer, x, flowed)

    work = {"flow": lambda: flow(sampler, x.clone(), **hyper), "train": train}
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        work[line.strip()]()
        if device == "cuda":
            torch.cuda.synchronize()
        print("done", flush=True)


if __name__ == "__main__":
    main()
