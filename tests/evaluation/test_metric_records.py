"""Metrics have values of the prior and of real data next to them, and one definition."""

import json
from pathlib import Path

import pytest

from experiments.evaluation import metrics
from experiments.evaluation.metrics import Estimate, Metric

DOCS = Path(__file__).parents[2] / "docs"
FAR, NEAR = Estimate(10.0, 0.1), Estimate(1.0, 0.1)


def frechet(value, prior=FAR, real=NEAR):
    return Metric("frechet_svc_360", "frechet", Estimate(value, 0.2), prior, real)


def test_the_spread_is_the_standard_deviation_over_draws_and_one_draw_has_none():
    assert metrics.estimate([1.0, 3.0]) == Estimate(2.0, pytest.approx(2**0.5))
    assert metrics.estimate([1.0]) == Estimate(1.0, None)


def test_metrics_survive_json():
    found = metrics.by_name([frechet(2.0), Metric("kl_to_data", "kl_to_data", Estimate(0.1))])
    assert list(found) == ["kl_to_data", "frechet_svc_360"], "the order of the definitions"
    stored = json.loads(json.dumps(metrics.to_json(found), sort_keys=True))
    assert list(metrics.from_json(stored).items()) == list(found.items())
    assert stored["frechet_svc_360"]["direction"] == "lower"


def test_the_table_has_samples_next_to_the_prior_and_real_data():
    head, row = metrics.table(metrics.by_name([frechet(2.8)])).splitlines()[:2]
    assert head.split() == ["metric", "samples", "prior", "real", "data", "better"]
    assert row.split() == [
        "frechet_svc_360",
        *("2.8", "±", "0.2", "10", "±", "0.1", "1", "±", "0.1", "lower"),
    ]
    lone = Metric("fid_5k", "fid", Estimate(3.0))
    assert metrics.table({"fid_5k": lone}).splitlines()[0].split() == [
        "metric",
        "samples",
        "better",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.9, "Good: by frechet_svc_360, samples are indistinguishable from real data (0.9; "),
        (1.05, "Good: by frechet_svc_360, samples are indistinguishable from real data (1.05; "),
        (1.5, "Good: by frechet_svc_360, samples are close to real data (1.5; "),
        (2.8, "Fair: by frechet_svc_360, samples are closer to real data than to the prior (2.8; "),
        (10.0, "Poor: by frechet_svc_360, samples are as far from real data as the prior is (10; "),
        (9.1, "Weak: by frechet_svc_360, samples are only a little better than the prior (9.1; "),
        (11.0, "Poor: by frechet_svc_360, samples are further from real data than the prior is "),
    ],
)
def test_the_verdict_is_a_sentence_with_its_reason(value, expected):
    text = metrics.verdict(metrics.by_name([frechet(value)]))
    assert text.startswith(expected)
    assert text.endswith("; real data 1 ± 0.1; prior 10 ± 0.1).")


def test_the_worst_headline_metric_decides_the_verdict():
    good = metrics.Metric("fid", "fid", Estimate(1.0), Estimate(10.0), Estimate(1.0))
    assert "by frechet_svc_360" in metrics.verdict(metrics.by_name([frechet(8.0), good]))
    assert metrics.verdict({}).startswith("No verdict")
    # A classifier can be sure about noise, so its top probability does not count.
    unsure = Estimate(0.5), Estimate(0.9, 0.001), Estimate(0.99, 0.001)
    of_classes = Metric("top_probability_svc_360", "top_probability", *unsure)
    assert "by fid" in metrics.verdict(metrics.by_name([good, of_classes]))
    nan = metrics.by_name([frechet(float("nan")), good])
    assert metrics.verdict(nan) == "No verdict: frechet_svc_360 is not a finite number."


def test_a_prior_that_scores_better_than_real_data_makes_no_sample_good():
    sides = Estimate(0.40, 0.01), Estimate(0.99, 0.002), Estimate(0.93, 0.005)
    unsure = Metric("target_share", "target_share", *sides)
    assert unsure.relative_distance is None
    assert metrics.verdict(metrics.by_name([unsure])).startswith("No verdict")
    sure = unsure._replace(samples=Estimate(0.92), prior=Estimate(0.4, 0.002))
    assert metrics.verdict(metrics.by_name([sure])).startswith("Good")


def test_a_spread_of_rounding_errors_is_not_shown():
    equal = metrics.Metric("kl_to_data", "kl_to_data", Estimate(0.865, 1.1e-16), None, None)
    assert metrics.rows({"kl_to_data": equal})[0][1] == "0.865"


@pytest.mark.parametrize(
    ("num", "name"), [(50_000, "fid_50k"), (5_000, "fid_5k"), (360, "fid_360"), (1_500, "fid_1500")]
)
def test_names_of_metrics_include_the_number_of_samples(num, name):
    assert metrics.with_count("fid", num) == name
