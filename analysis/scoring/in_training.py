"""Losses on the plan's probes during training, computed by the scorer that also scores checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import torch
from torch import distributed

from palimpsest.analysis.scoring import models, token_statistics
from palimpsest.data.errors import UserError
from palimpsest.insertion.plan import Plan

HELDOUT = "heldout"
"""Family name of the probes made from held-out documents, on which no run trains."""


class Probing:
    """Mean losses of groups of probes: held-out documents, and each family's items by dose.

    Args:
        plan: the plan of the run; the twin has the same one.
        rank: index of this data-parallel rank, which scores its share of the probes.
        ranks: number of data-parallel ranks.
        eod: id of the end-of-document token.
        vocab_size: size of the tokenizer's vocabulary.
        build: function that returns a new model of the same shape.

    Raises:
        UserError: if the plan has no probes.
    """

    def __init__(
        self, plan: Plan, *, rank: int, ranks: int, eod: int, vocab_size: int, build: Callable[[], Any]
    ) -> None:
        if plan.probes.is_empty():
            raise UserError("the plan has no probes; leave out eval.probes_every and eval.heldout_every")
        doses = plan.items.select("item_id", "dose")
        group = pl.concat_str(pl.col("family"), pl.lit("/dose "), pl.col("dose").cast(pl.String))
        asked = plan.probes.join(doses, on="item_id", how="left", maintain_order="left").with_columns(
            group=pl.when(pl.col("dose").is_null()).then(pl.col("family")).otherwise(group)
        )
        self.groups: list[str] = asked["group"].unique().sort().to_list()
        """Names of the groups, the same on every rank."""
        self.share = asked.filter(pl.int_range(pl.len()) % ranks == rank)
        self.eod, self.vocab_size, self.build = eod, vocab_size, build
        self._copy: Any = None

    def ask(self, gpt: Any, *, heldout_only: bool = False) -> dict[str, float]:
        """Mean loss of each group over its probes' target tokens, nats/token.

        Args:
            gpt: megatron-core's model, unsharded on this rank, in training mode.
            heldout_only: compute the loss of held-out documents only.

        Returns:
            ``eval/<family>/dose <dose>`` or, for probes that belong to no item, ``eval/<family>``.

        Raises:
            UserError: if ``heldout_only`` is set and there are no probes of held-out documents.
        """
        if heldout_only and HELDOUT not in self.groups:
            raise UserError(
                "eval.heldout_every is set, but the plan has no held-out documents; set insertion.heldout_probes and "
                "corpus.heldout_fraction above 0"
            )
        share = self.share.filter(pl.col("group") == HELDOUT) if heldout_only else self.share
        scores = token_statistics.score(self._model(gpt), share, eod=self.eod, vocab_size=self.vocab_size)
        gpt.train()
        logprob = share.select("group", "target_start").with_columns(scores["logprob"])
        targets = pl.col("logprob").list.slice(pl.col("target_start"))
        sums = {
            group: (total, count)
            for group, total, count in logprob.group_by("group")
            .agg(
                targets.list.sum().cast(pl.Float64).sum().alias("total"),
                targets.list.len().sum().alias("count"),
            )
            .iter_rows()
        }
        totals = torch.tensor(
            [sums.get(name, (0.0, 0)) for name in self.groups],
            dtype=torch.float64,
            device=next(gpt.parameters()).device,
        )
        distributed.all_reduce(totals)
        return {
            f"eval/{name}": -total / count
            for name, (total, count) in zip(self.groups, totals.tolist(), strict=True)
            if count
        }

    def _model(self, gpt: Any) -> models.Model:
        """The model to score: on a CPU a copy in float32 of a model that trains in bf16, so that its own weights stay
        unchanged; otherwise the model itself.
        """
        weight = next(gpt.parameters())
        if weight.device.type != "cpu" or weight.dtype == torch.float32:
            return models.Trained(gpt.eval())
        if self._copy is None:
            self._copy = self.build().float().eval()
        self._copy.load_state_dict(gpt.state_dict())
        return models.Trained(self._copy)
