"""Machines to plan for: what `--target` names, and what `machines.toml` knows of it."""

import functools
import importlib.metadata
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import UserError
from fdrl_jax._names import nearest

_SIZE = r"[1-9]\d{0,5}(x[1-9]\d{0,5})*"
_EXAMPLES = "gpu:h100:8, tpu:v5e:4x4"
# One of these packages has XLA's compiler for the platform.
_COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-pjrt", "jax-cuda12-pjrt")}
_INSTALL = {"tpu": "jax[tpu]", "gpu": "jax[cuda13]"}
# More would only make the arithmetic of shapes overflow somewhere.
_MAX_DEVICES = 65_536


class Target(NamedTuple):
    """Devices of one kind, connected to each other."""

    text: str  # As the user wrote it.
    platform: str  # "gpu" or "tpu".
    shape: tuple[int, ...]  # Of a TPU slice; of GPUs the number of hosts, and of devices per host.
    machine: Mapping[str, Any]  # What the file knows of a device.

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape)

    @property
    def num_hosts(self) -> int:
        """Number of hosts that the devices are spread over."""
        return -(-self.num_devices // int(self.machine["devices_per_host"]))

    @property
    def memory_bytes(self) -> int:
        """Memory of a device that a program may use."""
        return int(self.machine["memory_bytes"] * self.machine["usable"])

    @property
    def link_bandwidth(self) -> float:
        """Bytes per second that leave a device, in one direction."""
        spans_hosts = self.platform == "gpu" and self.shape[0] > 1
        return float(self.machine["network_bandwidth" if spans_hosts else "link_bandwidth"])


def parse(text: str) -> Target:
    """Reads a target such as `gpu:h100:8` or `tpu:v5e:4x4`.

    Raises:
      UserError: for one that `machines.toml` does not describe, with the nearest that it does.
    """
    known = machines()
    platform, _, rest = text.partition(":")
    name, _, size = rest.partition(":")
    if platform not in known:
        raise _unknown(text, f"starts with {' or '.join(known)}", platform, tuple(known))
    if name not in known[platform]:
        names = tuple(known[platform])
        raise _unknown(text, f"names one of {', '.join(names)}", name, names)
    machine = known[platform][name]
    if platform == "gpu":
        axes, what, example = 1, "number of GPUs", "8"
    else:
        axes = machine["topology"]["axes"]
        what, example = f"shape of the slice in {axes} numbers", "x".join(["4"] * axes)
    shape = tuple(map(int, size.split("x"))) if re.fullmatch(_SIZE, size) else ()
    if len(shape) != axes:
        raise UserError(
            f"--target={text} must end with the {what}, such as {platform}:{name}:{example}"
        )
    if platform == "gpu":
        (num,), per_host = shape, machine["devices_per_host"]
        if num > per_host and num % per_host:
            lower = num // per_host * per_host
            raise UserError(
                f"--target={text}: hosts have {per_host} GPUs; use {lower} or {lower + per_host}"
            )
        shape = (-(-num // per_host), min(num, per_host))
    if math.prod(shape) > _MAX_DEVICES:
        raise UserError(f"--target={text} has more than {_MAX_DEVICES:,} devices")
    return Target(text, platform, shape, machine)


def check_compiler(target: Target) -> None:
    """Checks that XLA's compiler for a target is installed.

    Raises:
      UserError: with the command that installs it.
    """
    packages = _COMPILERS[target.platform]
    # A name may have underscores, and an installation that was interrupted may have none.
    installed = {(p.name or "").replace("_", "-") for p in importlib.metadata.distributions()}
    if installed.isdisjoint(packages):
        raise UserError(
            f"--target={target.text} needs XLA's compiler, which is in {' or '.join(packages)}: "
            f"python -m pip install '{_INSTALL[target.platform]}'"
        )


@functools.cache
def machines() -> dict[str, Any]:
    """Returns the descriptions of all machines, by platform and name."""
    read = tomllib.loads(Path(__file__).with_name("machines.toml").read_text())
    return {
        platform: {name: common | own for name, own in read[platform].items()}
        for platform, common in read["common"].items()
    }


def _unknown(text: str, wanted: str, word: str, known: tuple[str, ...]) -> UserError:
    return UserError(
        f"--target={text} is unknown{nearest(word, known)}; a target {wanted}, as in {_EXAMPLES}"
    )
