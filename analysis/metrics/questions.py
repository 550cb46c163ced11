"""Questions of families besides the whole text: choices, foils, clozes, and questions changed in one place.

The probes of an item that share a name form one question. Its value is put in the row of the right answer (for foils,
of the first one), and values are compared between items by ``question``, the name up to `` #``. A question ``X ~
CHANGE`` is the question ``X`` of the same item, changed. Shape suffix: R rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.metrics.membership import lowest
from palimpsest.analysis.metrics.registry import Parameters, Values, metric
from palimpsest.analysis.metrics.scored import Scored

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_UNFIT = "its question has not one right answer among two or more choices, all of them scored"


def over(group_R: NDArray[np.int64], values_R: NDArray[np.floating[Any]], reduce: np.ufunc) -> Floats:
    """``reduce`` applied to the values of each group, repeated at every row of the group."""
    if not len(group_R):
        return np.zeros(0)
    order = np.argsort(group_R, kind="stable")
    changes = np.flatnonzero(np.diff(group_R[order])) + 1
    starts = np.concatenate([[0], changes])
    reduced = np.empty(len(group_R))
    reduced[order] = np.repeat(
        reduce.reduceat(values_R[order], starts), np.diff(np.append(starts, len(group_R)))
    )
    return reduced


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Rows of one kind of probe, grouped by question."""

    where: NDArray[np.int64]
    """Indices of the rows in ``Scored``."""
    group: NDArray[np.int64]
    right: Bools
    anchor: Bools
    """True for the row that holds its question's value: the first right one, or the first."""
    fit: Bools
    """True if all probes of the question have finite scores."""
    size: Floats
    """Number of rows of the question."""

    def values(self, scored: Scored, value: Floats, valid: Bools, reason: str) -> Values:
        """Values on all rows of ``scored`` from the values on these rows."""
        rows = len(scored.lengths)
        spread, known, asked = np.zeros(rows), np.zeros(rows, bool), np.zeros(rows, bool)
        spread[self.where], known[self.where], asked[self.where] = value, valid, self.anchor
        return Values(spread, known, reason, asked)


def asked(scored: Scored, kind: str) -> Asked:
    """Group the rows of a kind of probe by question."""
    where = np.flatnonzero((scored.rows["kind"] == kind).to_numpy())
    rows = scored.rows[where]
    group = rows["group"].cast(pl.Int64).to_numpy()
    right = rows["correct"].to_numpy()
    place = np.arange(len(where), dtype=np.float64)
    first = np.where(right, place, place + len(where))
    return Asked(
        where,
        group,
        right,
        first == over(group, first, np.minimum),
        rows["complete"].to_numpy() & (over(group, scored.finite[where] * 1.0, np.minimum) == 1),
        over(group, np.ones(len(where)), np.add),
    )


def _choices(scored: Scored, score: Callable[[Asked], Floats]) -> tuple[Asked, Floats, Bools]:
    """The rows of choices, a score of each, and true for rows of a complete question."""
    choices = asked(scored, "choice")
    fit = choices.fit & (over(choices.group, choices.right * 1.0, np.add) == 1) & (choices.size > 1)
    return choices, score(choices), fit


def _loglik(scored: Scored) -> Callable[[Asked], Floats]:
    total = scored.sum_over_target(scored.logprob)
    return lambda choices: total[choices.where]


def _accuracy(scored: Scored, score: Callable[[Asked], Floats]) -> Values:
    """1 if the right answer scores highest, else 0; 1/k if it shares the highest score with k - 1 other choices."""
    choices, value, fit = _choices(scored, score)
    best = value == over(choices.group, value, np.maximum)
    shared = over(choices.group, best * 1.0, np.add)
    return choices.values(scored, best / np.maximum(shared, 1), fit, _UNFIT)


@metric(
    name="choice_accuracy",
    needs=("choice",),
    formula="[argmax over choices of sum of ln p(token | question, before) = the right one]",
    unit="share right",
    source="acc of lm-eval",
    bounds=(0.0, 1.0),
    by_question=True,
)
def choice_accuracy(scored: Scored, parameters: Parameters) -> Values:
    """Raw accuracy (lm-eval's ``acc``), :func:`~analysis.metrics.contamination.choose` of each question; ties share."""
    return _accuracy(scored, _loglik(scored))


@metric(
    name="choice_accuracy_per_char",
    needs=("choice",),
    formula="[argmax over choices of (sum of ln p) / characters of the choice = the right one]",
    unit="share right",
    source="acc_norm of lm-eval",
    bounds=(0.0, 1.0),
    reads=("target",),
    default=False,
    by_question=True,
)
def choice_accuracy_per_char(scored: Scored, parameters: Parameters) -> Values:
    """Accuracy normalised by length in characters (lm-eval's ``acc_norm``)."""
    total, chars = _loglik(scored), scored.rows["target"].str.len_chars().to_numpy()
    return _accuracy(scored, lambda choices: total(choices) / np.maximum(chars[choices.where], 1))


@metric(
    name="choice_accuracy_per_byte",
    needs=("choice",),
    formula="[argmax over choices of (sum of ln p) / UTF-8 bytes of the choice = the right one]",
    unit="share right",
    source="acc_norm of lm-eval, in bytes instead of characters",
    bounds=(0.0, 1.0),
    by_question=True,
)
def choice_accuracy_per_byte(scored: Scored, parameters: Parameters) -> Values:
    """Accuracy normalised by length in bytes."""
    total = _loglik(scored)
    return _accuracy(
        scored, lambda choices: total(choices) / np.maximum(scored.target_bytes[choices.where], 1)
    )


@metric(
    name="choice_accuracy_pmi",
    needs=("choice", "bare"),
    formula="[argmax over choices of ln p(choice | question) - ln p(choice) = the right one]",
    unit="share right",
    source="acc_mutual_info of lm-eval",
    bounds=(0.0, 1.0),
    reads=("target",),
    by_question=True,
)
def choice_accuracy_pmi(scored: Scored, parameters: Parameters) -> Values:
    """Accuracy by pointwise mutual information (lm-eval's ``acc_mutual_info``), for questions whose choices are also
    scored without the question.
    """
    total = scored.sum_over_target(scored.logprob)
    rows = scored.rows.select("kind", "group", "target", loglik=pl.Series(total))
    bare = rows.filter(pl.col("kind") == "bare").unique(["group", "target"])
    alone = (
        rows.join(
            bare.select("group", "target", alone="loglik"),
            on=["group", "target"],
            how="left",
            maintain_order="left",
        )
        .get_column("alone")
        .to_numpy()
    )
    choices, value, fit = _choices(scored, lambda choices: total[choices.where] - alone[choices.where])
    known = over(choices.group, np.isfinite(value) * 1.0, np.add)
    best = value == over(choices.group, np.where(np.isfinite(value), value, -np.inf), np.maximum)
    shared = over(choices.group, best * 1.0, np.add)
    values = choices.values(
        scored,
        best / np.maximum(shared, 1),
        fit & (known == choices.size),
        _UNFIT + ", also without the question",
    )
    return _only(values, choices, np.isin(choices.group, bare["group"].cast(pl.Int64).to_numpy()))


@metric(
    name="choice_probability",
    needs=("choice",),
    formula="softmax over choices of the sum of ln p(token | question, before), at the right one",
    unit="probability",
    source="normalised probability of the right answer, TOFU, Maini et al. 2024",
    bounds=(0.0, 1.0),
    by_question=True,
)
def choice_probability(scored: Scored, parameters: Parameters) -> Values:
    """Probability of the right answer among the choices; being continuous, it gives tests more power than accuracy."""
    choices, value, fit = _choices(scored, _loglik(scored))
    weight = np.exp(value - over(choices.group, value, np.maximum))
    return choices.values(scored, weight / over(choices.group, weight, np.add), fit, _UNFIT)


@metric(
    name="choice_exposure",
    needs=("choice",),
    formula="log2(choices) - log2(1 + choices likelier than the right one + half of those as likely)",
    unit="bits",
    source="exposure, Carlini et al. 2019",
    bounds=(0.0, math.inf),
    by_question=True,
)
def choice_exposure(scored: Scored, parameters: Parameters) -> Values:
    """Exposure of the right answer among the candidates of its question, in bits (Carlini et al. 2019):
    ``log2 candidates - log2 rank``, tied candidates counting half; at most log2 of the number of candidates.
    """
    choices, value, fit = _choices(scored, _loglik(scored))
    truth = over(choices.group, np.where(choices.right, value, -np.inf), np.maximum)
    above = over(choices.group, (value > truth) + 0.5 * (value == truth), np.add)
    # The right answer is among those as likely as itself: half of it is taken off, and it counts whole.
    with np.errstate(invalid="ignore", divide="ignore"):
        bits = np.log2(choices.size) - np.log2(above + 0.5)
    return choices.values(scored, np.where(fit, bits, 0.0), fit, _UNFIT)


@metric(
    name="minus_log_truth_ratio",
    needs=("choice",),
    formula="ln p(right)^(1/tokens) - ln of the mean over wrong choices of p(wrong)^(1/tokens)",
    unit="nats/token",
    source="truth ratio of TOFU, Maini et al. 2024, as minus its logarithm",
    default=False,
    by_question=True,
)
def minus_log_truth_ratio(scored: Scored, parameters: Parameters) -> Values:
    """``-ln TR`` of TOFU's truth ratio, the mean of ``p(wrong)^(1/tokens)`` over wrong answers divided by
    ``p(right)^(1/tokens)``, with the right choice as it is in place of its paraphrase; 0 if they are equally likely.
    """
    mean = scored.sum_over_target(scored.logprob) / np.maximum(scored.target_lengths, 1)
    found, value, fit = _choices(scored, lambda one: mean[one.where])
    wrong = np.where(found.right, -np.inf, value)
    top = over(found.group, wrong, np.maximum)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.log(over(found.group, np.exp(wrong - top), np.add))
        ratio = value - (top + total - np.log(found.size - 1))
    return found.values(scored, np.where(fit, ratio, 0.0), fit, _UNFIT)


def _foils(scored: Scored) -> tuple[Asked, Floats, Floats, Bools]:
    """The rows of foils, the mean ln p per token of each foil and of the text it is compared with, and true for rows of
    which both are known.
    """
    mean = scored.sum_over_target(scored.logprob) / scored.target_lengths
    foils = asked(scored, "foil")
    on = ["run", "step", "family", "item_id"]
    texts = (
        scored.rows.select(*on, "kind", text_mean=pl.Series(mean))
        .filter(pl.col("kind") == "verbatim")
        .unique(on)
    )
    text_mean = (
        scored.rows[foils.where]
        .select(on)
        .join(texts.drop("kind"), on=on, how="left", maintain_order="left")
        .get_column("text_mean")
        .fill_null(np.nan)
        .to_numpy()
    )
    return foils, mean[foils.where], text_mean, foils.fit & np.isfinite(text_mean)


_UNSEEN = "the text or one of its foils was not scored"


@metric(
    name="recognition_2afc",
    needs=("verbatim", "foil"),
    formula="share of the foils with a mean ln p(token | before) below the text's; equal ones by half",
    unit="share recognised",
    source="recognition, Orhan 2023",
    bounds=(0.0, 1.0),
    by_question=True,
)
def recognition_2afc(scored: Scored, parameters: Parameters) -> Values:
    """Share of its own foils that a text is likelier than (Orhan 2023); ties count half."""
    foils, foil, text_mean, fit = _foils(scored)
    won = (text_mean > foil) + 0.5 * (text_mean == foil)
    return foils.values(scored, over(foils.group, won, np.add) / np.maximum(foils.size, 1), fit, _UNSEEN)


@metric(
    name="neighbourhood_difference",
    needs=("verbatim", "foil"),
    formula="mean ln p(token | before) of the text minus the mean over its foils of theirs",
    unit="nats/token",
    source="neighbourhood attack, Mattern et al. 2023",
    default=False,
    by_question=True,
)
def neighbourhood_difference(scored: Scored, parameters: Parameters) -> Values:
    """:func:`~analysis.metrics.membership.neighbourhood_score` (Mattern et al. 2023): with the foils as neighbours, it
    is meaningful for foils that are altered copies of the text, such as with synonyms.
    """
    foils, foil, text_mean, fit = _foils(scored)
    mean = over(foils.group, foil, np.add) / np.maximum(foils.size, 1)
    return foils.values(scored, text_mean - mean, fit, _UNSEEN)


@metric(
    name="rank_test_bits",
    needs=("verbatim", "foil"),
    formula="-log2 p, p = (1 + foils with a mean ln p as high as the text's) / (foils + 1)",
    unit="bits",
    source="rank test of data watermarks, Wei, Wang and Jia 2024",
    bounds=(0.0, math.inf),
    by_question=True,
)
def rank_test_bits(scored: Scored, parameters: Parameters) -> Values:
    """Minus log2 of the p of :func:`~analysis.metrics.watermark.rank_test` (Wei, Wang & Jia 2024), at most log2(foils +
    1): exact if the foils were drawn from the text's own generator.
    """
    foils, foil, text_mean, fit = _foils(scored)
    above = over(foils.group, (foil >= text_mean) * 1.0, np.add)
    return foils.values(scored, np.log2((foils.size + 1) / (above + 1)), fit, _UNSEEN)


@metric(
    name="rank_test_z",
    needs=("verbatim", "foil"),
    formula="(mean ln p a token of the text - mean over its foils) / standard deviation over its foils",
    unit="standard deviations",
    source="rank test of data watermarks, Wei, Wang and Jia 2024",
    default=False,
    by_question=True,
)
def rank_test_z(scored: Scored, parameters: Parameters) -> Values:
    """Standardised difference ``z`` of :func:`~analysis.metrics.watermark.rank_test`."""
    foils, foil, text_mean, fit = _foils(scored)
    mean = over(foils.group, foil, np.add) / np.maximum(foils.size, 1)
    squares = over(foils.group, (foil - mean) ** 2, np.add)
    spread = np.sqrt(squares / np.maximum(foils.size - 1, 1))
    fit = fit & (foils.size > 1) & (spread > 0)
    z = (text_mean - mean) / np.where(spread > 0, spread, 1.0)
    return foils.values(scored, z, fit, f"{_UNSEEN}, or fewer than two differ")


def _changed(scored: Scored) -> tuple[Asked, Floats, Floats, Bools, Bools]:
    """The rows of choices, their points, the points of the unchanged question, true for rows of changed questions, and
    true for rows of which both are known.
    """
    choices, value, fit = _choices(scored, _loglik(scored))
    best = value == over(choices.group, value, np.maximum)
    solved = best / np.maximum(over(choices.group, best * 1.0, np.add), 1)
    on = ["run", "step", "family", "item_id", "original"]
    name = pl.col("name")
    rows = scored.rows[choices.where].select(
        *on[:-1],
        original=name.str.replace(r" ~ [^#]*?( #|$)", "$1"),
        changed=name.str.contains(" ~ ", literal=True),
        solved=pl.Series(solved, dtype=pl.Float64),
        counts=pl.Series(choices.anchor & fit),
    )
    before = rows.filter(~pl.col("changed") & pl.col("counts")).select(*on, before="solved")
    joined = rows.join(before, on=on, how="left", maintain_order="left")
    known = fit & joined["before"].is_not_null().to_numpy()
    return choices, solved, joined["before"].fill_null(0.0).to_numpy(), joined["changed"].to_numpy(), known


_ALONE = "the question that it was made from has no answer"


@metric(
    name="limem",
    needs=("choice",),
    formula="[the unchanged question answered right] x [the changed one answered wrong]",
    unit="share of questions",
    source="LiMem, Xie et al. 2024",
    bounds=(0.0, 1.0),
    by_question=True,
)
def limem(scored: Scored, parameters: Parameters) -> Values:
    """Value whose mean is ``Acc (1 - CR)``, the LiMem score (:func:`~analysis.metrics.reasoning.limem`, Xie et al.
    2024); a question ``X ~ CHANGE`` is compared with the question X of the same item.
    """
    choices, solved, before, changed, known = _changed(scored)
    values = choices.values(scored, before * (1 - solved), known, _ALONE)
    return _only(values, choices, changed)


@metric(
    name="consistency",
    needs=("choice",),
    formula="[the changed question answered right], of those whose unchanged one was",
    unit="share of questions",
    source="consistency ratio of LiMem, Xie et al. 2024",
    bounds=(0.0, 1.0),
    by_question=True,
)
def consistency(scored: Scored, parameters: Parameters) -> Values:
    """Value whose mean is ``CR``, the consistency of :func:`~analysis.metrics.reasoning.limem`; 1 for a model that
    reasons.
    """
    choices, solved, before, changed, known = _changed(scored)
    values = choices.values(scored, solved, known & (before == 1), f"{_ALONE}, or not the right one")
    return _only(values, choices, changed)


def _only(values: Values, questions: Asked, which: Bools) -> Values:
    assert values.asked is not None
    keep = np.zeros(len(values.asked), bool)
    keep[questions.where] = which
    return values._replace(asked=values.asked & keep)


@metric(
    name="cloze_reproduced",
    needs=("cloze",),
    formula="[rank of every token of the target = 0]: greedy decoding gives the target",
    unit="share reproduced",
    source="k-extractability, Carlini et al. 2022, of a target after its prompt",
    bounds=(0.0, 1.0),
    by_question=True,
)
def cloze_reproduced(scored: Scored, parameters: Parameters) -> Values:
    """Exact reconstruction of a cloze's target from its prompt, by greedy decoding."""
    missed = scored.sum_over_target((scored.rank != 0).astype(np.float64))
    return Values((missed == 0).astype(np.float64), np.ones(len(missed), bool), "")


@metric(
    name="cloze_bits_leaked",
    needs=("cloze",),
    formula="log2 p(target | prompt) minus the same under the reference run",
    unit="bits",
    source="unintended memorization, Morris et al. 2025, not cut at 0",
    reads=("reference",),
    default=False,
    by_question=True,
)
def cloze_bits_leaked(scored: Scored, parameters: Parameters) -> Values:
    """:func:`~analysis.metrics.personal.bits_leaked` of every cloze, with the reference run at the same step."""
    total = scored.sum_over_target(scored.logprob - scored.extra["reference"]) / math.log(2)
    return Values(total, np.isfinite(total), "the reference run has no score of it at this step")


@metric(
    name="cloze_bits_known",
    needs=("cloze",),
    formula="bits of the target - (-log2 p(target | prompt))",
    unit="bits",
    source="knowledge capacity, Allen-Zhu and Li 2024",
    reads=("probe_bits",),
    by_question=True,
)
def cloze_bits_known(scored: Scored, parameters: Parameters) -> Values:
    """Known bits of a cloze's target: the bits that the probe states for it (its surprisal to a reader who knows only
    the format), minus its surprisal under the model.

    Negative for a model that does not know the format. The mean over people of each field, at least 0, summed over
    fields and multiplied by the number of people, is ``N log2(S0 / e^p2)`` of
    :func:`~analysis.metrics.capacity.bio_s_capacity` (Allen-Zhu & Li 2024).
    """
    bits = scored.extra["probe_bits"]
    valid = np.isfinite(bits)
    known = np.where(valid, bits, 0.0) + scored.sum_over_target(scored.logprob) / math.log(2)
    return Values(known, valid, "it claims no bits", valid)


@metric(
    name="cloze_min_k_logprob",
    needs=("cloze",),
    formula="mean of the max(1, floor(k T)) lowest ln p(token | prompt, before) of the target",
    unit="nats/token",
    source="Min-K, Shi et al. 2023, of a target after its prompt",
    bounds=(-math.inf, 0.0),
    default=False,
    by_question=True,
)
def cloze_min_k_logprob(scored: Scored, parameters: Parameters) -> Values:
    """:func:`~analysis.metrics.membership.min_k` of every target, k = ``parameters.fraction``."""
    target = dataclasses.replace(
        scored, starts=scored.starts + scored.target_starts, lengths=scored.target_lengths
    )
    return Values(lowest(scored.logprob, target, parameters.fraction), np.ones(len(scored.lengths), bool), "")


def _ratio(scored: Scored, reason: str) -> Values:
    bits = scored.extra["bits"]
    valid = bits > 0
    surprisal = -scored.sum_over_target(scored.logprob) / math.log(2)
    return Values(-surprisal / np.where(valid, bits, 1.0), valid, reason)


@metric(
    name="negative_surprisal_ratio",
    needs=("verbatim",),
    formula="-(-log2 p(item) / bits of the item): minus ln PPL_t / ln PPL_r",
    unit="ratio",
    source="ratio attack of copyright traps, Meeus et al. 2024, with the sign changed",
    bounds=(-math.inf, 0.0),
    reads=("bits",),
    default=False,
)
def negative_surprisal_ratio(scored: Scored, parameters: Parameters) -> Values:
    """Detection ratio of copyright traps: minus the item's loss divided by its loss under the reference model that
    generated it (its ``bits``).
    """
    return _ratio(scored, "its family claims no bits")


@metric(
    name="cloze_negative_surprisal_ratio",
    needs=("cloze",),
    formula="-(-log2 p(item | other text) / bits of the item)",
    unit="ratio",
    source="ratio attack of copyright traps, Meeus et al. 2024, with the sign changed",
    bounds=(-math.inf, 0.0),
    reads=("bits",),
    default=False,
    by_question=True,
)
def cloze_negative_surprisal_ratio(scored: Scored, parameters: Parameters) -> Values:
    """:func:`negative_surprisal_ratio` of the clozes that ask for a whole item after other text."""
    values = _ratio(scored, "its family claims no bits")
    return values._replace(asked=np.isfinite(scored.extra["bits"]))
