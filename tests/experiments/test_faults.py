"""Whatever ends a run, nothing is lost but the work since its last checkpoint.

The faults are those of `python -m benchmarks.faults`, injected into the program itself.
"""

import pytest

from benchmarks.faults import crashes, injection, numbers, positions, storage
from benchmarks.faults.fork_server import ForkServer
from benchmarks.faults.injection import KINDS

pytestmark = pytest.mark.slow  # Each starts the program several times.


def test_a_run_that_is_killed_again_and_again_ends_bit_equal_to_an_uninterrupted_one(tmp_path):
    outcome = crashes.kill_at_random(tmp_path, times=4)
    assert not outcome.complaints
    assert outcome.times == 4


@pytest.mark.parametrize(
    "scenario",
    [
        storage.fill_disk,
        storage.forbid_writing,
        storage.remove_workdir,
        storage.start_twice,
        storage.evaluate_twice,
        storage.read_beside_training,
        storage.reject_classifier,
        numbers.let_clock_jump,
    ],
)
def test_nothing_is_lost_and_the_program_ends_with_one_line(scenario, tmp_path):
    assert not scenario(tmp_path).complaints


@pytest.mark.skipif(not injection.can_compile(), reason="needs gcc")
def test_faults_at_file_operations_lose_nothing_and_end_with_one_line(tmp_path):
    with ForkServer(injection.compile_library(tmp_path)) as server:
        whole = positions.uninterrupted(server, tmp_path)
        assert whole.num_operations > 100
        for i, kind in enumerate(KINDS):
            chosen = positions.spread(whole.num_operations, 2, offset=17 * i)
            assert not positions.inject(server, tmp_path, whole, kind, chosen).complaints
        for mode in positions.READERS:
            assert not positions.inject_into_reader(server, tmp_path, mode, 1).complaints
