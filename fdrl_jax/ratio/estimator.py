"""A density ratio as a scikit-learn estimator; the only module that needs scikit-learn."""

from importlib import import_module
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fdrl_jax.ratio.fit import fit_ratio

__all__ = ["RatioEstimator"]
__dir__ = __all__.copy


class RatioEstimator(BaseEstimator):  # type: ignore[misc]
    """The ratio of the density of `X` over that of a reference.

    Data frames may have columns of categories or texts, which become an indicator per level, and
    missing numbers, which become the median and an indicator. In a pipeline, the steps before it
    transform the reference as well with `Pipeline(steps, transform_input=["X_reference"])` and
    `RatioEstimator().set_fit_request(X_reference=True)`.

    Args:
      alpha: for the relative ratio, which is at most `1 / alpha`.
      random_state: a seed, or NumPy's random state.

    Attributes:
      ratio_: the fitted `DensityRatio`; `ratio_.check()` says whether to trust it.
    """

    def __init__(self, *, alpha: float = 0.0, random_state: Any = 0) -> None:
        self.alpha = alpha
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any = None, *, X_reference: Any = None, sample_weight: Any = None
    ) -> "RatioEstimator":
        """Fits the ratio of `X`, [N, D], with weights, [N], over `X_reference`, [M, D]."""
        if X_reference is None:
            raise ValueError("RatioEstimator needs fit(X, X_reference=...)")
        self._encoder = None
        if hasattr(X, "columns") and hasattr(X_reference, "columns"):
            numbers = list(X.select_dtypes("number").columns)
            others = [name for name in X.columns if name not in numbers]
            levels = OneHotEncoder(handle_unknown="ignore", max_categories=30, sparse_output=False)
            impute = SimpleImputer(strategy="median", add_indicator=True)
            encoder = ColumnTransformer([("numbers", impute, numbers), ("levels", levels, others)])
            both = import_module("pandas").concat([X, X_reference[list(X.columns)]])
            self._encoder = encoder.fit(both)
        top, bottom = self._encoded(X, reset=True), self._encoded(X_reference)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        self.ratio_ = fit_ratio(jax.random.key(seed), top, bottom, numerator_weights=sample_weight)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns `log r`, [N]; large where the numerator is dense next to the reference."""
        check_is_fitted(self)
        return np.asarray(self.ratio_.log_ratio(self._encoded(X), alpha=self.alpha))

    def weights(self, X_reference: Any = None) -> np.ndarray:
        """Returns weights with mean 1 that make the reference look like the numerator, [M].

        Without an argument, they are those of the fitted reference, each row by a fit without it.
        """
        check_is_fitted(self)
        x = None if X_reference is None else self._encoded(X_reference)
        return np.asarray(self.ratio_.weights(x, alpha=self.alpha))

    def _encoded(self, X: Any, reset: bool = False) -> np.ndarray:
        if self._encoder is None:
            found = validate_data(self, X, reset=reset, dtype=np.float64, ensure_min_samples=1)
        else:
            validate_data(self, X, reset=reset, skip_check_array=True)
            found = self._encoder.transform(X)
        return np.asarray(found, np.float64)
