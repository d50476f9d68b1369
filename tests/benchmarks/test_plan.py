"""Plans: what they say of a run, and how a mistake is answered."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.accelerator import compiler, page, plan, targets
from benchmarks.accelerator.roofline import Cost
from experiments import experiment, settings
from experiments.data.load import load
from experiments.errors import UserError
from fdrl_jax.training import parallel

ROOT = Path(__file__).parents[2]
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


# Targets

PRECISIONS = {"bfloat16", "tensorfloat32", "float32"}
EXAMPLES = {"gpu": "8", "v4": "2x2x1", "v5p": "2x2x1", "v5e": "4x4", "v6e": "4x4"}


def examples():
    for platform, machines in targets.machines().items():
        for name in machines:
            yield f"{platform}:{name}:{EXAMPLES.get(name, EXAMPLES['gpu'])}"


@pytest.mark.parametrize("text", list(examples()))
def test_every_machine_of_the_file_is_described_in_full_with_its_sources(text):
    target = targets.parse(text)
    machine, peaks = target.machine, target.machine["peak"]
    assert set(peaks) == PRECISIONS
    assert peaks["bfloat16"] > peaks["tensorfloat32"] > peaks["float32"]
    assert 10e9 < target.memory_bytes < 1e12
    assert 1e11 < machine["memory_bandwidth"] < 1e14
    assert 1e10 < target.link_bandwidth < 1e13
    assert machine["title"]
    assert machine["sources"]
    assert machine["kernel_seconds" if target.platform == "gpu" else "clock_ghz"] > 0


def test_a_target_has_devices_and_hosts():
    assert targets.parse("gpu:h100:4").num_devices == 4
    assert targets.parse("gpu:h100:1").num_hosts == 1
    assert targets.parse("tpu:v5e:16x16").num_devices == 256
    assert targets.parse("tpu:v5e:16x16").num_hosts == 64
    several = targets.parse("gpu:h100:16")
    assert (several.num_hosts, several.shape) == (2, (2, 8))
    # The slower network limits what goes between hosts.
    assert several.link_bandwidth < targets.parse("gpu:h100:8").link_bandwidth


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu:h1000:8", "did you mean 'h100'?"),
        ("tpu:v5:4x4", "a target names one of v4, v5e, v5p, v6e"),
        ("tpux:v5e:4x4", "did you mean 'tpu'?"),
        ("h100", "a target starts with gpu or tpu, as in gpu:h100:8, tpu:v5e:4x4"),
        ("gpu:h100", "must end with the number of GPUs, such as gpu:h100:8"),
        ("gpu:h100:0", "must end with the number of GPUs"),
        ("gpu:h100:-1", "must end with the number of GPUs"),
        ("gpu:h100:12", "hosts have 8 GPUs; use 8 or 16"),
        ("gpu:h100:999999", "hosts have 8 GPUs"),
        ("gpu:h100:800000", "has more than 65,536 devices"),
        ("tpu:v5e:4", "the shape of the slice in 2 numbers, such as tpu:v5e:4x4"),
        ("tpu:v4:4x4", "the shape of the slice in 3 numbers, such as tpu:v4:4x4x4"),
        ("tpu:v5e:0x4", "the shape of the slice"),
        ("tpu:v5e:100000x1", "has more than 65,536 devices"),
    ],
)
def test_a_mistake_is_answered_with_what_to_write(text, expected):
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        targets.parse(text)
    assert "\n" not in str(caught.value)


# The benchmark


@pytest.mark.slow
def test_the_small_form_measures_compares_and_trains(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--small", f"--folder={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "accelerator.json").read_text())
    (speed,) = results["speed"]
    assert speed["network"] == "small"
    assert min(speed["flow_step_seconds"], speed["train_seconds"]) > 0
    assert speed["flow_flops"] < speed["train_flops"]
    (compared,) = results["agreement"]
    assert len(compared["errors"]) == 4
    assert max(compared["errors"].values()) < compared["bound"]
    assert results["training"]["steps"] == 4
    assert results["training"]["images_per_second"] > 0
    assert (tmp_path / results["training"]["picture"]).exists()
    text = (tmp_path / "accelerator.md").read_text()
    assert text == page.page(results)
    assert "| small | float32 |" in text
    assert "**outside**" not in text
    if importlib.util.find_spec("torch") is None:
        assert "PyTorch, which is not installed" in text
    else:
        assert [row["compiled"] for row in results["pytorch"]] == [False]
