"""Stratified bootstrap and permutation, vectorised over replicates; the loops run over cells only.

Shape suffixes: N items, B replicates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from palimpsest.analysis.checks import numbers

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]


def contrast(value_N: Floats, cell_N: Codes, treated_N: Bools) -> float:
    """``sum_s w_s (mean_s,treated - mean_s,control)``, w_s = share of the treated in cell s.

    Without any control it is the mean of the treated.
    """
    total = 0.0
    for cell in np.unique(cell_N):
        here = cell_N == cell
        total += _cell(value_N[here & treated_N], value_N[here & ~treated_N])
    return float(total / treated_N.sum())


def _cell(treated: Floats, control: Floats) -> float:
    return float(len(treated) * (treated.mean() - (control.mean() if len(control) else 0.0)))


def bootstrap(value_N: Floats, cell_N: Codes, treated_N: Bools, *, replicates: int, seed: int) -> Floats:
    """Replicates of :func:`contrast` with items resampled within cell x arm; shape B."""
    rng = np.random.default_rng(seed)
    total_B = np.zeros(replicates)
    for cell in np.unique(cell_N):
        here = cell_N == cell
        treated, control = value_N[here & treated_N], value_N[here & ~treated_N]
        total_B += len(treated) * _resampled_means(treated, replicates, rng)
        if len(control):
            total_B -= len(treated) * _resampled_means(control, replicates, rng)
    replicated: Floats = total_B / treated_N.sum()
    return replicated


def _resampled_means(values: Floats, replicates: int, rng: np.random.Generator) -> Floats:
    means: Floats = values[rng.integers(0, len(values), (replicates, len(values)))].mean(axis=1)
    return means


def permutation_p(value_N: Floats, cell_N: Codes, treated_N: Bools, *, permutations: int, seed: int) -> float:
    """One-sided p of the treated being higher: arms permuted within cells, ``(1 + #{stat* >= stat}) / (m +
    1)``.

    Exact under the null whatever the distribution, because the arms were assigned at random within strata
    (Phipson & Smyth 2010 for the ones). Smallest possible value: ``1 / (permutations + 1)``.
    """
    value_N = numbers(value_N, "values of a permutation test")
    rng = np.random.default_rng(seed)
    observed, total_B = 0.0, np.zeros(permutations)
    for cell in np.unique(cell_N):
        here = cell_N == cell
        values, treated = value_N[here], int((here & treated_N).sum())
        control = len(values) - treated
        observed += _cell(value_N[here & treated_N], value_N[here & ~treated_N])
        order = np.argsort(rng.random((permutations, len(values))), axis=1)
        chosen_B = values[order[:, :treated]].sum(axis=1)
        total_B += treated * (chosen_B / treated - (values.sum() - chosen_B) / control)
    # Equal statistics must count as equal although they were summed in another order.
    slack = 1e-12 * max(1.0, float(np.abs(value_N).max()) * len(value_N))
    return float((1 + np.sum(total_B >= observed - slack)) / (permutations + 1))
