"""Inputs of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.metrics import METRICS, Parameters
from palimpsest.data.errors import UserError, nearest

KIND = "report"
VERSION = 2
DECLARED = "loglik_per_byte"
"""The pre-declared primary metric; another choice makes the result exploratory."""

NO_AUDIT = (
    "Not audited: these are released models, of whose training there is no ledger. Doses are as their authors declare "
    "them, and nothing here proves that a text was read, or how often."
)
"""Said of released models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """Everything the report shows; frames as their stages wrote them."""

    title: str
    """Name of the experiment."""
    items: pl.DataFrame
    """item_id, family, stratum, arm, dose, text, bytes, tokens."""
    probes: pl.DataFrame
    """probe_id, item_id, family, kind, text, tokens, target_start, target_bytes."""
    scores: pl.DataFrame
    """run, step, probe_id, logprob, rank; ``run`` is ``perturbed`` or ``twin``, the twin may be absent."""
    training: pl.DataFrame
    """run, step, loss (nats/token), tokens (cumulative)."""
    exposures: pl.DataFrame
    """item_id, step."""
    audit: Mapping[str, Any] | None
    """verdict (``PASS`` or ``FAIL``), checks (name, passed, detail), failures; None: not audited."""
    balance: Sequence[Mapping[str, Any]] = ()
    """Rows of the balance table, one a covariate."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures about the plan."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration."""
    manifests: Mapping[str, Any] = field(default_factory=dict)
    """Artefact -> its manifest."""
    signature: Mapping[str, Any] = field(default_factory=dict)
    """Columns of every CSV that tell the run from others: source, seed, digest (``Run.signature``)."""
    spans: Callable[[str], tuple[NDArray[np.int32], list[tuple[int, int]]]] | None = None
    """A text's token ids and each token's range of characters (``Tokenizer.encode_offsets``), to colour texts by;
    without it they are shown plain."""
    released: Mapping[str, Any] | None = None
    """Of models that others have trained: ``models`` (run -> name), ``revisions`` (step -> name) and ``declared``, how
    many exposures their authors declare. There is then no ledger, no audit, no log, and no exposure whose step is
    known."""
    parameters: Parameters = field(default_factory=Parameters)
    """Settings of the metrics."""
    primary: str = DECLARED
    """The primary metric, chosen before looking at results."""
    metrics: Sequence[str] = ()
    """More of ``analysis.metrics`` than its default ones, by name."""
    contrasts: Sequence[str] = ()
    """Arms or levels to compare, each ``FIRST vs SECOND``; none: every pair of levels of each factor."""
    alpha: float = 0.05
    """Level of the closed test over doses."""
    permutations: int = 1999
    """Permutations behind each p; the smallest possible p is 1 / (permutations + 1)."""
    seed: int = 0
    """Seed of the permutations and of the split of the controls."""

    @property
    def last_step(self) -> int:
        """The last step of any scores, training records or exposures."""
        return max(
            int(frame["step"].cast(pl.Int64).max() or 0)  # type: ignore[arg-type]
            for frame in (self.scores, self.training, self.exposures)
        )

    def signed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows with the columns of :attr:`signature`."""
        return rows.with_columns(pl.lit(value).alias(name) for name, value in self.signature.items())

    def __post_init__(self) -> None:
        for setting, name in (("primary", self.primary), *(("metrics", name) for name in self.metrics)):
            if name not in METRICS:
                raise UserError(f"report.{setting}: unknown metric {name!r}{nearest(name, METRICS)}")
        runs = set(self.scores["run"].unique())
        if "perturbed" not in runs:
            raise UserError("there are no scores of the perturbed run; run launch/score.py")
        if strangers := runs - {"perturbed", "twin"}:
            raise UserError(f"scores of an unknown run {min(strangers)!r}; known: perturbed, twin")
        if (self.items["family"] == "all").any():
            raise UserError(
                "a family cannot be called 'all': that is what estimates over all families are called"
            )
        if not (self.items["dose"] == 0).any() or not (self.items["dose"] > 0).any():
            raise UserError("a report needs items of dose 0 and of at least one higher dose")
