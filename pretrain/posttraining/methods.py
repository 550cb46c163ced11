"""Losses of post-training methods, registered by name.

Each is a function of the model's outputs on the rows of a micro-batch and returns that micro-batch's share of the loss
of the step, so that neither micro-batches nor ranks matter. Formulas are those of the papers; where the code of
open-unlearning has other factors (the 2 of NPO and SimNPO), its factors are taken, so that numbers compare.

Shapes: B rows, T targets, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.data.errors import UserError, nearest

Output = Literal["logits", "hidden"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Outputs of one model on the rows of one kind (forget, retain) in a micro-batch."""

    nll: Tensor
    """(B, T) negative log-likelihood of each target, nats."""
    mask: Tensor
    """(B, T) 1 where a target counts, otherwise 0."""
    tokens: float
    """Targets that count in all rows of this kind in the step."""
    rows: int
    """Rows of this kind in the step."""
    labels: Tensor
    """(B, T) ids of the targets."""
    logits: Tensor | None = None
    """(B, T, V)."""
    hidden: Tensor | None = None
    """(B, T, H) output of the layer ``posttrain.layer``."""
    segment: Tensor | None = None
    """(B, T) 1 where a target counts and is in a sensitive segment, of forget rows."""
    segment_tokens: float = 0.0
    """Such targets in all rows of this kind in the step."""

    def mean(self, values_BT: Tensor) -> Tensor:
        """This micro-batch's share of the mean over the step's counted targets; 0 without rows."""
        return (values_BT * self.mask).sum() / max(1.0, self.tokens)

    def of_rows(self, values_B: Tensor) -> Tensor:
        """This micro-batch's share of the mean over the step's rows."""
        return values_B.sum() / self.rows

    @property
    def loss(self) -> Tensor:
        """This micro-batch's share of the mean negative log-likelihood of the step's counted targets, in nats."""
        return self.mean(self.nll)

    @property
    def sums(self) -> Tensor:
        """Loss of each row: the sum over its targets."""
        return (self.nll * self.mask).sum(1)

    @property
    def lengths(self) -> Tensor:
        """Counted targets of each row."""
        return self.mask.sum(1)


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch: the model on its rows, and the model before post-training where the method asks for it."""

    forget: Rows
    retain: Rows
    forget_before: Rows | None = None
    retain_before: Rows | None = None
    refusal: Rows | None = None
    """The prompts of the forget rows with a refusal, if the method asks for it."""
    refusal_before: Rows | None = None


Settings = Mapping[str, float]
Loss = Callable[[Batch, Settings], Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """A registered loss on the forget set; :func:`step_loss` adds that on the retain set."""

    name: str
    loss: Loss
    settings: Mapping[str, float]
    """Settings with their defaults."""
    outputs: frozenset[Output]
    """Outputs that it reads besides the losses."""
    before: bool
    """Compares with the model before post-training."""
    retain: bool
    """Takes a loss on the retain set, by default."""
    labels: Literal["own", "random"]
    """Targets of forget rows: the items' own tokens, or tokens drawn anew in each step."""
    refuses: bool
    """Takes the first half of an item as a prompt, the loss on the second half, and rows with a refusal instead."""


METHODS: dict[str, Method] = {}


def method(
    *outputs: Output,
    before: bool = False,
    retain: bool = True,
    labels: Literal["own", "random"] = "own",
    refuses: bool = False,
    **settings: float,
) -> Callable[[Loss], Loss]:
    """Register a loss under its function's name; ``settings`` are its settings with defaults."""

    def register(loss: Loss) -> Loss:
        METHODS[loss.__name__] = Method(
            loss.__name__, loss, settings, frozenset(outputs), before, retain, labels, refuses
        )
        return loss

    return register


def find(name: str) -> Method:
    """The method of this name.

    Raises:
        UserError: if there is none.
    """
    if name not in METHODS:
        raise UserError(f"posttrain.method={name}: there is no such method{nearest(name, METHODS)}")
    return METHODS[name]


@method(retain=False)
def gradient_ascent(batch: Batch, settings: Settings) -> Tensor:
    """``-L_f``: raise the mean loss a token of the forget set."""
    return -batch.forget.loss


@method()
def grad_diff(batch: Batch, settings: Settings) -> Tensor:
    """``-L_f`` against the loss on the retain set (Liu et al. 2022)."""
    return -batch.forget.loss


@method(kept=1.0)
def segments(batch: Batch, settings: Settings) -> Tensor:
    """Segment-wise unlearning, after CodeEraser (Chu et al. 2025): ``-E L`` over sensitive segments plus ``kept E L``
    over the rest of the same texts.

    Sensitive are the answers of an item's clozes that stand in its text, such as the last words of a passphrase or
    the fields of a biography; a text without such is sensitive as a whole.
    """
    rows = batch.forget
    assert rows.segment is not None
    rest_BT = rows.mask - rows.segment
    forgotten = (rows.nll * rows.segment).sum() / rows.segment_tokens
    kept = (rows.nll * rest_BT).sum() / max(1.0, rows.tokens - rows.segment_tokens)
    return settings["kept"] * kept - forgotten


@method(before=True, beta=0.1)
def npo(batch: Batch, settings: Settings) -> Tensor:
    """NPO (Zhang et al. 2024): ``-2/beta E log sigmoid(beta (L - L_before))``, L the loss of a whole row."""
    assert batch.forget_before is not None
    gained_B = batch.forget.sums - batch.forget_before.sums
    return batch.forget.of_rows(-2 / settings["beta"] * functional.logsigmoid(settings["beta"] * gained_B))


@method(before=True, refuses=True, beta=0.1)
def dpo(batch: Batch, settings: Settings) -> Tensor:
    """DPO (Rafailov et al. 2023) with a refusal as the preferred answer, the item's own text as the other one.

    ``-2/beta E log sigmoid(beta ((L - L_before) - (R - R_before)))``: L is the summed negative log-likelihood of the
    item's text, R that of the refusal, and ``_before`` means the model before. The factor is that of ``npo`` and of
    open-unlearning, twice that of Zhang et al. 2024, eq. 2.
    """
    assert batch.forget_before is not None
    assert batch.refusal is not None
    assert batch.refusal_before is not None
    gained_B = batch.forget.sums - batch.forget_before.sums
    gained_B = gained_B - (batch.refusal.sums - batch.refusal_before.sums)
    return batch.forget.of_rows(-2 / settings["beta"] * functional.logsigmoid(settings["beta"] * gained_B))


@method(beta=4.5, delta=0.0, gamma=0.125)
def simnpo(batch: Batch, settings: Settings) -> Tensor:
    """SimNPO (Fan et al. 2024): NPO without a reference, ``-2/beta E log sigmoid(beta (L / tokens - delta))``."""
    per_token_B = batch.forget.sums / batch.forget.lengths - settings["delta"]
    return batch.forget.of_rows(-2 / settings["beta"] * functional.logsigmoid(settings["beta"] * per_token_B))


@method(beta=1.0)
def wga(batch: Batch, settings: Settings) -> Tensor:
    """Weighted gradient ascent (Wang et al. 2025): ``-E p^beta L`` over tokens; the weight has no gradient."""
    nll_BT = batch.forget.nll
    return -batch.forget.mean((-nll_BT).exp().detach() ** settings["beta"] * nll_BT)


@method(beta1=5.0, beta2=1.0, gamma=0.1)
def satimp(batch: Batch, settings: Settings) -> Tensor:
    """SatImp (Yang et al. 2025): ``-E p^beta1 (1 - p)^beta2 L`` over tokens; the weight has no gradient."""
    nll_BT = batch.forget.nll
    p_BT = (-nll_BT).exp().detach()
    return -batch.forget.mean(p_BT ** settings["beta1"] * (1 - p_BT) ** settings["beta2"] * nll_BT)


@method("logits", before=True, beta=10.0, alpha=0.0)
def undial(batch: Batch, settings: Settings) -> Tensor:
    """UNDIAL (Dong et al. 2024): cross-entropy to the former logits with ``beta`` taken off the true token's."""
    assert batch.forget_before is not None
    before = _logits(batch.forget_before)
    true_BT1 = batch.forget.labels[..., None]
    lowered = torch.full_like(true_BT1, -settings["beta"], dtype=before.dtype)
    soft_BTV = before.scatter_add(-1, true_BT1, lowered).softmax(-1)
    return batch.forget.mean(-(soft_BTV * _logits(batch.forget).log_softmax(-1)).sum(-1))


@method("logits", retain=False, ignored=1)
def ceu(batch: Batch, settings: Settings) -> Tensor:
    """Cross-entropy unlearning (Yang 2025): towards the model's own distribution without the true token.

    The first ``ignored`` targets of each row do not count, as in the paper's settings.
    """
    logits_BTV, mask_BT = _logits(batch.forget), batch.forget.mask
    counted_BT = mask_BT * (mask_BT.cumsum(1) > settings["ignored"])
    others_BTV = logits_BTV.detach().scatter(-1, batch.forget.labels[..., None], float("-inf"))
    # 0 x log 0 of the true token's target is 0.
    entropy_BT = -(others_BTV.softmax(-1) * logits_BTV.log_softmax(-1)).sum(-1)
    tokens = batch.forget.tokens - settings["ignored"] * batch.forget.rows
    return (entropy_BT * counted_BT).sum() / tokens


@method("logits", before=True, dual_step=1.0, slack=0.1)
def pdu(batch: Batch, settings: Settings) -> Tensor:
    """Primal-dual unlearning (Entesari et al. 2025): ``E (max logit - mean logit)^2``, which flattens predictions.

    The loss on the retain set is a constraint: at most ``slack`` above that of the model before. Its weight ``alpha``
    is the multiplier, to which each step adds ``dual_step`` times the violation, down to 0 (:func:`multiplier`).
    """
    logits_BTV = _logits(batch.forget)
    return batch.forget.mean((logits_BTV.amax(-1) - logits_BTV.mean(-1)) ** 2)


def multiplier(used: Method, settings: Settings, retain: float, retain_before: float) -> float:
    """Weight of the loss on the retain set in the next step: ``alpha``, unless the method has a constraint.

    Args:
        used: the method.
        settings: of this step.
        retain: mean loss a token of the retain rows.
        retain_before: that of the model before.
    """
    if "dual_step" not in used.settings:
        return settings["alpha"]
    return max(0.0, settings["alpha"] + settings["dual_step"] * (retain - retain_before - settings["slack"]))


@method("hidden", before=True, steering=2.0)
def rmu(batch: Batch, settings: Settings) -> Tensor:
    """Representation misdirection (Li et al. 2024): ``E ||h - steering u||^2 / H``, u a random unit vector."""
    return _distance(batch.forget, settings["steering"] * _direction(_hidden(batch.forget)))


@method("hidden", before=True, slant=0.1)
def deviation(batch: Batch, settings: Settings) -> Tensor:
    """Representation deviation: ``E cos(h, h_before + slant |h_before| u)`` over tokens, so that states turn away from
    the former ones; u is a random unit vector.

    It shares with KUDA that states deviate from the former ones rather than towards a fixed vector; the projection of
    KUDA's gradients is not part of it. Without the slant both its losses are flat at the start, and rounding would
    choose the direction of the first step.
    """
    assert batch.forget_before is not None
    former = _hidden(batch.forget_before)
    u_H = torch.randn(former.shape[-1], generator=torch.Generator().manual_seed(0)).to(former)
    slanted = former + settings["slant"] * former.norm(dim=-1, keepdim=True) * u_H / u_H.norm()
    turned_BT = functional.cosine_similarity(_hidden(batch.forget), slanted, dim=-1)
    return batch.forget.mean(turned_BT)


@method(labels="random")
def random_labels(batch: Batch, settings: Settings) -> Tensor:
    """Train on random tokens in place of the forget set's (Golatkar et al. 2020)."""
    return batch.forget.loss


@method(retain=False)
def relearn(batch: Batch, settings: Settings) -> Tensor:
    """``L_f``: lower the mean loss a token of the forget set, to test if unlearned text comes back."""
    return batch.forget.loss


@method(retain=True, gamma=0.0)
def finetune(batch: Batch, settings: Settings) -> Tensor:
    """Ordinary training on the retain set alone, ``gamma`` being 0: shows what is forgotten without unlearning."""
    return batch.forget.loss


def step_loss(used: Method, retain_loss: str, batch: Batch, settings: Settings) -> Tensor:
    """The micro-batch's share of ``gamma loss(forget) + alpha loss(retain)``; a loss of no weight is not computed.

    Args:
        used: the method.
        retain_loss: ``nll``, mean loss a token; ``kl``, mean divergence from the former model a token, nats.
        batch: outputs.
        settings: ``gamma``, ``alpha``, and the method's own.
    """
    total = batch.forget.nll.new_zeros(())
    if settings["gamma"]:
        total = settings["gamma"] * used.loss(batch, settings)
    if not settings["alpha"]:
        return total
    if "hidden" in used.outputs:
        assert batch.retain_before is not None
        kept = _distance(batch.retain, _hidden(batch.retain_before))
    elif retain_loss == "kl":
        assert batch.retain_before is not None
        now, before = (_logits(rows).log_softmax(-1) for rows in (batch.retain, batch.retain_before))
        kept = batch.retain.mean((before.exp() * (before - now)).sum(-1))
    else:
        kept = batch.retain.loss
    return total + settings["alpha"] * kept


def _logits(rows: Rows) -> Tensor:
    assert rows.logits is not None
    return rows.logits.float()


def _hidden(rows: Rows) -> Tensor:
    assert rows.hidden is not None
    return rows.hidden.float()


def _direction(like: Tensor) -> Tensor:
    """A random unit vector, the same every time, (H,)."""
    u_H = torch.rand(like.shape[-1], generator=torch.Generator().manual_seed(0)).to(like)
    return u_H / u_H.norm()


def _distance(rows: Rows, target: Tensor) -> Tensor:
    """Share of the mean over rows of the mean over tokens of the squared distance from ``target``, by dimension."""
    squared_BT = ((_hidden(rows) - target.detach()) ** 2).mean(-1) * rows.mask
    return rows.of_rows(squared_BT.sum(1) / rows.lengths)
