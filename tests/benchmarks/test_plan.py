"""Plans: what they say of a run, and how a mistake is answered."""

import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.accelerator import compiler, plan, targets
from benchmarks.accelerator.roofline import Cost
from experiments import experiment, settings
from experiments.data.load import load
from experiments.errors import UserError
from fdrl_jax.training import parallel

NUM = jax.device_count()
TARGET = targets.parse(f"gpu:h100:{NUM}")
GIB = 2**30
TINY = ("--config=cifar10:tiny", f"--config.train.batch_size={2 * NUM}")


@pytest.fixture
def _compiled_here(monkeypatch):
    """Lets plans compile for the devices of this process."""
    monkeypatch.setattr(compiler, "devices_of", lambda target: jax.devices())
    yield
    jax.config.update("jax_default_matmul_precision", None)


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled_here")
def test_a_plan_needs_no_images_and_answers_first_whether_the_run_fits():
    small = ("--config.network.name=resnet", "--config.network.blocks=((8,2),)")
    made = plan.make([*TINY, *small, "--config.prior.rank=8"], TARGET)
    assert made.train.cost.num_flow_kernels > 0
    assert made.flops > 0
    first, second, *others = plan.lines(made)
    assert first.startswith(f"plan for {NUM} x NVIDIA H100")
    assert second.startswith("fits: training needs")
    assert "images (at most) 0.25" in second
    text = "\n".join(others)
    for expected in (
        "largest batch per device that fits: about",
        "whole run, roofline: ",
        "device hours (4 training steps, 64 samples)",
        f"the line through 2 and {4}",
        f"network: input (32, 32, 3), bfloat16; batch {2 * NUM}, 2 per device",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--config=cifar10", f"--config.train.batch_size={NUM + 1}"],
            f"does not divide over {NUM}",
        ),
        (["--config=celeba", "--config.data.image_size=0"], "set --config.data.image_size=NUMBER"),
        ([], "--config=FILE.py is missing"),
    ],
)
@pytest.mark.usefixtures("_compiled_here")
def test_settings_that_cannot_run_on_the_target_are_refused(flags, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        plan.make(flags, TARGET)


@pytest.mark.parametrize(("megabytes", "is_distributed"), [(0, True), (256, False)])
def test_the_shapes_of_arguments_are_those_of_training(
    megabytes, is_distributed, tmp_path, monkeypatch
):
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(experiment, "MIN_DISTRIBUTED_BYTES", 0 if is_distributed else 2**30)
    flat = {"data.name": "folder", "data.dir": str(tmp_path), "prior.name": "data_dependent"}
    flat |= {"data.in_memory_megabytes": megabytes, "train.batch_size": 2 * NUM}
    flat |= {"network.name": "resnet", "network.width": 4, "network.blocks": ((4, 2),)}
    wanted = settings.from_config({**flat, "train.steps_per_dispatch": 3})
    model = experiment.build(wanted, load(wanted.data))
    with model.open_feed(0) as take:
        batches = take(2)
    state = parallel.replicate(model.init_state())
    constants = experiment.on_devices(model.constants)
    arguments = (model.root_key, state, constants, batches, np.int32(2), np.int32(0))
    shapes = compiler.argument_shapes(model, NUM)
    for i, (expected, actual) in enumerate(zip(shapes, arguments, strict=True)):
        of_device = (lambda a: a.shape[1:]) if i in (1, 2, 3) else np.shape
        assert jax.tree.map(lambda s: s.shape, expected) == jax.tree.map(of_device, actual)


def planned(memory, **more):
    program = plan.Program(memory, Cost(num_kernels=10, compute_seconds=0.02, link_seconds=0.001))
    return plan.Plan(
        settings.from_config({"train.batch_size": 8 * NUM}),
        TARGET,
        (32, 32, 3),
        0,
        **{"train": program, "sampler": program, "num_drawn": 10 * NUM, **more},
    )


def test_the_largest_batch_and_the_time_follow_from_what_was_compiled():
    text = "\n".join(
        plan.lines(planned({"arguments": 2 * GIB, "temporary": 8 * GIB}, double=18 * GIB))
    )
    free = TARGET.memory_bytes - 10 * GIB  # Each further example takes 1 GiB.
    assert f"about {8 + free // GIB:,} (an estimate, the line through 8 and 16)" in text
    # 100,000 steps of 21 ms, and 10,000 samples in batches of 10 per device.
    hours = (100_000 + -(-10_000 // (10 * NUM))) * 0.021 / 3_600
    assert f"roofline: {hours:.3g} h, {NUM * hours:.3g} device hours" in text


def test_a_run_that_does_not_fit_is_answered_with_what_to_change():
    large = "\n".join(plan.lines(planned({"arguments": 2 * GIB, "temporary": 200 * GIB})))
    assert "does not fit: training needs 202.00" in large
    assert "try network.remat=True" in large
    refused = planned({}, train=None, out_of_memory="Used 20G of 15G")
    assert "does not fit: training: Used 20G of 15G" in "\n".join(plan.lines(refused))


def test_a_missing_compiler_is_answered_with_the_command_that_installs_it(monkeypatch):
    installed = [SimpleNamespace(name=None), SimpleNamespace(name="jax_cuda13_pjrt")]
    monkeypatch.setattr(targets.importlib.metadata, "distributions", lambda: installed)
    targets.check_compiler(TARGET)
    with pytest.raises(UserError, match=re.escape("python -m pip install 'jax[tpu]'")):
        targets.check_compiler(targets.parse("tpu:v5e:4x4"))


def test_a_mistake_in_a_target_ends_the_program_with_one_line():
    command = [sys.executable, "-m", "benchmarks.accelerator.plan", "--target=gpu:h10:8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --target=gpu:h10:8 is unknown; did you mean 'h100'?")
    assert len(done.stderr.splitlines()) == 1
