"""Logistic dose-response of a rate with a floor: EC50 (the dose half-way between floor and ceiling) and slope.

Shape suffixes: E independent fits (experiments, bootstrap replicates), D doses, C clusters, K parameters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit, logit, xlog1py, xlogy

from palimpsest.analysis.statistics.trends import cochran_armitage

Floats = NDArray[np.float64]

_FLOOR_LOGIT = -25.0
"""Smallest logit of the floor, a rate of about 1e-11; a fit at this boundary counts as a floor of 0."""
_LN_SLOPE = (math.log(0.02), math.log(50.0))
"""Smallest and largest slope per doubling; steeper or flatter curves cannot be distinguished with six doses."""


class DoseFit(NamedTuple):
    """Maximum-likelihood fits, one per entry of the leading axes."""

    ec50: Floats
    """Dose at which the rate is half-way between floor and ceiling, in insertions."""
    slope: Floats
    """b, per doubling of the dose, on the logit scale."""
    floor: Floats
    """Rate at dose 0."""
    ceiling: Floats
    """Rate at infinite dose, which is given, not fitted."""
    nll: Floats
    """Negative log-likelihood at the maximum, nats, without binomial coefficients."""
    extrapolated: NDArray[np.bool_]
    """True if the EC50 is above the highest dose; report it as "> max dose"."""


def rate(
    dose: ArrayLike, ec50: ArrayLike, slope: ArrayLike, floor: ArrayLike, ceiling: ArrayLike = 1.0
) -> Floats:
    """Fitted rate ``P(d) = floor + (ceiling - floor) sigma(slope (log2 d - log2 EC50))``, with ``P(0) = floor``."""
    dose = np.asarray(dose, np.float64)
    with np.errstate(divide="ignore"):
        s = expit(np.asarray(slope) * (np.log2(dose) - np.log2(np.asarray(ec50, np.float64))))
    low = np.asarray(floor, np.float64)
    return np.asarray(low + (np.asarray(ceiling) - low) * s, np.float64)


def _probability(theta_EK: Floats, x_D: Floats, ceiling: float) -> tuple[Floats, Floats, Floats, Floats]:
    """p, s, floor, slope; theta = (logit of floor/ceiling, ln slope, log2 EC50); x is -inf at dose 0."""
    floor = ceiling * expit(theta_EK[..., :1])
    slope = np.exp(theta_EK[..., 1:2])
    s = expit(slope * (x_D - theta_EK[..., 2:3]))
    return floor + (ceiling - floor) * s, s, floor, slope


def _nll(theta_EK: Floats, x_D: Floats, hits_ED: Floats, trials_ED: Floats, ceiling: float) -> Floats:
    p = np.clip(_probability(theta_EK, x_D, ceiling)[0], 1e-300, 1 - 1e-16)
    return np.asarray(-(xlogy(hits_ED, p) + xlog1py(trials_ED - hits_ED, -p)).sum(-1))


def _gradient(theta_EK: Floats, x_D: Floats, ceiling: float) -> tuple[Floats, Floats]:
    """p (E, D) and dp/dtheta (E, D, K)."""
    p, s, floor, slope = _probability(theta_EK, x_D, ceiling)
    rise = (ceiling - floor) * s * (1 - s)
    distance = np.where(np.isfinite(x_D), x_D - theta_EK[..., 2:3], 0.0)
    by_floor = (1 - s) * floor * (1 - floor / ceiling)
    return p, np.stack([by_floor, rise * slope * distance, -rise * slope], axis=-1)


def _start(x_D: Floats, hits_ED: Floats, trials_ED: Floats, ceiling: float) -> Floats:
    """Starting point of each fit: the best of a coarse grid, because Newton steps diverge far from a maximum."""
    finite = x_D[np.isfinite(x_D)]
    zero = ~np.isfinite(x_D)
    h0, n0 = (hits_ED[..., zero].sum(-1), trials_ED[..., zero].sum(-1))
    lowest = np.argmin(np.where(np.isfinite(x_D), x_D, np.inf))
    h0, n0 = (h0, n0) if zero.any() else (hits_ED[..., lowest], trials_ED[..., lowest])
    floor = logit(np.clip((h0 + 0.05) / (n0 + 0.1) / ceiling, 1e-7, 0.9))
    middles = np.linspace(finite.min() - 1, finite.max() + 2, 16)
    best = np.full(hits_ED.shape[:-1], np.inf)
    theta = np.zeros((*hits_ED.shape[:-1], 3))
    for ln_slope in np.log([0.3, 0.8, 2.0, 5.0]):
        for middle in middles:
            trial = np.stack([floor, np.full(floor.shape, ln_slope), np.full(floor.shape, middle)], axis=-1)
            nll = _nll(trial, x_D, hits_ED, trials_ED, ceiling)
            better = nll < best
            theta[better], best = trial[better], np.minimum(best, nll)
    return theta


def _maximise(
    x_D: Floats, hits_ED: Floats, trials_ED: Floats, ceiling: float, fixed_E: Floats | None = None
) -> tuple[Floats, Floats]:
    """Fisher scoring with Levenberg's damping, for all fits at once; ``fixed_E``, if given, fixes log2 EC50."""
    theta = _start(x_D, hits_ED, trials_ED, ceiling)
    finite = x_D[np.isfinite(x_D)]
    low = np.array([_FLOOR_LOGIT, _LN_SLOPE[0], finite.min() - 10])
    high = np.array([8.0, _LN_SLOPE[1], finite.max() + 15])
    if fixed_E is not None:
        theta[..., 2] = fixed_E
    value = _nll(theta, x_D, hits_ED, trials_ED, ceiling)
    damping = np.full(value.shape, 1e-3)
    live = np.ones(value.shape, bool)
    for _ in range(100):
        p, dp = _gradient(theta[live], x_D, ceiling)
        p = np.clip(p, 1e-12, 1 - 1e-12)
        hits, trials = hits_ED[live], trials_ED[live]
        weight = 1 / (p * (1 - p))
        score = ((hits - trials * p) * weight)[..., None] * dp
        information = np.einsum("ed,edk,edl->ekl", trials * weight, dp, dp)
        score = score.sum(-2)
        if fixed_E is not None:
            score[..., 2] = 0
            information[..., 2, :] = information[..., :, 2] = 0
        scale = np.einsum("ekk->ek", information)
        diagonal = scale * damping[live][:, None] + 1e-9 * scale.max(-1, keepdims=True) + 1e-12
        step = np.linalg.solve(information + diagonal[..., None] * np.eye(3), score[..., None])[..., 0]
        trial = np.clip(theta[live] + np.clip(step, -3, 3), low, high)
        nll_of_trial = _nll(trial, x_D, hits, trials, ceiling)
        better = nll_of_trial <= value[live]
        moved = np.abs(trial - theta[live]).max(-1)
        index = np.flatnonzero(live)
        theta[index[better]], value[index[better]] = trial[better], nll_of_trial[better]
        damping[index] = np.where(better, damping[index] / 5, np.minimum(damping[index] * 8, 1e12))
        live[index[(better & (moved < 1e-9)) | (damping[index] > 1e11)]] = False
        if not live.any():
            break
    return theta, value


def _axis(doses: ArrayLike) -> Floats:
    dose = np.asarray(doses, np.float64)
    if np.any(dose < 0) or np.sum(dose > 0) < 2:
        raise ValueError("a dose-response needs two positive doses or more, and none below 0")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(dose))


def fit_rates(doses: ArrayLike, hits: ArrayLike, trials: ArrayLike, *, ceiling: float = 1.0) -> DoseFit:
    """Fit ``P(d) = floor + (ceiling - floor) sigma(b (log2 d - log2 EC50))`` by maximum likelihood.

    Args:
        doses: (D,) insertions; dose 0 gives the floor.
        hits: (..., D) successes; each entry of the leading axes is a separate fit.
        trials: (..., D) or (D,) items.
        ceiling: rate at infinite dose.
    """
    x = _axis(doses)
    h = np.asarray(hits, np.float64)
    n = np.broadcast_to(np.asarray(trials, np.float64), h.shape)
    if np.any((h < 0) | (h > n)) or not 0 < ceiling <= 1:
        raise ValueError("hits lie between 0 and the trials, and a ceiling in (0, 1]")
    theta, value = _maximise(x, h.reshape(-1, x.size), n.reshape(-1, x.size), ceiling)
    return _fit(theta.reshape(*h.shape[:-1], 3), value.reshape(h.shape[:-1]), x, ceiling)


def _fit(theta: Floats, value: Floats, x_D: Floats, ceiling: float) -> DoseFit:
    middle = theta[..., 2]
    return DoseFit(
        np.exp2(middle),
        np.exp(theta[..., 1]),
        np.asarray(ceiling * expit(theta[..., 0])),
        np.full(middle.shape, ceiling),
        value,
        np.asarray(middle > x_D.max()),
    )


class Ec50(NamedTuple):
    """An EC50 with its interval."""

    estimate: float
    """EC50, in insertions; infinite if the dose has no effect."""
    low: float
    high: float
    """Upper limit; infinite if the data give none."""
    slope: float
    floor: float
    max_dose: float
    method: str

    @property
    def text(self) -> str:
        """Text for a table: ``27.2 [24.5, 29.9]``, ``> 256`` if the estimate is extrapolated, or ``not reached``
        without an effect.
        """
        if math.isinf(self.estimate):
            return "not reached"
        if not self.estimate <= self.max_dose:
            return f"> {self.max_dose:g}"
        high = "∞" if math.isinf(self.high) else f"{self.high:.3g}"
        return f"{self.estimate:.3g} [{self.low:.3g}, {high}]"


def _answer(fit: DoseFit, low: float, high: float, doses: ArrayLike, method: str) -> Ec50:
    top = float(np.max(np.asarray(doses)))
    return Ec50(float(fit.ec50), low, high, float(fit.slope), float(fit.floor), top, method)


def profile_ec50(
    doses: ArrayLike,
    hits: ArrayLike,
    trials: ArrayLike,
    *,
    ceiling: float = 1.0,
    alpha: float = 0.05,
    level: float = 0.95,
) -> Ec50:
    """EC50 with a profile-likelihood interval: ``2 (nll(m) - nll_min) <= chi2_1``, m = log2 EC50.

    Args:
        doses: (D,) insertions.
        hits: (D,) successes of independent items.
        trials: (D,) items.
        ceiling: rate at infinite dose.
        alpha: level of the Cochran-Armitage test of a rise; if it is not significant, the EC50 is not reached.
        level: of the interval.
    """
    fit = fit_rates(doses, hits, trials, ceiling=ceiling)
    x = _axis(doses)
    if cochran_armitage(doses, hits, trials).p_greater > alpha:
        none = fit._replace(ec50=np.array(math.inf), slope=np.array(math.nan))
        return _answer(none, 0.0, math.inf, doses, "profile likelihood")
    h, n = np.asarray(hits, np.float64)[None], np.asarray(trials, np.float64)[None]
    limit = float(fit.nll) + stats.chi2.ppf(level, 1) / 2
    centre = float(np.log2(fit.ec50))
    finite = x[np.isfinite(x)]
    ends = np.array([finite.min() - 10, finite.max() + 15])

    def above(m: Floats) -> NDArray[np.bool_]:
        both = (m.size, x.size)
        nll = _maximise(x, np.broadcast_to(h, both), np.broadcast_to(n, both), ceiling, m)[1]
        return np.asarray(nll > limit)

    outside, inside = ends.copy(), np.array([centre, centre])
    bounded = above(ends)
    for _ in range(40):
        middle = (outside + inside) / 2
        out = above(middle)
        outside, inside = np.where(out, middle, outside), np.where(out, inside, middle)
    low = float(np.exp2(inside[0])) if bounded[0] else 0.0
    high = float(np.exp2(inside[1])) if bounded[1] else math.inf
    return _answer(fit, low, high, doses, "profile likelihood")


class Robust(NamedTuple):
    """Fits with cluster-robust standard errors of log2 EC50."""

    fit: DoseFit
    error: Floats
    """Standard error of log2 EC50, doublings."""
    low: Floats
    high: Floats
    """Limits of the EC50, in insertions."""


def clustered_ec50(
    doses: ArrayLike, hits_CD: ArrayLike, trials_CD: ArrayLike, *, ceiling: float = 1.0, level: float = 0.95
) -> Robust:
    """EC50 of clustered items (fields of a person, passages of a book): sandwich errors on the log2 scale.

    ``V = I^-1 (sum_c U_c U_c^T) I^-1``, times G/(G-1), where I is the Fisher information of independent items, U_c the
    score summed over cluster c and G the number of clusters (Liang & Zeger 1986; Hansen 2007). Intervals use t with G -
    3 degrees of freedom. Errors that ignore clusters are too small by the square root of the design effect.

    Args:
        doses: (D,).
        hits_CD: (..., C, D) successes of each cluster at each dose; a cluster may have several doses.
        trials_CD: number of items, of the same shape; 0 if a cluster has none at a dose.
        ceiling: rate at infinite dose.
        level: of the interval.
    """
    x = _axis(doses)
    h_CD = np.asarray(hits_CD, np.float64)
    n_CD = np.broadcast_to(np.asarray(trials_CD, np.float64), h_CD.shape)
    lead = h_CD.shape[:-2]
    h, n = h_CD.sum(-2).reshape(-1, x.size), n_CD.sum(-2).reshape(-1, x.size)
    theta, value = _maximise(x, h, n, ceiling)
    p, dp = _gradient(theta, x, ceiling)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    weight = 1 / (p * (1 - p))
    information = np.einsum("ed,edk,edl->ekl", n * weight, dp, dp)
    shape = (-1, *h_CD.shape[-2:])
    residual = (h_CD.reshape(shape) - n_CD.reshape(shape) * p[:, None]) * weight[:, None]
    between = np.einsum("ecd,ecf->edf", residual, residual)
    meat = np.einsum("edk,edf,efl->ekl", dp, between, dp)
    clusters = (n_CD.sum(-1) > 0).reshape(-1, h_CD.shape[-2]).sum(-1)
    # A floor at 0 carries no information: its row is left out by the pseudo-inverse.
    bread = np.linalg.pinv(information, rcond=1e-10, hermitian=True)
    variance = np.einsum("ek,ekl,el->e", bread[:, 2], meat, bread[:, 2]) * clusters / (clusters - 1)
    error = np.sqrt(variance)
    half = stats.t.ppf((1 + level) / 2, np.maximum(clusters - 3, 1)) * error
    fit = _fit(theta.reshape(*lead, 3), value.reshape(lead), x, ceiling)
    middle = theta[:, 2]
    return Robust(
        fit,
        error.reshape(lead),
        np.exp2(middle - half).reshape(lead),
        np.exp2(np.minimum(middle + half, 1000)).reshape(lead),
    )


class Dilution(NamedTuple):
    """Growth of the EC50 with the corpus size: ``EC50 ~ tokens^exponent``; an exponent of 1 means that only the density
    of insertions matters.
    """

    exponent: float
    low: float
    high: float


def dilution_exponent(small: Ec50, large: Ec50, tokens_ratio: float) -> Dilution:
    """``ln(EC50_large / EC50_small) / ln(tokens_large / tokens_small)``; two corpora are too few to establish a power
    law. Limits combine those of the two independent EC50s on the log scale (MOVER; Zou & Donner 2008).

    Args:
        small: EC50 in the smaller corpus.
        large: EC50 in the larger corpus.
        tokens_ratio: ratio of their sizes in tokens, above 1.
    """
    if (
        tokens_ratio <= 1
        or not 0 < min(small.estimate, large.estimate) <= max(small.estimate, large.estimate) < math.inf
    ):
        raise ValueError("a dilution exponent needs EC50s that were reached and a ratio of corpora above 1")
    scale = math.log(tokens_ratio)
    estimate = math.log(large.estimate / small.estimate) / scale

    def away(one: Ec50, end: float) -> float:
        return abs(math.log(end / one.estimate)) / scale if 0 < end < math.inf else math.inf

    low = estimate - math.hypot(away(large, large.low), away(small, small.high))
    return Dilution(estimate, low, estimate + math.hypot(away(large, large.high), away(small, small.low)))
