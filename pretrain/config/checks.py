"""Checks shared by all groups of settings; each raises a ``UserError`` that names the field."""

from __future__ import annotations

import math

from palimpsest.data.errors import UserError

SEEDS = 2**32
"""Exclusive upper limit of seeds."""


def positive(owner: str, **values: int | float) -> None:
    """Check that values of the group ``owner`` are finite and above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:  # nan is neither
            raise UserError(f"{owner}.{name}={value} must be above 0")


def not_negative(owner: str, **values: int | float) -> None:
    """Check that values of the group ``owner`` are finite and at least 0."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{owner}.{name}={value} must be 0 or above")


def divisors(*numbers: int) -> str:
    """Text that lists the common divisors of the numbers."""
    common = math.gcd(*numbers)
    fitting = [str(one) for one in range(1, common + 1) if common % one == 0]
    return f"{', '.join(fitting[:-1])} and {fitting[-1]} fit" if len(fitting) > 1 else "only 1 fits"


def check_seed(name: str, value: int) -> None:
    """Check that a seed is one that every random generator accepts.

    Raises:
        UserError: naming the field.
    """
    if not 0 <= value < SEEDS:
        raise UserError(f"{name}={value} must lie between 0 and {SEEDS - 1}")
