"""The density ratio as a scikit-learn estimator."""

import numpy as np
import pytest
import sklearn
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fdrl_jax.ratio.estimator import RatioEstimator

RNG = np.random.default_rng(0)


class WithReference(RatioEstimator):
    """For scikit-learn's checks, which have one set."""

    def fit(self, X, y=None, *, X_reference=None, sample_weight=None):
        return super().fit(X, y, X_reference=X, sample_weight=sample_weight)


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

    def frame(num, share):
        numbers = np.where(np.arange(num) < 10, np.nan, RNG.normal(size=num))
        return pd.DataFrame({"size": numbers, "kind": np.where(RNG.random(num) < share, *"ab")})

    april, may = frame(400, 0.5), frame(300, 0.8)
    drift = RatioEstimator().fit(may, X_reference=april)
    assert drift.ratio_.p_value < 0.01
    found = pd.Series(drift.score_samples(april)).groupby(april.kind).mean()
    np.testing.assert_allclose(found, np.log([0.8 / 0.5, 0.2 / 0.5]), atol=0.25)
    assert np.average(april.kind == "a", weights=drift.weights()) == pytest.approx(0.8, abs=0.05)
    assert np.isfinite(drift.score_samples(pd.DataFrame({"size": [0.0], "kind": ["c"]}))).all()
    with pytest.raises(ValueError, match="order"):
        drift.score_samples(april[["kind", "size"]])


def test_rows_have_weights_and_the_reference_is_needed_and_transformed_in_a_pipeline():
    x = RNG.normal(size=(500, 1))
    with sklearn.config_context(enable_metadata_routing=True):
        ratio = RatioEstimator(alpha=0.5).set_fit_request(X_reference=True, sample_weight=True)
        steps = [("scale", MinMaxScaler((-800, -500))), ("ratio", ratio)]
        pipeline = Pipeline(steps, transform_input=["X_reference"])
        pipeline.fit(x, X_reference=x[::-1], sample_weight=np.exp(x[:, 0]))
        scores = pipeline.score_samples(x)
    assert np.corrcoef(scores, x[:, 0])[0, 1] > 0.9
    assert scores.max() <= np.log(1.0 / 0.5)
    assert np.average(x[::-1, 0], weights=ratio.weights()) > 0.3
    with pytest.raises(ValueError, match="X_reference"):
        ratio.fit(x)
