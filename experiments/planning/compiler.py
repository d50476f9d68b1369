"""Compiles the train step and the sampler of a run for devices that this machine does not have.

The process must have been started with `environment.without_devices`: the compilers of GPUs and
TPUs are found, and look for their devices, before JAX starts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from experiments import build
from experiments.data import Source
from experiments.planning import hlo, work
from experiments.planning.targets import Target
from experiments.settings import Settings
from fdrl_jax.training import parallel, samplers


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


def prepare(settings: Settings) -> Settings:
    """Sets how the target multiplies float32 arrays, and returns the settings that it uses.

    `precision=auto` means bfloat16, because all targets are fast in it.
    """
    precision = "bfloat16" if settings["precision"] == "auto" else settings["precision"]
    jax.config.update("jax_default_matmul_precision", precision)
    return {**settings, "precision": precision}


def train_step(settings: Settings, source: Source, devices: list[Any]) -> Compiled:
    """Compiles the train step, mapped over devices of `devices_of`, as training dispatches it.

    Raises:
      UserError: for settings that are not possible.
    """
    experiment = build.experiment(settings, source)
    training = build.ratio_training(experiment, len(devices))
    arguments = training.argument_shapes(len(devices))
    return _compile(parallel.lower_steps(training.repeated_step(), devices, arguments), devices)


def sampler(settings: Settings, source: Source, devices: list[Any]) -> tuple[Compiled, int]:
    """Compiles the sampler, and returns it with the samples per device of a batch."""
    experiment = build.experiment(settings, source)
    wanted = min(settings["evaluate.batch_size"], settings["evaluate.num_samples"])
    size = -(-wanted // len(devices))
    batch = {"position": jax.ShapeDtypeStruct((size,), jnp.int32)}
    if source.starts is not None:
        batch["source"] = jax.ShapeDtypeStruct((size, *source.event_shape), jnp.float32)
    arguments = (
        jax.eval_shape(lambda: experiment.root_key),
        experiment.sampling_variables(experiment.state_shapes()),
        build.shapes_on_device(experiment.constants, len(devices)),
        batch,
    )
    lowered = parallel.lower_sampler(samplers.make_sampler(experiment.problem), devices, arguments)
    return _compile(lowered, devices), size


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
