"""Mapping over devices: the only file that knows how replicas are spread.

Steps and samplers are per-replica functions that know an axis name. Here they are mapped with
`jax.pmap`; to map them otherwise (`jit` of `shard_map`), change this file alone.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import jax_utils

AXIS = "replicas"


def replicate(tree: Any) -> Any:
    """Copies a pytree to every local device: a new leading axis of replicas."""
    return jax_utils.replicate(tree)  # type: ignore[no-untyped-call]


def unreplicate(tree: Any) -> Any:
    """Returns the first replica of a pytree, as arrays on one device."""
    return jax.tree.map(lambda a: a.addressable_shards[0].data[0], tree)


def shard(tree: Any) -> Any:
    """Splits leading axes over the local devices: [N, ...] -> [devices, N/devices, ...].

    Raises:
      ValueError: if an axis does not divide.
    """
    num = jax.local_device_count()

    def split(a: Any) -> Any:
        if len(a) % num:
            raise ValueError(f"{len(a)} examples do not divide over {num} devices")
        return a.reshape(num, len(a) // num, *a.shape[1:])

    return jax.tree.map(split, tree)


def gather(tree: Any) -> Any:
    """Undoes `shard`: [devices, N/d, ...] -> [N, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def map_steps(repeated_step: Callable[..., Any]) -> Any:
    """Maps `steps.repeat_steps` over devices.

    All arguments have a leading axis of replicas, but for the count of steps, which all share. The
    buffers of the state are donated.
    """
    return jax.pmap(repeated_step, axis_name=AXIS, in_axes=(0, 0, 0, None), donate_argnums=(0,))


def map_sampler(sampler: Callable[..., Any]) -> Any:
    """Maps `(variables, constants, batch) -> samples` over devices."""
    return jax.pmap(sampler, axis_name=AXIS)


def map_segment(segment: Callable[..., Any]) -> Any:
    """Maps `samplers.make_segment` over devices, which share the number of the first step."""
    return jax.pmap(segment, axis_name=AXIS, in_axes=(0, 0, 0, None))


def local_batch_size(global_batch_size: int) -> int:
    """Returns the examples of one replica.

    Raises:
      ValueError: if the global batch does not divide over all devices of all processes.
    """
    num = jax.device_count()
    if global_batch_size % num:
        nearest = [
            n for n in (global_batch_size // num * num, -(-global_batch_size // num) * num) if n
        ]
        raise ValueError(
            f"a global batch of {global_batch_size} does not divide over {num} devices; "
            f"nearest that do: {', '.join(map(str, nearest))}"
        )
    return global_batch_size // num


def num_devices() -> int:
    """Returns the number of replicas on this process."""
    return jax.local_device_count()
