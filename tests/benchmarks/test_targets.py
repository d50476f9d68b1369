"""Targets: what can be planned for, and what a mistake is answered with."""

import re

import pytest

from benchmarks.accelerator import targets
from experiments.errors import UserError

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
