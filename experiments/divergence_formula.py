"""Parses divergences of a config: names and positive combinations of them."""

import re

from fdrl_jax import divergences
from fdrl_jax.divergences import FDivergence

_WEIGHT = re.compile(r"^([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*\*\s*")
_PLUS = re.compile(r"(?<!\d[eE])\+(?![^(]*\))")  # Not the plus of 1e+3, nor one within brackets.


def parse(formula: str) -> FDivergence:
    """Returns the divergence of a formula.

    It is a name that `divergences.get` knows, or a positive linear combination of them, such as
    "0.5*kl + 0.5*reverse_kl".

    Raises:
      ValueError: for an invalid term; lists the allowed names and suggests the closest one.
    """
    found = describe(formula)
    try:
        return divergences.get(found) if isinstance(found, str) else divergences.combine(*found)
    except ValueError as error:
        raise ValueError(
            f"in divergence {formula!r}: {error}; combine them as in '0.5*kl + 0.5*js'"
        ) from None


def describe(formula: str) -> str | tuple[list[float], list[str]]:
    """Returns the arguments of `divergences.get` or `divergences.combine`, as values for JSON."""
    # ["kl"], or with a weight ["", "0.5", "kl"].
    terms = [_WEIGHT.split(term.strip()) for term in _PLUS.split(formula)]
    names = [term[-1] for term in terms]
    if terms == [names]:
        return names[0]
    return [float(term[1]) if len(term) > 1 else 1.0 for term in terms], names
