"""The residual networks in PyTorch eager, for comparison alone; PyTorch is optional."""

import torch
from torch import nn

from fdrl_jax.networks import ResNetSpec


class Block(nn.Module):
    def __init__(self, features_in: int, features: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features_in, features, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        changes = stride != 1 or features_in != features
        self.shortcut = (
            nn.Conv2d(features_in, features, 1, stride, bias=False) if changes else nn.Identity()
        )
        self.activate = nn.LeakyReLU(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.activate(self.first(x)))
        return self.activate(y + self.shortcut(x))


class Network(nn.Module):
    """Maps images [B, C, H, W] to [B]."""

    def __init__(self, spec: ResNetSpec, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, spec.stem, 3, 1, 1, bias=False)]
        layers.append(nn.LeakyReLU(0.2))
        features_in = spec.stem
        for features, stride in spec.blocks:
            layers.append(Block(features_in, features, stride))
            features_in = features
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(features_in, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(dim=(2, 3)))[:, 0]


def flow(net: Network, x: torch.Tensor, num_steps: int, step_size: float, noise_scale: float):
    """Flows images with the network's parameters frozen."""
    net.requires_grad_(False)
    for _ in range(num_steps):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(x).sum(), x)
        x = x.detach() - step_size * gradient + noise_scale * torch.randn_like(x)
    net.requires_grad_(True)
    return x


def train_step(net: Network, optimizer: torch.optim.Optimizer, real: torch.Tensor, x: torch.Tensor):
    """Updates the network on data and flowed samples [B, C, H, W] with the logistic loss."""
    softplus = nn.functional.softplus
    loss = softplus(net(real)).mean() + softplus(-net(x)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
