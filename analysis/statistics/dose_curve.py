"""Dose-response of continuous measures: lower level, rise, slope and EC50 by least squares on the arms' means.

Shape suffixes: E separate fits (bootstrap replicates), D doses, P grid points, N items, C clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from palimpsest.analysis.statistics.ec50 import Ec50

Floats = NDArray[np.float64]


class CurveFit(NamedTuple):
    """``mean(d) = low + rise sigma(slope (log2 d - log2 EC50))``; one an entry of the leading axes."""

    ec50: Floats
    """Infinite where nothing rises with the dose."""
    slope: Floats
    """Per doubling."""
    low: Floats
    """Level at dose 0."""
    rise: Floats
    """From dose 0 to infinite dose; positive."""
    rss: Floats
    """Weighted residual sum of squares over the arms' means."""


def _best(
    x_D: Floats, weight_ED: Floats, mean_ED: Floats, ln_slope_EP: Floats, middle_EP: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """For each fit the best of its P shapes; low and rise are linear given them."""
    s = expit(np.exp(ln_slope_EP)[..., None] * (x_D - middle_EP[..., None]))
    w = (weight_ED / weight_ED.sum(-1, keepdims=True))[:, None]
    s_mean = (w * s).sum(-1)
    y_mean = (w * mean_ED[:, None]).sum(-1)
    s_c, y_c = s - s_mean[..., None], mean_ED[:, None] - y_mean[..., None]
    both, spread, total = (w * s_c * y_c).sum(-1), (w * s_c**2).sum(-1), (w * y_c**2).sum(-1)
    rise = np.maximum(np.divide(both, spread, out=np.zeros_like(both), where=spread > 1e-12), 0)
    rss = total - 2 * rise * both + rise**2 * spread
    pick = np.argmin(rss, axis=1)
    rows = np.arange(len(pick))
    chosen = rise[rows, pick]
    return pick, rss[rows, pick], chosen, y_mean[rows, 0] - chosen * s_mean[rows, pick]


def fit_means(doses: ArrayLike, means: ArrayLike, weights: ArrayLike) -> CurveFit:
    """Weighted least squares, all fits at once: a grid over slope and EC50, then six rounds of zooming in.

    With fewer than four doses the curve is not identified. An EC50 far beyond the highest dose and a rise without
    bound are the same thing seen twice: report such an EC50 as "> max dose".

    Args:
        doses: (D,); dose 0 gives the lower level.
        means: (..., D) mean of each arm.
        weights: (..., D) or (D,): items of each arm, or inverse variances.
    """
    dose = np.asarray(doses, np.float64)
    y = np.asarray(means, np.float64)
    if dose.size < 4:
        raise ValueError(f"four parameters need four doses, not {dose.size}")
    with np.errstate(divide="ignore"):
        x = np.log2(dose)
    finite = x[np.isfinite(x)]
    flat = y.reshape(-1, dose.size)
    w = np.broadcast_to(np.asarray(weights, np.float64), y.shape).reshape(flat.shape)
    ln_slope, middle = (
        g.ravel()
        for g in np.meshgrid(
            np.linspace(np.log(0.1), np.log(10), 16), np.linspace(finite.min() - 1, finite.max() + 3, 33)
        )
    )
    fits = len(flat)
    a, m = np.broadcast_to(ln_slope, (fits, ln_slope.size)), np.broadcast_to(middle, (fits, middle.size))
    rows, span_a, span_m = np.arange(fits), 0.31, float(finite.max() - finite.min() + 4) / 32
    zoom = np.array(np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 7))).reshape(2, 1, -1)
    for _ in range(8):
        pick, rss, rise, low = _best(x, w, flat, a, m)
        best_a, best_m = a[rows, pick], m[rows, pick]
        a, m = best_a[:, None] + span_a * zoom[0], best_m[:, None] + span_m * zoom[1]
        span_a, span_m = span_a * 0.45, span_m * 0.45
    shape = y.shape[:-1]
    spread, level = np.ptp(flat, axis=-1), np.abs(flat).max(-1)
    ec50 = np.where((rise > 0) & (spread > 1e-12 * level), np.exp2(best_m), np.inf)
    return CurveFit(*(part.reshape(shape) for part in (ec50, np.exp(best_a), low, rise, rss)))


def curve_ec50(
    values_N: ArrayLike,
    dose_N: ArrayLike,
    cluster_N: ArrayLike | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Ec50, CurveFit]:
    """EC50 of a continuous measure with a percentile interval, clusters resampled within doses.

    Args:
        values_N: one value an item, higher = more memorised.
        dose_N: its dose.
        cluster_N: its cluster, which has one dose; every item its own if None.
        replicates: bootstrap samples.
        seed: of the bootstrap.
        level: of the interval.

    Returns:
        The EC50 (``floor`` holds the lower level), and the fits of the replicates.
    """
    y, dose = np.asarray(values_N, np.float64), np.asarray(dose_N, np.float64)
    cluster = np.arange(y.size) if cluster_N is None else np.asarray(cluster_N)
    levels = np.unique(dose)
    rng = np.random.default_rng(seed)
    means, sizes, drawn = [], [], []
    for here in (dose == level_ for level_ in levels):
        codes = np.unique(cluster[here], return_inverse=True)[1]
        size = np.bincount(codes).astype(np.float64)
        total = np.bincount(codes, weights=y[here])
        counts = rng.multinomial(size.size, np.full(size.size, 1 / size.size), replicates)
        means.append(total.sum() / size.sum())
        sizes.append(size.sum())
        drawn.append((counts @ total) / (counts @ size))
    fit = fit_means(levels, np.array(means), np.array(sizes))
    replicas = fit_means(levels, np.stack(drawn, axis=1), np.array(sizes))
    # On the log scale, cut short of infinity: between two infinite replicates interpolation would give NaN.
    ends = np.quantile(np.minimum(np.log2(replicas.ec50), 1023), [(1 - level) / 2, (1 + level) / 2])
    low, high = np.where(ends < 1023, np.exp2(ends), np.inf)
    answer = Ec50(
        float(fit.ec50),
        float(low),
        float(high),
        float(fit.slope),
        float(fit.low),
        float(levels.max()),
        "least squares on means, cluster bootstrap, percentile",
    )
    return answer, replicas
