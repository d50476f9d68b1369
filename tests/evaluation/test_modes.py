"""Coverage of the modes of a mixture."""

import numpy as np
import pytest

from experiments.evaluation.modes import mode_coverage


def test_mode_coverage_counts_samples_within_the_radius_of_their_nearest_mode():
    modes = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    samples = np.array([[0.1, 0.0], [0.0, -0.2], [0.9, 0.0], [0.5, 9.0], [1.0, 0.21]])

    coverage = mode_coverage(samples, modes, radius=0.2)

    assert coverage.num_hit == 2
    assert coverage.num_modes == 3
    assert coverage.high_quality == pytest.approx(3 / 5)
    np.testing.assert_array_equal(coverage.counts, [2, 1, 0])


def test_samples_far_from_all_modes_hit_none():
    coverage = mode_coverage(np.full((4, 2), 9.0), np.zeros((1, 2)), radius=1.0)

    assert coverage[:3] == (0, 1, 0.0)
    np.testing.assert_array_equal(coverage.counts, [0])
