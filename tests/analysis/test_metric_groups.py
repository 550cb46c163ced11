"""Every group of metrics: what chance gives, what memory gives, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from palimpsest.analysis.metrics import METRICS, Parameters, compute, defaults, plan
from palimpsest.analysis.metrics.capacity import (
    LOG2_ATTRIBUTES,
    LOG2_NAMES,
    bio_s_capacity,
    unintended_memorization,
)
from palimpsest.analysis.metrics.contamination import (
    choose,
)
from palimpsest.analysis.metrics.extraction import (
    extraction_strength,
    log10_queries,
    queries_needed,
    run_lengths,
)
from palimpsest.analysis.metrics.factual import acquisition, decay
from palimpsest.analysis.metrics.membership import (
    bag_of_words_auc,
    con_recall_score,
    dc_pdd_score,
    gradient_norm_score,
    min_k,
    neighbourhood_score,
    one_run_epsilon,
    recall_score,
)
from palimpsest.analysis.metrics.order import (
    order_permutation_p,
    order_test,
    order_test_within_epochs,
)
from palimpsest.analysis.metrics.personal import bits_leaked, prefix_match, word_recall
from palimpsest.analysis.metrics.profiles import counterfactual_memorization
from palimpsest.analysis.metrics.reasoning import limem
from palimpsest.analysis.metrics.similarity import edit_similarity, rouge_l
from palimpsest.analysis.metrics.unlearning import (
    forget_quality,
)
from palimpsest.analysis.metrics.watermark import combined_p, rank_test
from palimpsest.analysis.statistics import delong
from palimpsest.data.errors import UserError
from palimpsest.insertion.items import KINDS
from tests.analysis.synthetic import drawn_from
from tests.analysis.test_metrics import frames


def uniform(p: list[float]) -> bool:
    return bool(stats.kstest(p, "uniform").pvalue > 0.005)


# Extraction


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_one_pass_answers_for_every_prefix_and_suffix(hits: list[bool]) -> None:
    runs = run_lengths(hits)
    for k in range(len(hits)):
        for m in range(1, len(hits) - k + 1):
            assert (runs[k] >= m) == all(hits[k : k + m])
    first = next(k for k in range(len(hits) + 1) if all(hits[k:]))
    assert extraction_strength(hits) == pytest.approx(1 - first / len(hits))


@settings(max_examples=60, deadline=None)
@given(st.floats(-30, -1e-3), st.floats(0.01, 0.99))
def test_the_fewest_queries_are_enough_and_one_less_is_not(ln_pz: float, p: float) -> None:
    n = queries_needed(ln_pz, p)
    if n < 1e8:
        chance = [-math.expm1(k * math.log1p(-math.exp(ln_pz))) for k in (n, n - 1)]
        assert chance[0] >= p * (1 - 1e-9)
        assert chance[1] < p * (1 + 1e-9)
    assert 10 ** float(log10_queries(ln_pz, p)) <= n * (1 + 1e-9)


def test_queries_agree_where_the_two_formulas_meet() -> None:
    assert float(log10_queries(-40.0001, 0.5)) == pytest.approx(float(log10_queries(-39.9999, 0.5)), abs=1e-3)
    assert queries_needed(0.0, 0.5) == 1
    with pytest.raises(OverflowError):
        queries_needed(-math.inf, 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 3), st.integers(1, 8), st.floats(0.05, 1))
def test_sampling_distributions_are_distributions(seed: int, t: float, k: int, p: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, (5, 8))
    both = drawn_from(logits, temperature=t, top_k=k, top_p=p)
    assert logsumexp(both, axis=-1) == pytest.approx(np.zeros(5), abs=1e-12)
    kept = np.isfinite(both).sum(-1)
    assert np.all((kept >= 1) & (kept <= k))
    assert np.isfinite(both[np.arange(5), logits.argmax(-1)]).all()


def test_similarity_is_over_tokens_in_any_script() -> None:
    assert rouge_l("всё это".split(), "всё это".split()).f1 == 1
    assert rouge_l([1, 2, 9, 4], [1, 2, 3, 4]) == pytest.approx((0.75, 0.75, 0.75))
    assert rouge_l([], [1]).f1 == 0
    assert rouge_l([1, 2, 3, 7, 7], [1, 2, 3]).f1 == 1
    assert rouge_l([1, 2, 3, 7, 7], [1, 2, 3], truncate=False) == pytest.approx((0.6, 1, 0.75))
    assert edit_similarity("abc-1", "abc:1") == pytest.approx(0.8)
    assert edit_similarity([1], [1, 2], over="reference") == 0.5
    rng = np.random.default_rng(0)
    chance = [rouge_l(*rng.integers(0, 50_000, (2, 100)).tolist()).f1 for _ in range(50)]
    assert np.mean(chance) < 0.02


# Exposure and watermarks


def test_the_rank_test_is_uniform_by_design_and_sees_the_inserted_draw() -> None:
    rng = np.random.default_rng(1)
    assert uniform(
        [rank_test(x[0], x[1:]).p + rng.uniform(-0.005, 0.005) for x in rng.gamma(3, 1, (300, 100))]
    )
    found = rank_test(-5.0, rng.normal(size=99))
    assert found.p == 0.01
    assert found.z > 3
    assert rank_test(1.0, [1.0, 2.0, 3.0]) == (0.5, pytest.approx(1.0), 3)
    assert uniform([combined_p(p) for p in rng.random((200, 8))])


# Membership


def test_membership_scores_are_chance_without_and_high_with_memory() -> None:
    rng = np.random.default_rng(2)
    logprob = -rng.gamma(1, 3, (400, 50))
    control, untouched, member = logprob[:200], logprob[200:], 0.6 * logprob[200:]
    reference = -logprob.mean(1) + rng.normal(0, 0.1, 400)
    for score in (
        lambda rows, ref: [min_k(r) for r in rows],
        lambda rows, ref: [
            neighbourhood_score(-r.mean(), n + np.zeros(3)) for r, n in zip(rows, ref, strict=True)
        ],
    ):
        base = score(control, reference[:200])
        assert delong(score(untouched, reference[200:]), base).auc == pytest.approx(0.5, abs=0.08)
        assert delong(score(member, reference[200:]), base).auc > 0.9


def test_scores_with_a_prefix_rise_for_members() -> None:
    # Foreign context costs the member 20 nats and the stranger nothing; kindred context costs nobody.
    assert recall_score([-100.0], [-120.0]) > recall_score([-100.0], [-100.0])
    assert con_recall_score([-100.0], [-120.0], [-100.0])[0] == pytest.approx(0.2)
    assert con_recall_score([-100.0], [-100.0], [-100.0])[0] == 0
    with pytest.raises(ValueError, match="must be negative"):
        recall_score([0.0], [-1.0])


def test_dc_pdd_counts_first_occurrences_of_rare_sure_tokens() -> None:
    # p ln(1/f): .5 ln 100 = 2.30 and .001 ln 1000 = .0069; the repeat of token 7 does not count.
    found = dc_pdd_score([7, 8, 7], np.log([0.5, 0.001, 0.9]), [0.01, 0.001, 0.01], ceiling=10)
    assert found == pytest.approx((0.5 * math.log(100) + 0.001 * math.log(1000)) / 2)
    assert dc_pdd_score([7, 8, 7], np.log([0.5, 0.001, 0.9]), [0.01, 0.001, 0.01]) == pytest.approx(
        (0.01 + 0.001 * math.log(1000)) / 2
    )
    assert gradient_norm_score([1.0, 3.0]) == -2


def test_epsilon_of_one_run() -> None:
    rng = np.random.default_rng(3)
    assert one_run_epsilon(50, 100) == 0
    bound = one_run_epsilon(90, 100)
    assert stats.binom.sf(89, 100, 1 / (1 + math.exp(-bound))) == pytest.approx(0.05, abs=1e-9)
    # A true epsilon of 1 is exceeded by its bound in 5 of 100 experiments.
    found = [one_run_epsilon(int(v), 200) for v in rng.binomial(200, 1 / (1 + math.exp(-1)), 2000)]
    assert np.mean(np.array(found) > 1) <= 0.06


def test_the_blind_baseline_is_chance_only_if_texts_are_exchangeable() -> None:
    rng = np.random.default_rng(4)
    words = np.array([f"w{k}" for k in range(200)])
    texts = [" ".join(rng.choice(words, 40)) for _ in range(200)]
    assert bag_of_words_auc(texts[:100], texts[100:]) == pytest.approx(0.5, abs=0.13)
    assert bag_of_words_auc([t + " since 2024" for t in texts[:100]], texts[100:]) > 0.95


# Capacity, contamination, personal data


def test_a_model_that_knows_nothing_has_no_bits() -> None:
    n0, s0 = LOG2_NAMES * math.log(2), LOG2_ATTRIBUTES * math.log(2)
    assert bio_s_capacity(1000, 1e6, n0, s0).bits == pytest.approx(0, abs=1e-6)
    assert bio_s_capacity(1000, 1e6, n0 + 5, s0 + 5).bits == 0
    known = bio_s_capacity(1000, 1e6, math.log(1000), 0)
    assert known.bits == pytest.approx(known.max_bits)
    # log2 of the number of data sets there are: C(N0, N) names without order, S0 attributes each.
    exact = (math.lgamma(2**LOG2_NAMES) - math.lgamma(2**LOG2_NAMES - 1000) - math.lgamma(1001)) / math.log(2)
    assert known.max_bits == pytest.approx(exact + 1000 * LOG2_ATTRIBUTES, abs=1000 * math.log2(math.e) + 10)
    assert unintended_memorization([-10.0, -30.0], [-20.0, -20.0]).tolist() == pytest.approx(
        [10 / math.log(2), 0]
    )


def test_choices_ties_and_distractors() -> None:
    assert choose([-1.0, -1.0]).tied
    assert choose([-3.0, -4.0], bytes_C=[1, 4]).per_byte == 1


def test_personal_data_in_bits_and_ranks() -> None:
    assert bits_leaked([-1.0], [-1.0 - math.log(8)])[0] == pytest.approx(3)
    assert word_recall("a b b c".split(), "b b b a".split()) == 0.75
    assert prefix_match("New  York", "new york, and then")
    assert not prefix_match("New York", "New Yorker")
    assert not prefix_match("New York", "in New York")


# Acquisition, profiles, order


def test_effectivity_is_biased_by_its_maximum() -> None:
    noise = np.random.default_rng(8).normal(0, 1, (400, 200))
    biased = np.mean([acquisition(row, 100, 50).effectivity for row in noise])
    assert biased == pytest.approx(2.2, abs=0.2)


def test_a_rising_retention_has_no_horizon() -> None:
    assert math.isinf(decay([1, 10], [0.5, 0.6]).horizon)


def test_counterfactual_memorization_over_seeds() -> None:
    rng = np.random.default_rng(10)
    null = [counterfactual_memorization(*rng.normal(size=(2, 8))) for _ in range(500)]
    assert np.mean([f.low <= 0 <= f.high for f in null]) == pytest.approx(0.95, abs=0.03)
    found = counterfactual_memorization(rng.normal(2, 0.1, 8), rng.normal(0, 0.1, 8))
    assert found.low < 2 < found.high < 2.3


def test_the_order_test_is_uniform_and_finds_a_palimpsest() -> None:
    rng = np.random.default_rng(11)
    position = np.arange(60)
    assert uniform([order_test(position, rng.normal(size=60)).p for _ in range(300)])
    p = [order_permutation_p(position, rng.normal(size=60), permutations=99, seed=k) for k in range(150)]
    assert uniform((np.array(p) - rng.uniform(0, 0.01, 150)).tolist())
    found = order_test(position, 0.05 * position + rng.normal(size=60))
    assert found.low > 0
    # Two epochs that are reshuffled: the level of the second is no order within it.
    epochs = np.repeat([0, 1], 60)
    twice = np.r_[position, 60 + rng.permutation(60)]
    assert order_test(twice, 3.0 * epochs + rng.normal(size=120)).p < 1e-6
    assert order_test_within_epochs(twice, 3.0 * epochs + rng.normal(size=120), epochs).p > 0.01


def test_reciting_is_not_reasoning() -> None:
    assert limem([1, 1, 1, 0], [1, 1, 1, 0]).score == 0
    assert limem([1, 1, 1, 0], [0, 0, 0, 1]).score == 0.75
    assert limem([0, 0], [0, 0]).score == 0
    found = limem([1, 1, 0, 1], [1, 0, 0, math.nan])
    assert found == (pytest.approx(0.375), 0.75, 0.5, 4, 1)


# Unlearning


def test_unlearning_measures() -> None:
    rng = np.random.default_rng(12)
    null = [forget_quality(*rng.normal(size=(2, 150)), replicates=5).p for _ in range(400)]
    assert np.mean(np.array(null) <= 0.1) == pytest.approx(0.1, abs=0.04)
    same = forget_quality(np.arange(50.0), np.arange(50.0))
    assert (same.distance, same.p) == (0, 1)


# The registered forms


def _store() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    items, probes, scores = frames([[-0.5, -1.5, -0.1, -3.0], [-2.0, -0.2]], [[0, 1, 0, 0], [1, 0]])
    probes = probes.with_columns(text=pl.Series(["some text", None]))
    extra = {"entropy": [[0.5, 1.0, 0.2, 2.0], [1.0, 0.5]], "variance": [[1.0, 0.5, 0.0, 2.0], [1.0, 0.4]]}
    scores = scores.with_columns(*(pl.Series(k, v, dtype=pl.List(pl.Float32)) for k, v in extra.items()))
    twin = scores.head(1).with_columns(
        run=pl.lit("twin"), logprob=pl.Series([[-1.0, -2.0, -1.0, -3.0]], dtype=pl.List(pl.Float32))
    )
    return items, probes, pl.concat([scores, twin])


def test_registered_metrics_say_what_the_functions_say() -> None:
    items, probes, scores = _store()
    settings_ = Parameters(prefix=1, suffix=1, fraction=0.5, queries=3)
    rows = compute(items, probes, scores, list(METRICS), settings_).filter(pl.col("run") == "perturbed")

    def of(name: str) -> list[float | None]:
        return rows.filter(pl.col("metric") == name)["value"].to_list()

    assert of("min_k_logprob") == pytest.approx([min_k([-0.5, -1.5, -0.1, -3.0], 0.5), -2.0])
    z = np.array([0.0, -0.5 / math.sqrt(0.5), 0.1 / math.sqrt(1e-6), -1 / math.sqrt(2)])
    assert of("min_k_plus_plus") == pytest.approx([np.sort(z)[:2].mean(), -1.0], rel=1e-5)
    assert of("clamped_variance_tokens") == [1, 0]
    assert of("zlib_ratio")[0] == pytest.approx(-5.1 / 4 / 17)
    assert of("zlib_ratio")[1] is None
    assert of("reference_difference") == [pytest.approx(1.9 / 4), None]
    assert of("negative_loss_ratio") == [pytest.approx(-5.1 / 7), None]
    assert of("extraction_strength") == pytest.approx([0.5, 0.5])
    assert of("longest_extracted") == [0, 1]
    assert of("suffix_loglik") == pytest.approx([-1.5, -0.2])
    assert of("np_discoverable") == pytest.approx([1 - (1 - math.exp(v)) ** 3 for v in (-1.5, -0.2)])
    reasons = rows.filter(pl.col("value").is_null()).select("metric", "reason").rows()
    assert ("zlib_ratio", "the probe has no text") in reasons
    assert ("reference_difference", "the reference run has no score of it at this step") in reasons


def test_what_a_store_lacks_is_a_row_with_its_reason() -> None:
    data = frames([[-1.0, -2.0]])
    names = ["min_k_plus_plus", "zlib_ratio", "reference_difference"]
    rows = compute(*data, names=names)
    assert rows["value"].to_list() == [None] * 3
    assert rows["reason"].to_list() == [
        "the scores have no column 'entropy'",
        "the probes have no texts",
        "there are no scores of the reference run 'twin'",
    ]


def test_a_word_is_a_measure_or_a_kind_of_probe() -> None:
    """``verbatim`` is a text asked whole; what is reproduced of it is ``extracted``."""
    assert set(METRICS).isdisjoint(KINDS)
    assert "verbatim" in KINDS


def test_one_plan_serves_many_metrics_and_the_default_set_is_the_reports() -> None:
    assert plan(["min_k_plus_plus", "zlib_ratio", "cloze_loglik_per_byte"]) == (
        ("cloze", "verbatim"),
        ("entropy", "logprob", "rank", "variance"),
        ("zlib_bytes",),
    )
    assert sorted(name for name in defaults() if not METRICS[name].by_question) == [
        "cloze_loglik_per_byte", "exact_match", "extracted", "heldout_loglik_per_byte",
        "loglik_per_byte",
        "loglik_per_token",
    ]  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'zlib_ratio'"):
        plan(["zlib_rato"])
    with pytest.raises(UserError, match="fraction"):
        Parameters(fraction=0)
