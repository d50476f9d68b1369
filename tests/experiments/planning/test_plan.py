"""Plans: what they say, what they advise, and how the compiler's faults are explained."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

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


CONFIG = """
from configs import digits
def get_config():
    return digits.get_config("tiny")
def get_config_for(platform, event_shape):
    config = get_config()
    config.network.width = event_shape[0] * {"gpu": 1, "tpu": 2, "cpu": 3}[platform]
    return config
"""


@pytest.mark.parametrize(("target", "width"), [("gpu:h100:1", 8), ("tpu:v5e:1x1", 16)])
def test_a_config_that_depends_on_the_device_and_the_data_is_that_for_the_target(
    target, width, tmp_path, monkeypatch
):
    def run(wanted, data_dir, target):
        assert wanted["network.width"] == width
        assert wanted["flow.num_steps"] == 3
        raise UserError("planned")

    (tmp_path / "own.py").write_text(CONFIG)
    monkeypatch.setattr(process, "run", run)
    with pytest.raises(UserError, match="planned"):
        start("dry_run", None, tmp_path / "own.py", {"flow.num_steps": 3}, target=target)


def plan(target=GPU, *, memory, changes=None, **more):
    cost = {"memory_bytes": 1e9, "num_kernels": 10, "compute_seconds": 0.02, "link_seconds": 0.001}
    part = {"memory": memory, "cost": cost}
    wanted = {**load_config("cifar10"), "train.batch_size": 8 * NUM, **(changes or {})}
    found = {"train": part, "sampler": part, "samples_per_device": 10, "event_shape": [32, 32, 3]}
    found |= {"flops": 1e12, "has_data": True, **more}
    return Plan(settings.checked(wanted), target, found)


def advice(of):
    return [line for line in report.lines(of) if line.startswith("  try ")]


def test_the_largest_batch_follows_from_the_line_through_two_sizes():
    own = {"arguments": 2 * GIB, "temporary": 8 * GIB}
    double = {"arguments": 3 * GIB, "temporary": 15 * GIB}  # 1 GiB more per example.
    fitting = plan(memory=own, double=double)
    assert fitting.fits("train", "sampler")
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
    assert "does not fit: training: Used 20G of 15G" in "\n".join(report.lines(refused))


@pytest.mark.parametrize(("used", "expected"), [(1, 4), (2, 8), (4, None)])
def test_more_micro_batches_are_advised_than_there_are(used, expected):
    # One of the parts that the run already has takes 200 GiB.
    changes = {"train.num_micro_batches": used}
    large = plan(memory={"arguments": 2 * GIB, "temporary": 200 * GIB}, changes=changes)
    found = [line for line in advice(large) if "num_micro_batches" in line]
    assert [re.search(r"\d+", line)[0] for line in found] == [str(expected)] * bool(expected)


def test_smaller_batches_of_samples_come_first_if_only_sampling_does_not_fit():
    large = {"memory": {"arguments": 2 * GIB, "temporary": 200 * GIB}}
    fitting = plan(memory={"arguments": 2 * GIB, "temporary": GIB})
    for found in (
        {**fitting.found, "sampler": {**fitting.found["sampler"], **large}},
        # Or the compiler itself says so, and there is no sampler.
        {k: v for k, v in fitting.found.items() if k != "sampler"} | {"out_of_memory": "Used 20G"},
    ):
        text = "\n".join(report.lines(fitting._replace(found=found)))
        assert "does not fit: " in text
        first, *others = advice(fitting._replace(found=found))
        assert first.startswith("  try --config.evaluate.batch_size=250: only sampling does")
        assert not [line for line in others if "batch" in line]


@pytest.mark.parametrize(
    ("failing", "expected"),
    [(1, "does not fit: training: RESOURCE_EXHAUSTED"), (2, "sampling: RESOURCE"), (3, "fits: ")],
)
@pytest.mark.usefixtures("_compiled_here")
def test_out_of_memory_of_any_program_is_answered_by_the_plan(
    failing, expected, monkeypatch, capsys
):
    compiled = []

    def compile_(lowered, devices):
        compiled.append(lowered)
        if len(compiled) == failing:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20G of 15G hbm.")
        text = "ENTRY %main (x: f32[]) -> f32[] {\n}"
        memory = {"arguments": 1, "temporary": 1, "results": 1, "code": 1}
        return SimpleNamespace(text=text, flops=1.0, memory=memory)

    monkeypatch.setattr(compiler, "_compile", compile_)
    start("dry_run", None, "swissroll:tiny", {"train.batch_size": NUM}, target=GPU.text)
    assert expected in capsys.readouterr().out


def test_images_in_memory_count_unless_they_are_there():
    without = plan(memory={"arguments": GIB}, has_data=False)
    assert without.needed_bytes("train") == GIB + 256 * 2**20


@pytest.mark.parametrize(
    ("text", "package"), [("tpu:v5e:4x4", "jax[tpu]"), ("gpu:h100:8", "jax[cuda13]")]
)
def test_a_missing_compiler_is_answered_with_the_command_that_installs_it(
    text, package, monkeypatch
):
    monkeypatch.setattr(process.importlib.metadata, "distributions", list)
    with pytest.raises(UserError, match=re.escape(f"python -m pip install '{package}'")):
        start("dry_run", None, "swissroll:tiny", target=text)


def test_the_package_of_a_compiler_is_known_by_either_of_its_names(monkeypatch):
    installed = [SimpleNamespace(name=None), SimpleNamespace(name="jax_cuda13_pjrt")]
    monkeypatch.setattr(process.importlib.metadata, "distributions", lambda: installed)
    process.check_compiler(GPU)
    with pytest.raises(UserError, match="libtpu"):
        process.check_compiler(targets.parse("tpu:v5e:4x4"))


NOTE = "jax.errors.SimplifiedTraceback: For simplicity, JAX has removed its internal frames."


@pytest.mark.parametrize(
    ("stderr", "code", "expected"),
    [
        ("Traceback\n  File x\nValueError: no such chip\n", 1, "ValueError: no such chip"),
        (f"T\njax.errors.JaxRuntimeError: INTERNAL: x\n----\n{NOTE}\n", 1, "INTERNAL: x"),
        ("F0101 check.cc:1] Check failed: chip\n\n", -6, "F0101 check.cc:1] Check failed: chip"),
        ("", -6, "it ended with code -6"),
    ],
)
def test_faults_of_the_compiler_are_explained_in_a_line(stderr, code, expected):
    explained = str(process.explain(stderr, code, targets.parse("tpu:v5e:4x4")))
    assert "libtpu does not work here: " in explained
    assert explained.endswith(expected)
    assert "\n" not in explained


# Instead of the process that compiles: what it is asked decides what it does.
CHILD = """#!{python}
import json, sys
print("a line of the compiler")
found = json.load(sys.stdin)[0]
if "crash" in found:
    sys.exit("RuntimeError: it crashed")
print(json.dumps(found))
"""


def test_the_process_that_compiles_answers_in_its_last_line(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(CHILD.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(process, "sys", SimpleNamespace(executable=str(program)))
    monkeypatch.setattr(process, "check_compiler", lambda target: None)
    assert process.run({"a": [1, None]}, "", GPU) == {"a": [1, None]}
    for refused, expected in (({"error": "no chip"}, "^no chip$"), ({"crash": 1}, "it crashed$")):
        with pytest.raises(UserError, match=expected):
            process.run(refused, "", GPU)


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
