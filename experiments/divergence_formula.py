"""Parses divergences of a config: names and positive combinations of them."""

import re
from typing import Any

from fdrl_jax import divergences
from fdrl_jax.divergences import FDivergence

_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_TERM = re.compile(rf"(?:(?P<weight>{_NUMBER})\s*\*\s*)?(?P<name>[^*]+)")
_PLUS = re.compile(r"(?<!\d[eE])\+(?![^(]*\))")  # Not the plus of 1e+3, nor one within brackets.


def parse(formula: str) -> FDivergence:
    """Returns the divergence of a formula.

    It is a name that `divergences.get` knows, or a positive linear combination of them, such as
    "0.5*kl + 0.5*reverse_kl".

    Raises:
      ValueError: for an invalid term; lists the allowed names and suggests the closest one.
    """
    found = _terms(formula)
    if isinstance(found, FDivergence):
        return found
    return divergences.combine(*found)


def describe(formula: str) -> str | list[list[Any]]:
    """Returns the arguments of `divergences.get` or `divergences.combine` as values for JSON.

    Raises:
      ValueError: as for `parse`.
    """
    found = _terms(formula)
    if isinstance(found, FDivergence):
        return found.name
    weights, parts = found
    return [weights, [part.name for part in parts]]


def _terms(formula: str) -> FDivergence | tuple[list[float], list[FDivergence]]:
    terms = [_parse_term(term.strip(), formula) for term in _PLUS.split(formula)]
    if len(terms) == 1 and terms[0][0] is None:
        return terms[0][1]
    weights = [1.0 if weight is None else weight for weight, _ in terms]
    return weights, [divergence for _, divergence in terms]


def _parse_term(term: str, formula: str) -> tuple[float | None, FDivergence]:
    match = _TERM.fullmatch(term)
    weight, name = (match["weight"], match["name"].strip()) if match else (None, term)
    try:
        divergence = divergences.get(name)
    except ValueError as error:
        raise ValueError(
            f"in divergence {formula!r}: {error}, or positive combinations such as "
            "'0.5*kl + 0.5*js'"
        ) from None
    return (None if weight is None else float(weight)), divergence
