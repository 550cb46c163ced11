"""Worked examples of measurement.md, part B2, to the printed digits; and published numbers of part B1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from palimpsest.analysis.metrics.capacity import LOG2_ATTRIBUTES, LOG2_NAMES, bio_s_capacity
from palimpsest.analysis.metrics.contamination import choose
from palimpsest.analysis.metrics.extraction import (
    extraction_probability,
    extraction_strength,
    log10_queries,
    queries_needed,
)
from palimpsest.analysis.metrics.factual import acquisition, decay, retainability
from palimpsest.analysis.metrics.likelihood import (
    likelihood,
)
from palimpsest.analysis.metrics.membership import min_k, min_k_plus_plus, standardised_logprob
from palimpsest.analysis.metrics.order import (
    order_permutation_p,
    order_test,
    spearman_p,
)
from palimpsest.analysis.metrics.unlearning import (
    forget_quality,
)
from palimpsest.analysis.run.time_rows import change_over_controls
from tests.analysis.synthetic import by_unit, drawn_from

O1 = [
    -0.105361, -2.302585, -0.693147, -4.605170, -0.051293, -1.609438, -0.223144, -3.506558, -0.010050, -0.356675,
]  # fmt: skip


def digits(*values: float) -> object:
    """Equal to the six printed decimals."""
    return pytest.approx(values if len(values) > 1 else values[0], abs=5.1e-7, rel=0)


def test_o1_likelihood_in_every_unit() -> None:
    found = likelihood(O1, 47)
    assert (found.loglik, found.nll, found.perplexity) == digits(-13.463421, 1.346342, 3.843341)
    assert (found.bits_per_byte, found.loglik_per_byte, found.byte_perplexity) == digits(
        0.413268, -0.286456, 1.331699
    )


def test_o2_min_k() -> None:
    assert tuple(min_k(O1, k) for k in (0.1, 0.2, 0.25, 0.3, 0.5, 1)) == digits(
        -4.605170, -4.055864, -4.055864, -3.471438, -2.543380, -1.346342
    )
    assert min_k(O1, 0.25, "ceil") == digits(-3.471438)
    assert min_k(O1[:4], 0.2) == digits(-4.605170)


def test_o3_min_k_plus_plus() -> None:
    logprob, mean, variance = (
        np.array([-1.440190, -1.386294, -0.167619]),
        np.array([-0.947537, -1.386294, -0.576662]),
        np.array([0.616586, 0, 0.948226]),
    )
    z = standardised_logprob(logprob, mean, variance)
    assert z == pytest.approx([-0.627399, 0, 0.420062], abs=2e-6)
    assert min_k_plus_plus(logprob, mean, variance, fraction=1) == (pytest.approx(z.mean()), 1)


def test_o5_n_p_discoverable_extraction() -> None:
    ln_pz = 40 * -0.01 + 8 * -0.5 + 2 * -1.2
    assert (ln_pz, math.exp(ln_pz)) == digits(-6.8, 0.001114)
    assert tuple(extraction_probability(ln_pz, [10, 100, 1000])) == digits(0.011082, 0.105455, 0.671887)
    assert [queries_needed(ln_pz, p) for p in (0.1, 0.5, 0.9, 0.99)] == [95, 622, 2067, 4133]
    assert float(log10_queries(-50, 0.5)) == digits(21.555550)
    logits = [3, 2, 1, 0]
    assert tuple(drawn_from(logits, temperature=0.5)) == digits(-0.145078, -2.145078, -4.145078, -6.145078)
    top2 = drawn_from(logits, top_k=2)
    assert tuple(top2[:2]) == digits(-0.313262, -1.313262)
    assert np.isneginf(top2[2:]).all()
    assert np.isfinite(drawn_from(logits, top_p=0.9)).sum() == 3


def test_o7_knowledge_capacity() -> None:
    n, p, ln_n = 1e5, 3e6, math.log(1e5)
    assert (LOG2_NAMES, LOG2_ATTRIBUTES, math.log2(12 * 28 * 200)) == digits(27.253497, 47.591624, 16.036174)
    for (p1, p2), (bits, ratio) in {
        (ln_n, 0.0): (5_823_547.986, 1.941183),
        (12.0, 2.0): (5_464_738.976, 1.821580),
        (ln_n + 0.2, 5.0): (5_073_346.565, 1.691116),
    }.items():
        found = bio_s_capacity(n, p, p1, p2)
        assert found.bits == pytest.approx(bits, abs=5.1e-4, rel=0)
        assert found.per_parameter == digits(ratio)
        assert found.max_per_parameter == digits(1.941183)


def test_o13_extraction_strength() -> None:
    assert extraction_strength([0] * 10) == 0
    assert extraction_strength([0] * 7 + [1] * 3) == pytest.approx(0.3)
    assert extraction_strength([1] * 9 + [0]) == 0
    assert extraction_strength([1] * 10) == 1


TREATED = [[3.9, 3.5, 2.6, 2.9], [4.1, 3.6, 2.8, 3.0], [3.7, 3.4, 2.5, 2.7]]
CONTROL = [[4.6, 4.1, 3.7, 3.6], [4.3, 3.8, 3.7, 3.4], [4.8, 4.2, 4.1, 3.8], [4.1, 3.9, 3.4, 3.4]]


def test_o15_difference_in_differences() -> None:
    treated, controls = by_unit(TREATED, "t"), by_unit(CONTROL, "c")
    found = [change_over_controls(treated, controls, 1, step) for step in range(4)]
    nets = [net for net in found if net is not None]
    assert tuple(float(net.estimate[0]) for net in nets) == digits(-0.05, 0, -0.591667, -0.183333)
    errors = [float(net.covariance[0, 0]) ** 0.5 for net in nets]
    assert (errors[0], errors[2], errors[3]) == digits(0.104083, 0.108333, 0.044096)


def test_o16_order() -> None:
    order, statistic = [5, 1, 4, 2, 8, 3, 7, 6], [0.2, -0.5, 0, -0.3, 0.9, -0.1, 0.4, 0.5]
    found = order_test(order, statistic)
    assert found.rho == digits(0.976190)
    assert found.p == pytest.approx(3.314396e-05, rel=1e-6)
    assert order_permutation_p(order, statistic) == pytest.approx(3.968254e-04, rel=1e-6)


def test_published_palimpsest_p_values() -> None:
    assert spearman_p(-0.07789184431337588, 99_997) == pytest.approx(2.337829800803965e-134, rel=1e-9)
    assert spearman_p(-0.1652056402400564, 10_000) == pytest.approx(4.025806953374e-62, rel=1e-11)
    assert spearman_p(-0.0302454599424546, 10_000) == pytest.approx(2.487483471811234e-3, rel=1e-9)


def test_forget_quality_of_shifted_ratios() -> None:
    rng = np.random.default_rng(0)
    found = forget_quality(rng.normal(size=400), rng.normal(1, 1, 400))
    assert found.low < found.distance < found.high
    assert found.p < 1e-10


def test_o21_factual_acquisition() -> None:
    loglik = [-4, -3.6, -3.2, -3.3, -3.5, -3.6, -3.7, -3.75, -3.8]
    found = acquisition(loglik, 0, 5)
    assert found == (2, pytest.approx(0.8))
    retained = retainability(loglik, -4, found.t_lam)
    assert retained == pytest.approx([1, 0.875, 0.625, 0.5, 0.375, 0.3125, 0.25])
    fitted = decay(range(1, 7), retained[1:])
    assert (fitted.per_decade, fitted.per_e_fold, fitted.horizon) == digits(0.805276, 0.349727, 12.139249)


def test_o26_multiple_choice() -> None:
    loglik = [-12, -9.5, -15, -10]
    found = choose(loglik, chars_C=[20, 12, 30, 18], unconditional_C=[-14, -9, -20, -12])
    assert (found.raw, found.per_char, found.pmi) == (1, 2, 2)
