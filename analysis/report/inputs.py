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
"""Pre-declared primary metric; results on any other metric are labelled exploratory."""

NO_AUDIT = (
    "Not audited: these are released models, of whose training there is no ledger. Doses are as their authors declare "
    "them, and nothing here proves that a text was read, or how often."
)
"""Caveat about released models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """Inputs of the report; frames are unchanged from the stages that wrote them."""

    title: str
    """Name of the experiment."""
    items: pl.DataFrame
    """Items: item_id, family, stratum, arm, dose, text, bytes, tokens."""
    probes: pl.DataFrame
    """Probes: probe_id, item_id, family, kind, text, tokens, target_start, target_bytes."""
    scores: pl.DataFrame
    """Scores: run, step, probe_id, logprob, rank; ``run`` is ``perturbed`` or ``twin``, the twin may be absent."""
    training: pl.DataFrame
    """Training logs: run, step, loss (nats/token), tokens (cumulative)."""
    exposures: pl.DataFrame
    """Exposures: item_id, step."""
    audit: Mapping[str, Any] | None
    """Audit: verdict (``PASS`` or ``FAIL``), checks (name, passed, detail), failures; None: not audited."""
    balance: Sequence[Mapping[str, Any]] = ()
    """Rows of the balance table, one per covariate."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the plan, by name."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Resolved configuration."""
    manifests: Mapping[str, Any] = field(default_factory=dict)
    """Artefact -> its manifest."""
    signature: Mapping[str, Any] = field(default_factory=dict)
    """Columns in every CSV that identify the run: source, seed, digest (``Run.signature``)."""
    spans: Callable[[str], tuple[NDArray[np.int32], list[tuple[int, int]]]] | None = None
    """Function from a text to its token ids and their ranges of characters (``Tokenizer.encode_offsets``), used to
    colour texts; None: texts are not coloured."""
    released: Mapping[str, Any] | None = None
    """Facts about released models: ``models`` (run -> name), ``revisions`` (step -> name) and ``declared``, the number
    of exposures that their authors declare. Such models have no ledger, audit or log, and the steps of their exposures
    are unknown. None for a run trained here."""
    generated: pl.DataFrame | None = None
    """Continuations (``analysis.generation.continuations.SCHEMA``) with ``run`` and ``step``; None: none were made."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Settings with which the continuations were made."""
    attacked: pl.DataFrame | None = None
    """Values of attacks with passes of their own (``analysis.attacks.values.SCHEMA``) with ``run`` and ``step``; None:
    none were made."""
    derived: Sequence[tuple[Mapping[str, Any], pl.DataFrame]] = ()
    """Facts and rows of every model that was tested for being derived from the run (``analysis.attacks.order``)."""
    reshuffled: Sequence[Mapping[str, Any]] = ()
    """Facts of every text that was compared under models of other orders (``analysis.attacks.reshuffled``)."""
    parameters: Parameters = field(default_factory=Parameters)
    """Settings of the metrics."""
    primary: str = DECLARED
    """Name of the primary metric, chosen before looking at results."""
    metrics: Sequence[str] = ()
    """Names of metrics in addition to the default ones of ``analysis.metrics``."""
    contrasts: Sequence[str] = ()
    """Arms or levels to compare, each ``FIRST vs SECOND``; empty: every pair of levels of each factor."""
    alpha: float = 0.05
    """Significance level of the closed test over doses."""
    permutations: int = 1999
    """Number of permutations behind each p; the smallest possible p is 1 / (permutations + 1)."""
    seed: int = 0
    """Seed of the permutations and of the split of the controls."""

    @property
    def last_step(self) -> int:
        """Last step of all scores, training logs and exposures."""
        return max(
            int(frame["step"].cast(pl.Int64).max() or 0)  # type: ignore[arg-type]
            for frame in (self.scores, self.training, self.exposures)
        )

    def signed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with the columns of :attr:`signature` added."""
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
                "a family must not be called 'all', which names estimates over all families; rename it "
                "in insertion.families"
            )
        if not (self.items["dose"] == 0).any() or not (self.items["dose"] > 0).any():
            raise UserError(
                "a report needs items of dose 0 and of at least one higher dose; change insertion.doses"
            )
