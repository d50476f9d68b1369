"""Divergences in a config."""

import numpy as np
import pytest

from experiments.divergence_formula import parse
from fdrl_jax.divergences import REGISTRY, get

RATIOS = np.array([0.1, 0.5, 1.0, 2.0, 5.0], np.float32)


@pytest.mark.parametrize(
    ("formula", "weights"),
    [
        ("2*kl", {"kl": 2.0}),
        ("1e-3*kl", {"kl": 1e-3}),
        ("1e+2*kl+ 1E-05*js", {"kl": 100.0, "js": 1e-5}),
        (".5 * kl + js", {"kl": 0.5, "js": 1.0}),
        ("kl+kl", {"kl": 2.0}),
        ("0.25*pearson + 3.5*alpha(-1e+0)", {"pearson": 0.25, "alpha(-1)": 3.5}),
        ("alpha( 1.5e-1 )", {"alpha(0.15)": 1.0}),
    ],
)
def test_formulas_are_positive_combinations(formula, weights):
    expected = sum(w * get(name).f_prime(RATIOS) for name, w in weights.items())

    np.testing.assert_allclose(parse(formula).f_prime(RATIOS), expected, rtol=1e-5, atol=1e-6)


def test_a_name_alone_is_the_divergence():
    for name in REGISTRY:
        assert parse(f" {name} ") is REGISTRY[name]


@pytest.mark.parametrize(
    "spec",
    ["", "kl +", "kl + + js", "kl*2", "2*kl*2", "kl js", "kl(2)", "alpha()", "kl + alpha(2*0.5)"],
)
def test_a_formula_that_does_not_parse_is_quoted_in_the_error(spec):
    with pytest.raises(ValueError, match="divergence") as error:
        parse(spec)

    assert repr(spec) in str(error.value)


@pytest.mark.parametrize("spec", ["-1*kl", "kl + 0*js"])
def test_a_weight_that_is_not_positive_is_an_error(spec):
    with pytest.raises(ValueError, match="must be positive and finite"):
        parse(spec)


def test_an_unknown_name_in_a_formula_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'reverse_kl'") as error:
        parse("0.5*kl + 0.5*reversekl")
    assert "0.5*kl + 0.5*js" in str(error.value)
