"""The density ratio as a scikit-learn estimator."""

import numpy as np
import pytest
import sklearn
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fdrl_jax.ratio.estimator import RatioEstimator

RNG = np.random.default_rng(0)


class WithReference(RatioEstimator):
    """For scikit-learn's checks, which have one set: the reference has its columns exchanged."""

    def fit(self, X, y=None, *, X_reference=None, sample_weight=None):
        if X_reference is None:
            numbers = isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind == "f"
            X_reference = np.roll(X, 7, axis=0) if numbers else X
        return super().fit(X, y, X_reference=X_reference, sample_weight=sample_weight)


FEW_ROWS = """fit2d_1sample fit2d_1feature sample_weight_equivalence_on_dense_data
estimators_nan_inf n_features_in_after_fitting sample_weights_pandas_series
sample_weights_not_an_array sample_weights_shape sample_weights_not_overwritten"""
EXPECTED = {f"check_{name}": "at least 20 rows are needed" for name in FEW_ROWS.split()}


@pytest.mark.slow
@parametrize_with_checks([WithReference()], expected_failed_checks=lambda _: EXPECTED)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_frames_may_have_categories_and_missing_values():
    pd = pytest.importorskip("pandas")

    def frame(num, share_of_a):
        numbers = np.where(np.arange(num) < 10, np.nan, RNG.normal(size=num))
        return pd.DataFrame(
            {"size": numbers, "kind": np.where(RNG.random(num) < share_of_a, *"ab")}
        )

    april, may = frame(400, 0.5), frame(300, 0.8)
    drift = RatioEstimator().fit(may, X_reference=april)
    assert drift.ratio_.p_value < 0.01
    found = pd.Series(drift.score_samples(april)).groupby(april.kind).mean()
    assert found["a"] == pytest.approx(np.log(0.8 / 0.5), abs=0.2)
    assert found["b"] == pytest.approx(np.log(0.2 / 0.5), abs=0.3)
    assert np.average(april.kind == "a", weights=drift.weights()) == pytest.approx(0.8, abs=0.05)
    assert np.isfinite(drift.score_samples(pd.DataFrame({"size": [0.0], "kind": ["c"]}))).all()
    with pytest.raises(ValueError, match="order"):
        drift.score_samples(april[["kind", "size"]])


def test_it_works_in_a_pipeline_that_transforms_the_reference_as_well():
    top, bottom = RNG.normal(500.0, 300.0, (300, 2)), RNG.normal(200.0, 300.0, (300, 2))
    with sklearn.config_context(enable_metadata_routing=True):
        ratio = RatioEstimator(alpha=0.1).set_fit_request(X_reference=True)
        steps = [("scale", StandardScaler()), ("ratio", ratio)]
        pipeline = Pipeline(steps, transform_input=["X_reference"]).fit(top, X_reference=bottom)
        scores = pipeline.score_samples(np.concatenate([top, bottom]))
    assert scores[:300].mean() > 0.5 > -0.5 > scores[300:].mean()


def test_weights_of_rows_are_used_and_a_missing_reference_is_an_error():
    x = RNG.normal(size=(500, 1))
    tilted = RatioEstimator().fit(x, X_reference=x[::-1], sample_weight=np.exp(x[:, 0]))
    assert np.corrcoef(tilted.score_samples(x), x[:, 0])[0, 1] > 0.9
    with pytest.raises(ValueError, match="X_reference"):
        RatioEstimator().fit(x)
