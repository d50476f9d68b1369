"""Whatever ends a run, only the work since its last checkpoint is lost.

The faults are those of `python -m benchmarks.faults`, injected into the program itself.
"""

import pytest

from benchmarks.faults import crashes, injection, positions, storage
from benchmarks.faults.injection import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fork_server")]


def test_a_run_that_is_killed_many_times_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    outcome = crashes.kill_at_random(tmp_path, times=2)
    assert not outcome.complaints
    assert outcome.times == 2


@pytest.mark.parametrize(
    "scenario",
    [
        storage.remove_workdir,
        storage.evaluate_twice,
        storage.read_during_training,
        storage.reject_classifier,
    ],
)
def test_nothing_is_lost_and_the_program_ends_with_one_line(scenario, tmp_path):
    assert not scenario(tmp_path).complaints


@pytest.mark.skipif(not injection.can_compile(), reason="needs gcc")
def test_faults_at_file_operations_lose_nothing_and_end_with_one_line(fork_server, tmp_path):
    whole = positions.uninterrupted(fork_server, tmp_path)
    assert whole.num_operations > 100
    # Each kind at a different place: in the first checkpoint, in the second, and in between.
    places = positions.spread(whole.num_operations, len(KINDS))
    for kind, place in zip(KINDS, places, strict=True):
        outcome = positions.inject(fork_server, tmp_path, whole, kind, [place])
        assert not outcome.complaints
        assert outcome.times == 1
    outcome = positions.inject_into_reader(fork_server, tmp_path, "evaluate", 1)
    assert not outcome.complaints
    assert outcome.codes == "2"
