"""Metrics have values of the prior and of real data next to them; the worst decides the verdict."""

import json

import pytest

from experiments.evaluation import metrics
from experiments.evaluation.metrics import Estimate, Metric

FAR, NEAR = Estimate(10.0, 0.1), Estimate(1.0, 0.1)


def frechet(value, prior=FAR, real=NEAR):
    return Metric("frechet_svc_360", "frechet", Estimate(value, 0.2), prior, real)


def kl(value, prior=90.5):
    real = Estimate(0.034, 0.006)
    return Metric("kl_to_data", "kl_to_data", Estimate(value), Estimate(prior), real)


def share(definition, value, prior, real):
    sides = Estimate(value), Estimate(prior, 0.001), Estimate(real, 0.005)
    return Metric("a", definition, *sides)


def test_metrics_survive_json():
    found = metrics.by_name([frechet(2.0), kl(0.1)])
    assert list(found) == ["kl_to_data", "frechet_svc_360"], "the order of the definitions"
    stored = json.loads(json.dumps(metrics.to_json(found), sort_keys=True))
    assert list(metrics.from_json(stored).items()) == list(found.items())


def test_the_table_has_samples_next_to_the_prior_and_real_data():
    head, row = metrics.table(metrics.by_name([frechet(2.8)])).splitlines()[:2]
    assert head.split() == ["metric", "samples", "prior", "real", "data", "better"]
    assert row.split() == [
        "frechet_svc_360",
        *("2.80", "±", "0.20", "10.00", "±", "0.10", "1.00", "±", "0.10", "lower"),
    ]
    lone = Metric("fid_5k", "fid", Estimate(3.0))
    assert metrics.table({"fid_5k": lone}).split()[:4] == ["metric", "samples", "better", "fid_5k"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([frechet(1.2)], "Good: by frechet_svc_360, samples cannot be distinguished from real"),
        ([frechet(1.5)], "Good: samples are close to real data, by frechet_svc_360 (1.50 ± 0.20; "),
        ([frechet(4.0)], "Fair: samples are nearer to real data than to the prior, by frechet_"),
        ([frechet(9.0)], "Poor: samples are far from real data, by frechet_svc_360 (9.00 ± 0.20"),
        ([frechet(1.2, prior=Estimate(1.1, 0.1))], "No verdict: no headline metric distinguishes"),
        # The swiss roll, and a step that is 50 times too large, whose energy ratio is as good.
        ([frechet(1.0), kl(0.077)], "Good: samples are close to real data, by kl_to_data, in"),
        ([frechet(1.0), kl(1.36)], "Poor: samples are far from real data, by kl_to_data, in"),
        ([frechet(1.0), kl(0.04)], "Good: by frechet_svc_360 and kl_to_data, samples cannot be"),
        ([frechet(float("nan")), kl(0.1)], "No verdict: frechet_svc_360 is not a finite number."),
        ([], "No verdict"),
        # Where the prior scores as real data do, samples that do not are far from both.
        ([frechet(1.0), kl(0.5, prior=0.034)], "Poor: samples are far from real data, by kl_to_"),
        # A classifier can be sure about noise, and a prior can score better than real data.
        ([share("top_probability", 0.5, 0.9, 0.99)], "No verdict"),
        ([share("target_share", 0.40, 0.99, 0.93)], "No verdict"),
        ([share("target_share", 0.92, 0.4, 0.93)], "Good"),
    ],
)
def test_the_verdict_is_by_the_worst_headline_metric(found, expected):
    assert metrics.verdict({m.name: m for m in found}).startswith(expected)
