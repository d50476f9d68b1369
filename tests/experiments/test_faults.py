"""Whatever ends a run, nothing is lost but the work since its last checkpoint.

The faults are those of `python -m benchmarks.faults`, injected into the program itself.
"""

import pytest

from benchmarks.faults import crashes, numbers, storage

pytestmark = pytest.mark.slow  # Each starts the program several times.


def test_a_run_that_is_killed_twenty_times_ends_bit_equal_to_an_uninterrupted_one(tmp_path):
    outcome = crashes.kill_at_random(tmp_path, times=20)
    assert not outcome.complaints
    assert outcome.times == 20


def test_sigterm_saves_the_step_and_ends_with_a_code_of_its_own(tmp_path):
    assert not crashes.terminate(tmp_path).complaints


def test_sigterm_to_one_of_two_processes_saves_the_same_step_on_both(tmp_path):
    assert not crashes.terminate_one_of_two(tmp_path).complaints


def test_when_a_process_dies_the_other_ends_with_a_message_and_both_can_go_on(tmp_path):
    assert not crashes.kill_one_of_two(tmp_path).complaints


def test_a_full_disk_ends_the_run_with_one_line_and_leaves_the_last_checkpoint(tmp_path):
    assert not storage.fill_disk(tmp_path).complaints


def test_a_read_only_workdir_is_told_in_one_line(tmp_path):
    assert not storage.forbid_writing(tmp_path).complaints


def test_a_second_run_in_a_workdir_refuses_and_names_the_first(tmp_path):
    assert not storage.start_twice(tmp_path).complaints


def test_a_clock_that_jumps_changes_nothing(tmp_path):
    assert not numbers.let_clock_jump(tmp_path).complaints
