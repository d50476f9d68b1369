"""Draws are of equal size, and disjoint while there are enough images."""

import numpy as np

from experiments.evaluation import draws
from experiments.evaluation.references import ImageReference


def test_draws_have_disjoint_halves_and_disjoint_samples_while_there_are_enough():
    def draws_of(num_images, num_spare, num_samples):
        spare = np.full((num_spare, 1), 0.75) if num_spare else None
        reference = ImageReference("x", np.full((num_images, 1), 0.25), spare=spare)
        samples, prior = np.full((num_samples, 1), -0.25), np.full((num_samples, 1), -2.0)
        pool = draws.pool(reference, samples, prior)
        for draw in pool.draws:
            real = 0.75 if num_spare else 0.25
            for rows, value in zip(draw, (0.25, -0.25, -1.0, real), strict=True):
                assert set(pool.images[rows, 0]) == {value}
        return pool.draws

    halves = draws_of(100, 0, 250)
    for draw in halves:
        assert [len(rows) for rows in draw] == [50] * 4
        assert not set(draw.reference) & set(draw.real)
    assert len({i for draw in halves for i in draw.samples}) == 250
    with_spare = draws_of(100, 300, 120)
    assert len({i for draw in with_spare for i in draw.reference}) == 100
    assert with_spare[0].real.tolist() != with_spare[1].real.tolist()
    assert all(len(set(draw.samples)) == 100 for draw in with_spare)
    assert draws_of(3, 0, 50) == []


def test_few_images_have_no_metrics_by_neighbours():
    features = np.random.default_rng(0).normal(size=(8, 3))
    assert draws.feature_scores(features, features[:5]).keys() == {"frechet"}
    scores = draws.feature_scores(features, features)
    assert (scores["precision"], scores["coverage"]) == (1.0, 1.0)
    assert scores["frechet"] < 1e-9
