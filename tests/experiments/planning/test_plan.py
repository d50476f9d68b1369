"""Plans: what they say, what they advise, and how the compiler's faults are explained."""

import json
import re
import subprocess
import sys

import jax
import pytest
from small_runs import SMALL_RESNET, start

from experiments import settings
from experiments.command_line import load_config
from experiments.errors import UserError
from experiments.planning import __main__ as child
from experiments.planning import compiler, environment, process, report, targets
from experiments.planning.report import Plan

NUM = jax.device_count()
GPU = targets.parse(f"gpu:h100:{NUM}")
GIB = 2**30


@pytest.fixture
def _compiled_here(monkeypatch):
    """Lets plans compile in this process, for the devices that it has."""
    monkeypatch.setattr(compiler, "devices_of", lambda target: jax.devices())

    def run(wanted, data_dir, target):
        # Through JSON, as from the other process.
        return json.loads(json.dumps(child.plan(wanted, data_dir, target.text)))

    monkeypatch.setattr(process, "run", run)
    yield
    jax.config.update("jax_default_matmul_precision", None)


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled_here")
def test_a_plan_answers_first_and_needs_no_images(monkeypatch, capsys):
    monkeypatch.delenv("FDRL_DATA_DIR", raising=False)
    changes = {
        **SMALL_RESNET,
        "train.batch_size": 2 * NUM,
        "data.image_size": 8,
        "data.channels": 3,
    }
    start("dry_run", None, "folder:tiny", changes, target=GPU.text)
    waiting, *lines = capsys.readouterr().out.splitlines()
    assert waiting.startswith(f"compiling for {GPU.text}")
    assert lines[0].startswith(f"plan for {NUM} x NVIDIA H100")
    assert lines[1].startswith("fits: training needs")
    text = "\n".join(lines)
    for part in (
        "images (not given, at most) 0.25",
        "largest batch per device",
        "whole run, roofline: ",
        "device hours",
        "input (8, 8, 3)",
        f"batch {2 * NUM}, 2 per device",
        "settings that differ from the defaults:",
    ):
        assert part in text, part
    assert re.search(r"train step, roofline: .* ms, limited by ", text)
    assert re.search(r"TFLOP, .* GB through memory, .* MB to other devices in \d+ collective", text)
    assert re.search(r"\d+ samples, roofline: .* s, limited by", text)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train.batch_size": NUM + 1, "data.channels": 3},
            f"a global batch of {NUM + 1} does not divide over {NUM}",
        ),
        ({"data.image_size": 0}, "set --data_dir, or --config.data.image_size=NUMBER"),
    ],
)
@pytest.mark.usefixtures("_compiled_here")
def test_settings_that_cannot_run_on_the_target_are_refused(changes, expected, monkeypatch):
    monkeypatch.delenv("FDRL_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=re.escape(expected)):
        start("dry_run", None, "folder:tiny", changes, target=GPU.text)


def plan(target=GPU, *, memory, **more):
    cost = {"memory_bytes": 1e9, "num_kernels": 10, "compute_seconds": 0.02, "link_seconds": 0.001}
    part = {"memory": memory, "flops": 1e12, "cost": cost}
    wanted = settings.checked({**load_config("cifar10"), "train.batch_size": 8 * NUM})
    found = {"train": part, "sampler": part, "samples_per_device": 10, "event_shape": [32, 32, 3]}
    return Plan(wanted, target, {**found, "has_data": True, **more})


def test_the_largest_batch_follows_from_the_line_through_two_sizes():
    own = {"arguments": 2 * GIB, "temporary": 8 * GIB}
    double = {"arguments": 3 * GIB, "temporary": 15 * GIB}  # 1 GiB more per example.
    fitting = plan(memory=own, double=double)
    assert fitting.fits
    free = GPU.memory_bytes - 10 * GIB
    assert fitting.largest_batch_size == 8 + free // GIB
    text = "\n".join(report.lines(fitting))
    assert "the line through 8 and 16" in text
    # 100,000 steps of 21 ms, and 5,000 samples in batches of 10 per device.
    hours = (100_000 + -(-5_000 // (10 * NUM))) * 0.021 / 3_600
    assert f"roofline: {hours:.3g} h, {NUM * hours:.3g} device hours" in text


def test_one_size_gives_a_largest_batch_in_proportion():
    only = plan(memory={"arguments": 2 * GIB, "temporary": 8 * GIB})
    assert only.largest_batch_size == 8 + (GPU.memory_bytes - 10 * GIB) // GIB
    assert "in proportion to 8" in "\n".join(report.lines(only))


def test_what_does_not_fit_is_answered_with_what_to_change():
    large = plan(memory={"arguments": 2 * GIB, "temporary": 200 * GIB})
    text = "\n".join(report.lines(large))
    assert "does not fit: training needs 202.00" in text
    # 200 GiB in 4 parts of 50 fit next to the arguments; in 2 they do not.
    assert "--config.train.num_micro_batches=4" in text
    assert "--config.network.remat=true" in text
    assert f"--config.train.batch_size={4 * NUM}" in text
    fixed = plan(memory={"arguments": 200 * GIB, "temporary": 1 * GIB})
    assert "a smaller batch does not help" in "\n".join(report.lines(fixed))
    refused = large._replace(found={"event_shape": [32, 32, 3], "out_of_memory": "Used 20G of 15G"})
    assert "does not fit: Used 20G of 15G" in "\n".join(report.lines(refused))


def test_images_in_memory_count_unless_they_are_there():
    without = plan(memory={"arguments": GIB}, has_data=False)
    assert without.needed_bytes("train") == GIB + 256 * 2**20


@pytest.mark.parametrize(
    ("text", "package"), [("tpu:v5e:4x4", "jax[tpu]"), ("gpu:h100:8", "jax[cuda13]")]
)
def test_a_missing_compiler_is_answered_with_the_command_that_installs_it(
    text, package, monkeypatch
):
    monkeypatch.setattr(process, "_is_installed", lambda name: False)
    with pytest.raises(UserError, match=re.escape(f"python -m pip install '{package}'")):
        start("dry_run", None, "swissroll:tiny", target=text)


def test_faults_of_the_compiler_are_explained_in_a_line():
    target = targets.parse("tpu:v5e:4x4")
    lock = 'ABORTED: libtpu multi-process lockfile. Run "$ sudo rm /tmp/libtpu_lockfile".\n'
    locked = str(process.explain(lock, 1, target))
    assert locked.endswith("left it behind: rm /tmp/libtpu_lockfile")
    other = str(process.explain("Traceback\n  File x\nValueError: no such chip\n", 1, target))
    assert other.endswith("libtpu does not work here: ValueError: no such chip")
    assert str(process.explain("", -6, target)).endswith("it ended with code -6")
    assert "\n" not in locked + other


def test_the_process_that_compiles_has_an_environment_of_its_own():
    given = {"XLA_FLAGS": "--xla_cpu_x", "PATH": "/bin", "JAX_PLATFORMS": "tpu"}
    made = environment.without_devices(given)
    assert "XLA_FLAGS" not in made
    assert made["PATH"] == "/bin"
    assert made["JAX_PLATFORMS"] == "cpu"


def test_a_mistake_in_a_target_ends_the_program_with_one_line():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.main", "--mode=dry_run", "--config=swissroll"),
            "--target=gpu:h10:8",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --target=gpu:h10:8 is unknown; did you mean 'h100'?")
    assert len(done.stderr.splitlines()) == 1
