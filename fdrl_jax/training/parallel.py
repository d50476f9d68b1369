"""Mapping over devices and processes: the only file that knows how replicas are distributed.

Steps and samplers are per-replica functions with an axis name. Here they are mapped with
`jax.pmap`. To map them in another way (`jit` of `shard_map`), change only this file. With several
processes (hosts), the axis spans the devices of all processes, in the order of the processes.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

AXIS = "replicas"

# Which arguments of a mapped function have a leading axis of replicas; the others are shared.
_STEP_AXES = (None, 0, 0, 0, None, None)
_STATE = (1,)  # The argument of a step whose buffers are donated.
_SAMPLER_AXES = (None, 0, 0, 0)


def replicate(tree: Any) -> Any:
    """Copies a pytree to every local device: a new leading axis of replicas.

    Each copy goes to its device directly, so that no device ever holds those of others.
    """

    def copy(a: Any) -> jax.Array:
        one = a[None] if isinstance(a, jax.Array) else np.asarray(a)[None]
        return _on_local_devices([one] * jax.local_device_count())

    return jax.tree.map(copy, tree)


def distribute(array: Any) -> jax.Array:
    """Distributes the rows of an array over the devices of all processes, which all must have it.

    Returns:
      [devices of this process, N/n, ...] for an array [N, ...] and `n` replicas.

    Raises:
      ValueError: if the rows do not divide over the replicas.
    """
    size, rest = divmod(len(array), num_replicas())
    if rest:
        raise ValueError(f"{len(array)} rows do not divide over {num_replicas()} replicas")
    first = jax.process_index() * jax.local_device_count()
    replicas = range(first, first + jax.local_device_count())
    return _on_local_devices([array[None, i * size : (i + 1) * size] for i in replicas])


def unreplicate(tree: Any) -> Any:
    """Returns the first replica of a pytree, as arrays on one device."""
    return jax.tree.map(lambda a: a.addressable_shards[0].data[0], tree)


def local_part(array: np.ndarray) -> np.ndarray:
    """Returns the equal part of [N, ...] that this process computes: consecutive, in order.

    Raises:
      ValueError: if the examples do not divide over the processes.
    """
    num = jax.process_count()
    if len(array) % num:
        raise ValueError(f"{len(array)} examples do not divide over {num} processes")
    size = len(array) // num
    return array[jax.process_index() * size :][:size]


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
    """Undoes `shard` and `local_part`: [devices, N/devices, ...] -> [N, ...] on every process."""
    tree = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(jax.tree.map(np.asarray, tree), tiled=True)


def map_steps(repeated_step: Callable[..., Any]) -> Any:
    """Maps `steps.repeat_steps` over devices.

    Key, count of steps and offset of batches are shared; the other arguments have a leading axis of
    replicas. All six are positional. The buffers of the state are donated.
    """
    return jax.pmap(repeated_step, axis_name=AXIS, in_axes=_STEP_AXES, donate_argnums=_STATE)


def map_sampler(sampler: Callable[..., Any]) -> Any:
    """Maps `(key, variables, constants, batch) -> samples` over devices, which share the key."""
    return jax.pmap(sampler, axis_name=AXIS, in_axes=_SAMPLER_AXES)


def map_segment(segment: Callable[..., Any]) -> Any:
    """Maps `samplers.make_segment` over devices, which share the key and the first step."""
    return jax.pmap(segment, axis_name=AXIS, in_axes=(None, 0, 0, 0, None))


def lower_steps(
    repeated_step: Callable[..., Any], devices: Sequence[jax.Device], arguments: tuple[Any, ...]
) -> Any:
    """Lowers the function of `map_steps` for devices that this machine may not have.

    Args:
      repeated_step: as for `map_steps`.
      devices: of any number of hosts, such as those of `jax.experimental.topologies`.
      arguments: shapes and dtypes of one replica's arguments.

    Returns:
      A `jax.stages.Lowered`.
    """
    return _lower(repeated_step, devices, arguments, _STEP_AXES, _STATE)


def lower_sampler(
    sampler: Callable[..., Any], devices: Sequence[jax.Device], arguments: tuple[Any, ...]
) -> Any:
    """Lowers the function of `map_sampler`, as `lower_steps` does."""
    return _lower(sampler, devices, arguments, _SAMPLER_AXES)


def local_batch_size(global_batch_size: int, num: int | None = None) -> int:
    """Returns the examples of one replica.

    Args:
      global_batch_size: examples of all replicas.
      num: number of replicas; that of all devices of all processes if it is left out.

    Raises:
      ValueError: if the global batch does not divide over the replicas.
    """
    num = jax.device_count() if num is None else num
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


def num_replicas() -> int:
    """Returns the number of replicas on all processes."""
    return jax.device_count()


def is_first_process() -> bool:
    """Returns whether this is the first process. Only this process writes shared files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def same_on_all_processes(text: str) -> bool:
    """Returns whether a text is the same on every process; all of them must call this."""
    if jax.process_count() == 1:
        return True
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    gathered = multihost_utils.process_allgather(digest)
    return bool(np.all(gathered == gathered[:1]))


def any_process(flag: bool) -> jax.Array:
    """Starts an asynchronous check whether a flag is set on any process.

    Every process must call this equally often. Nothing waits until the answer is read, with `bool`.
    """
    answer: jax.Array = unreplicate(_max_over_replicas()(replicate(np.int32(flag))))
    return answer


def first_process_says(flag: bool) -> bool:
    """Returns the flag of the first process; all processes must call this.

    Whether a file exists may look different on other hosts: network file systems keep answers for a
    minute.
    """
    return bool(any_process(flag and is_first_process())) if jax.process_count() > 1 else flag


def divergent_replicas(tree: Any) -> list[int]:
    """Returns which replicas of a replicated pytree differ in any bit from most of them.

    Costs a pass over the tree on each device and a number a device between them. One changed word
    always shows; more changes cancel with a chance of 2^-32.
    """
    sums = np.asarray(unreplicate(_checksums()(tree)))
    values, counts = np.unique(sums, return_counts=True)
    return [int(i) for i in np.flatnonzero(sums != values[np.argmax(counts)])]


def _on_local_devices(arrays: Sequence[Any]) -> jax.Array:
    """Copies arrays [1, ...] to one local device each, and joins them along the first axis."""
    devices = [d for d in jax.devices() if d.process_index == jax.process_index()]
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    spec = jax.sharding.PartitionSpec(AXIS)  # type: ignore[no-untyped-call]
    parts = [jax.device_put(a, device) for a, device in zip(arrays, devices, strict=True)]
    return jax.make_array_from_single_device_arrays(
        (len(devices), *parts[0].shape[1:]), jax.sharding.NamedSharding(mesh, spec), parts
    )


def _lower(
    function: Callable[..., Any],
    devices: Sequence[jax.Device],
    arguments: tuple[Any, ...],
    in_axes: tuple[int | None, ...],
    donate_argnums: tuple[int, ...] = (),
) -> Any:
    """Maps by `jit` of `shard_map`, which `pmap` is inside; `pmap` wants this process's devices."""
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    spec = jax.sharding.PartitionSpec
    specs = tuple(spec() if axis is None else spec(AXIS) for axis in in_axes)  # type: ignore[no-untyped-call]

    def of_replica(*parts: Any) -> Any:
        own = [
            part if axis is None else jax.tree.map(lambda a: a[0], part)
            for part, axis in zip(parts, in_axes, strict=True)
        ]
        return jax.tree.map(lambda a: a[None], function(*own))

    def shapes(argument: Any, axis: int | None, spec_of: Any) -> Any:
        sharding = jax.sharding.NamedSharding(mesh, spec_of)
        lead = () if axis is None else (len(devices),)

        def shape(a: Any) -> Any:
            struct: Any = jax.ShapeDtypeStruct
            return struct((*lead, *a.shape), a.dtype, sharding=sharding)

        return jax.tree.map(shape, argument)

    out_specs = spec(AXIS)  # type: ignore[no-untyped-call]
    mapped = jax.shard_map(
        of_replica, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False
    )
    jitted = jax.jit(mapped, donate_argnums=donate_argnums)
    return jitted.lower(*map(shapes, arguments, in_axes, specs))


@functools.cache
def _max_over_replicas() -> Any:
    return jax.pmap(lambda flag: lax.all_gather(flag, AXIS).max(), axis_name=AXIS)


@functools.cache
def _checksums() -> Any:
    def gathered(tree: Any) -> jax.Array:
        total = jnp.uint32(0)
        for leaf in jax.tree.leaves(tree):
            # 64 bits become two words: one alone would lose half of them.
            unsigned = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
            words = leaf.ravel().view(unsigned).astype(jnp.uint32)
            # Odd weights have inverses modulo 2^32, so that no single change is lost.
            weights = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
            total = 31 * total + jnp.sum(words * weights, dtype=jnp.uint32)
        sums: jax.Array = lax.all_gather(total, AXIS)
        return sums

    return jax.pmap(gathered, axis_name=AXIS)
