"""Compiles the training step and the sampler of a run for devices that this machine does not have.

The process must call `plan.set_up` first: the compilers of GPUs and TPUs are found, and look
for their devices, before JAX starts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks.accelerator import hlo, work
from benchmarks.accelerator.targets import Target
from experiments import experiment, settings
from experiments.data import Source, Starts, load
from experiments.data.decode import to_unit
from experiments.errors import UserError
from experiments.experiment import Training
from experiments.settings import Settings
from fdrl_jax.training import parallel, samplers, steps
from fdrl_jax.training.problem import Constants


class Compiled(NamedTuple):
    """A program for devices that this machine does not have, before and after compilation."""

    lowered: Any
    executable: Any

    @property
    def text(self) -> str:
        """XLA's text of the program, after all passes."""
        return str(self.executable.as_text())

    @property
    def flops(self) -> float:
        """FLOPs of products and convolutions, before XLA rewrites them to suit a device."""
        return work.flops(hlo.parse(self.lowered.as_text(dialect="hlo")))

    @property
    def memory(self) -> dict[str, int]:
        """Bytes per device, by purpose."""
        stats = self.executable.memory_analysis()
        return {
            "arguments": int(stats.argument_size_in_bytes),
            "temporary": int(stats.temp_size_in_bytes),
            "results": int(stats.output_size_in_bytes - stats.alias_size_in_bytes),
            "code": int(stats.generated_code_size_in_bytes),
        }


def devices_of(target: Target) -> list[Any]:
    """Returns the devices of a target, which can be used only for compiling."""
    shape = "x".join(map(str, target.shape))
    if target.platform == "tpu":
        options = {k: v for k, v in target.machine["topology"].items() if k != "axes"}
        name = f"{options.pop('name')}:{shape}"
        found = topologies.get_topology_desc(name, "tpu", **options)
    else:
        name, config = target.machine["xla"]["name"], _gpu_config(target.machine)
        found = topologies.get_topology_desc(
            name, "cuda", topology=f"1x{shape}", target_config=config
        )
    return list(found.devices)


def prepare(wanted: Settings) -> Settings:
    """Sets how the target multiplies float32 arrays, and returns the settings that it uses.

    `precision=auto` means bfloat16, because all targets are fast in it.
    """
    precision = "bfloat16" if wanted.precision == "auto" else wanted.precision
    jax.config.update("jax_default_matmul_precision", precision)
    return settings.replace(wanted, {"precision": precision})


def source_of(options: settings.Data) -> Source:
    """Returns the data of a config as far as programs depend on them: images are not read.

    Raises:
      UserError: if the size of the images follows from files.
    """
    if options.name in load.BUILT_IN:
        return load.load(options)
    for key in ("image_size", "channels"):
        if not getattr(options, key):
            raise UserError(
                f"data.{key} is 0, so that it follows from the images, but a plan reads none: set "
                f"--config.data.{key}=NUMBER"
            )

    def draw(arrays: Any, host_batch: Any, key: Any, positions: Any) -> dict[str, jax.Array]:
        return {name: to_unit(pixels) for name, pixels in host_batch.items()}

    def absent(*_: Any) -> Any:
        raise NotImplementedError("a plan only compiles")

    is_pair = options.name == "pair" or bool(options.source_class or options.target_class)
    return Source(
        name=options.name,
        event_shape=(options.image_size, options.image_size, options.channels),
        draw=draw,
        open_feed=absent,  # Streamed, as a large set.
        starts=Starts(absent, 0, 0) if is_pair else None,
    )


def training_step(wanted: Settings, source: Source, devices: list[Any]) -> Compiled:
    """Compiles the training step, mapped over devices of `devices_of`, as training dispatches it.

    Raises:
      UserError: for settings that are not possible.
    """
    model, num = experiment.build(wanted, source), len(devices)
    repeated = steps.repeat_steps(model.make_step(num), wanted.train.steps_per_dispatch)
    shapes = argument_shapes(model, num)
    return _compile(parallel.lower_steps(repeated, devices, shapes), devices)


def sampler(wanted: Settings, source: Source, devices: list[Any]) -> tuple[Compiled, int]:
    """Compiles the sampler, and returns it with the samples per device of a batch."""
    model = experiment.build(wanted, source)
    size = -(-min(wanted.evaluate.batch_size, wanted.evaluate.num_samples) // len(devices))
    batch = {"position": jax.ShapeDtypeStruct((size,), jnp.int32)}
    if source.starts is not None:
        batch["source"] = jax.ShapeDtypeStruct((size, *source.event_shape), jnp.float32)
    arguments = (
        jax.eval_shape(lambda: model.root_key),
        model.sampling_variables(model.state_shapes()),
        shapes_on_device(model.constants, len(devices)),
        batch,
    )
    lowered = parallel.lower_sampler(samplers.make_sampler(model.problem), devices, arguments)
    return _compile(lowered, devices), size


def argument_shapes(model: Training, num_replicas: int) -> tuple[Any, ...]:
    """Returns shapes and dtypes of the arguments of `repeated_step`, for one replica."""
    host_batches = None  # The data are on the device.
    if model.source.open_feed is not None:
        wanted = model.settings.train
        lead = (wanted.steps_per_dispatch, wanted.batch_size // num_replicas)
        pixels = jax.ShapeDtypeStruct((*lead, *model.source.event_shape), jnp.uint8)
        host_batches = {"real": pixels}
        if model.source.starts is not None:
            host_batches["source"] = pixels
        if model.source.labels is not None:
            host_batches["label"] = jax.ShapeDtypeStruct(lead, jnp.int32)
    key, scalar = jax.eval_shape(lambda: (model.root_key, jnp.int32(0)))
    constants = shapes_on_device(model.constants, num_replicas)
    return key, model.state_shapes(), constants, host_batches, scalar, scalar


def shapes_on_device(constants: Constants, num_replicas: int) -> Constants:
    """Returns the shapes and dtypes of the constants on one device."""
    shapes: Constants = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), constants)
    if not experiment.is_distributed(constants, num_replicas):
        return shapes
    whole = shapes.prior["factor"]
    rows = (whole.shape[0] // num_replicas, *whole.shape[1:])
    factor = jax.ShapeDtypeStruct(rows, whole.dtype)
    return shapes._replace(prior={**shapes.prior, "factor": factor})


def _compile(lowered: Any, devices: list[Any]) -> Compiled:
    # Autotuning runs kernels, but there is no device to run them.
    options = {"xla_gpu_autotune_level": "0"} if devices[0].platform == "gpu" else None
    return Compiled(lowered, lowered.compile(compiler_options=options))


def _gpu_config(machine: Mapping[str, Any]) -> str:
    """Returns the description of a GPU for XLA, in the text form of its `GpuTargetConfigProto`.

    The constants here are the same for all GPUs since Ampere.
    """
    xla = dict(machine["xla"])
    name, (major, minor) = xla.pop("name"), xla.pop("compute_capability")
    own = " ".join(f"{key}: {value}" for key, value in xla.items())
    return f"""
      gpu_device_info {{
        {own}
        memory_bandwidth: {int(machine["memory_bandwidth"])}
        device_memory_size: {machine["memory_bytes"]}
        cuda_compute_capability {{ major: {major} minor: {minor} }}
        threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
        shared_memory_per_block: 49152
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 8 }}
      runtime_version {{ major: 13 minor: 0 }}
      device_description_str: "{name}"
    """
