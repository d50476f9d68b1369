"""Mapping over devices: the only file that knows how replicas are distributed.

Steps and samplers are per-replica functions with an axis name, mapped here with `jax.pmap`. With
several processes (hosts), the axis spans the devices of all, in the order of the processes.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

__all__ = [
    "AXIS",
    "any_process",
    "gather",
    "map_sampler",
    "map_steps",
    "replicate",
    "shard",
    "unreplicate",
]
__dir__ = __all__.copy

AXIS = "replicas"


def replicate(tree: Any) -> Any:
    """Copies a pytree to every local device: a new leading axis of replicas.

    Each copy goes to its device directly, so that no device ever holds those of others.
    """
    devices = [d for d in jax.devices() if d.process_index == jax.process_index()]
    spec = jax.sharding.PartitionSpec(AXIS)  # type: ignore[no-untyped-call]
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), (AXIS,)), spec)

    def copy(a: Any) -> jax.Array:
        one = a[None] if isinstance(a, jax.Array) else np.asarray(a)[None]
        parts = [jax.device_put(one, device) for device in devices]
        shape = len(devices), *one.shape[1:]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return jax.tree.map(copy, tree)


def unreplicate(tree: Any) -> Any:
    """Returns the first replica of a pytree, as arrays on one device."""
    return jax.tree.map(lambda a: a.addressable_shards[0].data[0], tree)


def shard(tree: Any) -> Any:
    """Splits leading axes over the local devices: [N, ...] -> [devices, N/devices, ...]."""
    num = jax.local_device_count()

    def split(a: Any) -> Any:
        if len(a) % num:
            raise ValueError(f"{len(a)} examples do not divide over {num} devices")
        return a.reshape(num, len(a) // num, *a.shape[1:])

    return jax.tree.map(split, tree)


def gather(tree: Any) -> Any:
    """Undoes `shard`, of equal parts of all processes: -> [N, ...] on every process."""
    tree = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(jax.tree.map(np.asarray, tree), tiled=True)


def map_steps(repeated_step: Callable[..., Any]) -> Any:
    """Maps `steps.repeat_steps` over devices.

    Key and count of steps are shared; the other arguments have a leading axis of replicas. All five
    are positional. The buffers of the state are donated.
    """
    in_axes = (None, 0, 0, 0, None)
    return jax.pmap(repeated_step, axis_name=AXIS, in_axes=in_axes, donate_argnums=1)


def map_sampler(sampler: Callable[..., Any], *, num_shared: int = 0) -> Any:
    """Maps `(key, variables, constants, batch, ...) -> samples` over devices.

    They share the key and the last `num_shared` arguments.
    """
    in_axes = (None, 0, 0, 0, *[None] * num_shared)
    return jax.pmap(sampler, axis_name=AXIS, in_axes=in_axes)


def any_process(flag: bool) -> jax.Array:
    """Starts an asynchronous check whether a flag is set on any process.

    Every process must call this equally often. Nothing waits until the answer is read, with `bool`.
    """
    answer: jax.Array = unreplicate(_max_over_replicas(replicate(np.int32(flag))))
    return answer


_max_over_replicas = jax.pmap(lambda flag: lax.all_gather(flag, AXIS).max(), axis_name=AXIS)
