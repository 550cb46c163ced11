"""Forgetting curves: six families by AICc over item-level bootstraps, and interval-censored time to forget.

Time since the last exposure is measured in tokens, updates or integrated learning rate. Items, not checkpoints, are
resampled: neighbouring checkpoints are correlated. Shape suffixes: N items, T times, B replicates, P points of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Family:
    """A curve ``y(t) = sum of linear coefficients x basis(t; shape parameters)``."""

    name: str
    formula: str
    shapes: tuple[tuple[str, bool], ...]
    """Non-linear parameters, in order; true for a time scale, whose search range is that of the times."""
    linear: int
    """Number of linear coefficients."""
    basis: Callable[[Floats, Floats], Floats]
    """Function from shape parameters, (P, shapes), and times, (T,), to the basis, (P, linear, T)."""


def _one(values_PT: Floats) -> Floats:
    return values_PT[:, None]


def _two(values_PT: Floats) -> Floats:
    return np.stack([np.ones_like(values_PT), values_PT], axis=1)


FAMILIES = {
    family.name: family
    for family in (
        Family("log_linear", "a - b ln t", (), 2, lambda s, t: _two(np.log(t)[None])),
        Family("power", "A t^-b", (("b", False),), 1, lambda s, t: _one(t ** -s[:, :1])),
        Family(
            "shifted_power",
            "A (1 + t/c)^-b",
            (("b", False), ("c", True)),
            1,
            lambda s, t: _one((1 + t / s[:, 1:]) ** -s[:, :1]),
        ),
        Family("exponential", "A exp(-t/c)", (("c", True),), 1, lambda s, t: _one(np.exp(-t / s[:, :1]))),
        Family(
            "exponential_floor",
            "F + A exp(-t/c)",
            (("c", True),),
            2,
            lambda s, t: _two(np.exp(-t / s[:, :1])),
        ),
        Family(
            "weibull",
            "A exp(-(t/c)^k)",
            (("k", False), ("c", True)),
            1,
            lambda s, t: _one(np.exp(-((t / s[:, 1:]) ** s[:, :1]))),
        ),
    )
}
"""The six families of curves. ``log_linear`` is often called a power law, which it is not."""


class Curve(NamedTuple):
    """One family's least-squares fit to one mean curve."""

    family: str
    parameters: dict[str, float]
    rss: float
    aicc: float
    """``n ln(RSS/n) + 2k + 2k(k+1)/(n-k-1)``, k with the error variance; infinite if n <= k + 1."""
    fitted: Floats


class Forgetting(NamedTuple):
    """Families ranked by their fit to the mean curve, with each family's share of wins when items are resampled."""

    curves: list[Curve]
    """Fits by ascending AICc."""
    weights: dict[str, float]
    """Share of item-level bootstrap replicates in which the family has the lowest AICc."""
    identified: bool
    """True with at least 8 checkpoints over 3 decades of time; fewer can hardly distinguish the families."""


def _axes(family: Family, times: Floats, points: int) -> list[Floats]:
    """Search grid of each shape parameter, as logarithms, (points,) each."""
    of_time = np.linspace(math.log(times[0] / 10), math.log(times[-1] * 10), points)
    exponent = np.linspace(math.log(0.02), math.log(8), points)
    return [of_time if on_time else exponent for _, on_time in family.shapes]


def _solve(family: Family, shapes_BPS: Floats, times: Floats, curves_BT: Floats) -> Floats:
    """Residual sums of squares (B, P) at given shapes, with the linear coefficients at their optimum. A leading size of
    1 means one set of shapes for all curves.
    """
    many, points, shapes = shapes_BPS.shape
    raw = family.basis(shapes_BPS.reshape(many * points, shapes), times)
    # Gram-Schmidt by hand for one or two vectors: thousands of tiny QRs would take longer.
    # A curve that has died before the first time must count as zero, not blow up to a perfect fit.
    first = raw[:, 0] / np.linalg.norm(raw[:, 0], axis=-1, keepdims=True).clip(1e-100)
    explained = _explained(first, shapes_BPS.shape, curves_BT)
    if family.linear == 2:
        rest = raw[:, 1] - (raw[:, 1] * first).sum(-1, keepdims=True) * first
        length = np.linalg.norm(rest, axis=-1, keepdims=True)
        second = np.where(length > 1e-9, rest / length.clip(1e-300), 0.0)
        explained = explained + _explained(second, shapes_BPS.shape, curves_BT)
    return np.asarray(np.maximum((curves_BT**2).sum(-1)[:, None] - explained, 0.0))


def _explained(unit: Floats, shape: tuple[int, ...], curves_BT: Floats) -> Floats:
    if shape[0] == 1:
        return np.asarray((curves_BT @ unit.T) ** 2)
    return np.asarray(np.einsum("bpt,bt->bp", unit.reshape(shape[0], shape[1], -1), curves_BT) ** 2)


def _search(family: Family, times: Floats, curves_BT: Floats, rounds: int = 14) -> tuple[Floats, Floats]:
    """Best shapes (B, S) and their residual sums of squares (B,): a common grid, then finer grids around each curve's
    best point.
    """
    axes = _axes(family, times, 60 if len(family.shapes) == 2 else 200)
    if not axes:
        return np.zeros((len(curves_BT), 0)), _solve(family, np.zeros((1, 1, 0)), times, curves_BT)[:, 0]
    grid = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=-1)
    rss = _solve(family, np.exp(grid)[None], times, curves_BT)
    best, least = grid[np.argmin(rss, axis=1)], rss.min(axis=1)
    span = np.array([axis[1] - axis[0] for axis in axes])
    local = np.stack(
        [m.ravel() for m in np.meshgrid(*[np.linspace(-1, 1, 5)] * len(axes), indexing="ij")], axis=-1
    )
    rows = np.arange(len(best))
    for _ in range(rounds):
        trial = best[:, None] + local * span
        # A lone curve would otherwise look like one set of shapes for all; that is the same thing for it.
        rss = _solve(family, np.exp(trial), times, curves_BT)
        pick = np.argmin(rss, axis=1)
        best, least = trial[rows, pick], np.minimum(least, rss[rows, pick])
        span = span * 0.6
    return np.exp(best), least


def _aicc(rss: Floats, n: int, k: int) -> Floats:
    if n <= k + 1:
        return np.full(np.shape(rss), np.inf)
    with np.errstate(divide="ignore"):
        return np.asarray(n * np.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1), np.float64)


def fit_curve(times: ArrayLike, mean_T: ArrayLike, family: str) -> Curve:
    """Least-squares fit of one family by Nelder and Mead's method, started from the best points of a grid.

    Only shape parameters are searched, because the other coefficients are linear at given shapes (variable projection,
    Golub & Pereyra 1973); the search extends at most 60 powers of e beyond the grid.
    """
    chosen, t, y = FAMILIES[family], np.asarray(times, np.float64), np.asarray(mean_T, np.float64)
    _check_times(t)
    best = _minimum(chosen, t, y)
    raw = chosen.basis(best[None], t)[0]
    coefficients, *_ = np.linalg.lstsq(raw.T, y, rcond=None)
    fitted = coefficients @ raw
    least = float(((y - fitted) ** 2).sum())
    names = ("A",) if chosen.linear == 1 else ("a", "-b") if not chosen.shapes else ("F", "A")
    parameters = dict(zip(names, map(float, coefficients), strict=True))
    if "-b" in parameters:
        parameters["b"] = -parameters.pop("-b")
    parameters |= {name: float(v) for (name, _), v in zip(chosen.shapes, best, strict=True)}
    k = chosen.linear + len(chosen.shapes) + 1
    return Curve(family, parameters, least, float(_aicc(np.array(least), t.size, k)), fitted)


def _minimum(family: Family, times: Floats, mean_T: Floats) -> Floats:
    """Shapes with the smallest sum of squares. A refined grid would stop too early on a ridge, such as the
    Weibull's.
    """
    axes = _axes(family, times, 40)
    if not axes:
        return np.zeros(0)
    grid = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=-1)
    starts = grid[np.argsort(_solve(family, np.exp(grid)[None], times, mean_T[None])[0])[[0, 3, 10]]]
    ends = [(axis[0] - 60, axis[-1] + 60) for axis in axes]
    scale = float(mean_T @ mean_T) or 1.0

    def squares(ln_shapes: Floats) -> float:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            residual = _solve(family, np.exp(ln_shapes)[None, None], times, mean_T[None])[0, 0] / scale
        return float(residual) if np.isfinite(residual) else math.inf

    options = {"xatol": 1e-9, "fatol": 1e-16, "maxiter": 4000, "maxfev": 4000}
    best, least = starts[0], math.inf
    for start in starts:
        for _ in range(2):  # once more from where it stopped: a simplex can collapse on a ridge
            minimum = minimize(squares, start, method="Nelder-Mead", bounds=ends, options=options)
            start = minimum.x
        if minimum.fun < least:
            best, least = minimum.x, float(minimum.fun)
    fitted: Floats = np.exp(best)
    return fitted


def _check_times(times: Floats) -> None:
    if times.size < 4 or np.any(times <= 0) or np.any(np.diff(times) <= 0):
        raise ValueError("a forgetting curve needs four times or more, positive and rising")


def compare_families(
    times: ArrayLike,
    values_NT: ArrayLike,
    controls_MT: ArrayLike | None = None,
    *,
    replicates: int = 500,
    seed: int = 0,
) -> Forgetting:
    """Fit all six families to the mean over items, and rank them on bootstrap samples of items and controls.

    Args:
        times: (T,) times since the last exposure.
        values_NT: gain over the never-inserted items (or retained share), higher = more memorised.
        controls_MT: deviations of the controls from their mean, which was subtracted from the items; they are resampled
            as well. None: no controls.
        replicates: number of bootstrap samples of items.
        seed: seed of the bootstrap.
    """
    t, y = np.asarray(times, np.float64), np.asarray(values_NT, np.float64)
    _check_times(t)
    curves = sorted((fit_curve(t, y.mean(axis=0), name) for name in FAMILIES), key=lambda c: c.aicc)
    rng = np.random.default_rng(seed)
    resampled = _means_of_resamples(rng, y, replicates)
    if controls_MT is not None:
        resampled = resampled - _means_of_resamples(rng, np.asarray(controls_MT, np.float64), replicates)
    scores = []
    for family in FAMILIES.values():
        rss = _search(family, t, resampled)[1]
        scores.append(_aicc(rss, t.size, family.linear + len(family.shapes) + 1))
    winners = np.bincount(np.argmin(scores, axis=0), minlength=len(FAMILIES)) / replicates
    identified = t.size >= 8 and math.log10(t[-1] / t[0]) >= 3
    return Forgetting(curves, dict(zip(FAMILIES, map(float, winners), strict=True)), identified)


def _means_of_resamples(rng: np.random.Generator, values_NT: Floats, replicates: int) -> Floats:
    n = len(values_NT)
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), replicates) @ values_NT / n)


def learning_rate_time(steps: ArrayLike, learning_rate: ArrayLike, since: float) -> Floats:
    """Time in integrated learning rate: sum of the learning rate over the steps after the last exposure, for each
    checkpoint.

    Under a decaying rate, late phases forget less per step; on this axis they are comparable.

    Args:
        steps: checkpoints, in steps.
        learning_rate: learning rate of every step, indexed by step.
        since: step of the last exposure.
    """
    total = np.append(0.0, np.cumsum(np.asarray(learning_rate, np.float64)))
    last = np.asarray(steps, np.int64)
    return np.asarray(total[last] - total[int(since)], np.float64)


class TimeToForget(NamedTuple):
    """Time until items fall below a criterion: a Weibull fitted to the intervals between checkpoints."""

    median: float
    low: float
    high: float
    """95 % limits of the median (delta method on the log scale)."""
    scale: float
    """lambda in ``S(t) = exp(-(t/lambda)^rho)``."""
    shape: float
    """rho; below 1 the hazard falls with time."""
    items: int
    never_learned: int
    """Number of items already below the criterion at the first checkpoint, which are left out of the fit."""
    still_held: int
    """Number of right-censored items, which are above the criterion at the last checkpoint."""


def forgetting_intervals(times: ArrayLike, values_NT: ArrayLike, criterion: float) -> tuple[Floats, Floats]:
    """Times (lower, upper), (N,) each, of the checkpoints between which an item first fell below the criterion.

    Both are NaN for items never above it; upper is infinite for items above it at the end.
    """
    t, held = np.asarray(times, np.float64), np.asarray(values_NT, np.float64) >= criterion
    lost = np.where(held.all(axis=1), t.size, np.argmin(held, axis=1))
    lower = np.append(np.nan, t)[lost]
    upper = np.append(t, np.inf)[lost]
    return lower, np.where(lost == 0, np.nan, upper)


def time_to_forget(times: ArrayLike, values_NT: ArrayLike, criterion: float) -> TimeToForget:
    """Weibull distribution of the time to forget, fitted to interval-censored items by ``lifelines``.

    Args:
        times: (T,) times since the last exposure, positive and rising.
        values_NT: value per item and checkpoint.
        criterion: threshold below which an item counts as forgotten.
    """
    from lifelines import WeibullFitter

    lower, upper = forgetting_intervals(times, values_NT, criterion)
    known = np.isfinite(lower)
    if np.isfinite(upper[known]).sum() < 2:
        raise ValueError("fewer than two items were forgotten: there is no time to estimate")
    fitted = WeibullFitter().fit_interval_censoring(lower[known], upper[known])
    scale, shape = float(fitted.lambda_), float(fitted.rho_)
    median = scale * math.log(2) ** (1 / shape)
    # ln median = ln lambda + ln(ln 2) / rho.
    slope = np.array([1 / scale, -math.log(math.log(2)) / shape**2])
    variance = float(slope @ fitted.variance_matrix_.to_numpy() @ slope)
    if not variance > 0:
        raise ValueError("the intervals between checkpoints do not bound the time to forget")
    error = math.sqrt(variance)
    return TimeToForget(
        median,
        median * math.exp(-1.959964 * error),
        median * math.exp(1.959964 * error),
        scale,
        shape,
        int(known.sum()),
        int((~known).sum()),
        int(np.isinf(upper[known]).sum()),
    )
