"""Writes checkpoints like the authors' PyTorch program, with its names, shapes and settings."""

import torch
from torch import nn

# Channels, blocks and stride of each stage, and the stage that self-attention follows.
NETWORKS = {
    "cifar10": (((128, 3, 1), (256, 3, 2), (256, 3, 2), (256, 3, 2)), 1),
    "celeba": (((64, 1, 2), (128, 2, 2), (256, 2, 2), (256, 2, 2)), 2),
    "lsun_church": (((64, 1, 2), (128, 1, 2), (128, 2, 2), (256, 2, 2), (256, 2, 2)), 2),
    "cat2dog": (((64, 1, 2), (128, 1, 2), (128, 1, 2), (256, 1, 2)), 2),
}
IMAGE_SIZE = {"cifar10": 32, "celeba": 64, "lsun_church": 128, "cat2dog": 64}
SPECTRAL_NORM = ("cifar10", "cat2dog")
ACTIVATE = nn.LeakyReLU(0.2)


def settings(dataset):
    """The content of their config file for a data set, with the additions of the program."""
    return {
        "data_dir": "./data",
        "dataset": dataset,
        "exp_root_dir": "./results/x/2024",
        "use_wandb": True,
        "learning_rate": 1e-4,
        "n_epochs": 40_000 if dataset == "cat2dog" else 100_000,
        "print_steps": 1000,
        "log_steps": 1000,
        "save_steps": 1000,
        "device": [0, 1],
        "loss_function": "LR",
        "scheduler_gamma": 0.1,
        "scheduler_steps": [80_000, 90_000],
        "img_size": IMAGE_SIZE[dataset],
        "n_channels": 3,
        "train_batch_size": 48,
        "test_batch_size": 64,
        "f_divergence": "logD",
        "eta": 3.0,
        "noise_factor": 0.02,
        "model": "resnet",
        "ema": True,
        "ema_rate": 0.998,
        "spectral_norm": dataset in SPECTRAL_NORM,
        "n_flow_steps": 90,
        "self_attn": dataset == "cat2dog",
        "wandb_notes": "NIL",
        "wandb_id": "abc",
        "run_name": "x",
        "log_dir": "./logs",
        "ckpt_dir": "./ckpts",
        "config": "configs/x.yaml",
        "ckpt": None,
    }


class Attention(nn.Module):
    def __init__(self, channels, wrap):
        super().__init__()
        inner = channels // 8
        self.key = wrap(nn.Conv2d(channels, inner, 1))
        self.query = wrap(nn.Conv2d(channels, inner, 1))
        self.value = wrap(nn.Conv2d(channels, inner, 1))
        self.self_att = wrap(nn.Conv2d(inner, channels, 1))
        self.gamma = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        key, query, value = (part(x).flatten(2) for part in (self.key, self.query, self.value))
        weights = torch.softmax(key.transpose(1, 2) @ query, dim=1)
        return x + self.gamma * self.self_att((value @ weights).unflatten(2, x.shape[2:]))


class Block(nn.Module):
    def __init__(self, before, channels, stride, wrap):
        super().__init__()
        self.conv1 = wrap(nn.Conv2d(before, channels, 3, stride, 1, bias=False))
        self.conv2 = wrap(nn.Conv2d(channels, channels, 3, 1, 1, bias=False))
        self.shortcut_conv = nn.Identity()
        if stride != 1 or before != channels:
            self.shortcut_conv = wrap(nn.Conv2d(before, channels, 1, stride, bias=False))

    def forward(self, x):
        return ACTIVATE(self.conv2(ACTIVATE(self.conv1(x))) + self.shortcut_conv(x))


class Network(nn.Module):
    """Images [B, 3, H, W] -> [B]; an eighth of the width of their networks."""

    def __init__(self, dataset):
        super().__init__()
        normalise = dataset in SPECTRAL_NORM
        wrap = nn.utils.spectral_norm if normalise else lambda module: module
        stages, attention_after = NETWORKS[dataset]
        before = stages[0][0] // 8
        self.conv1 = wrap(nn.Conv2d(3, before, 3, 1, 1, bias=False))
        for number, (channels, blocks, stride) in enumerate(stages, start=1):
            stage = []
            for i in range(blocks):
                stage.append(Block(before, channels // 8, 1 if i else stride, wrap))
                before = channels // 8
            setattr(self, f"layer{number}", nn.Sequential(*stage))
            if dataset == "cat2dog" and number == attention_after:
                self.self_attn_module = Attention(before, wrap)
        self.linear = wrap(nn.Linear(before, 1))

    def forward(self, x):
        x = ACTIVATE(self.conv1(x))
        for name, module in self.named_children():
            if name.startswith(("layer", "self_attn")):
                x = module(x)
        return self.linear(x.mean(dim=(2, 3)))[:, 0]


def save(dataset, path):
    """Trains one step on noise and writes a checkpoint; returns the network and the optimizer."""
    torch.manual_seed(0)
    net = Network(dataset)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.9, 0.999))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    net(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    net.eval()
    weights = net.state_dict()
    entries = {
        "step": 0,
        # Trained on two GPUs: with the prefix of DataParallel, which the average lacks.
        "model": {f"module.{name}": tensor for name, tensor in weights.items()},
        "optim": optimizer.state_dict(),
        "ema": {name: 0.5 * tensor for name, tensor in weights.items()},
        "scheduler": scheduler.state_dict(),
        "config": settings(dataset),
    }
    torch.save(entries, path)
    return net, optimizer
