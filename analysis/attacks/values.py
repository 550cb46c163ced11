"""Settings of the attacks, their stored values, and these as metric rows.

A run's values are directories ``attacks/<run>/step_<number>`` (``step_<number>-<part>`` from the second part on), each
with ``attacks.parquet`` (:data:`SCHEMA`) and a manifest that has the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from palimpsest.analysis.metrics.scored import ROW_SCHEMA
from palimpsest.analysis.scoring.parts import read_parts
from palimpsest.data.errors import UserError, nearest
from palimpsest.pretrain.config import check_seed

KIND = "attacks"
VERSION = 1
FILE = "attacks.parquet"
SCHEMA = pl.Schema({"probe_id": pl.String(), "attack": pl.String(), "value": pl.Float64()})
"""Columns of the stored values; higher = member. Null for a text that stands in the prefixes of an attack, and for one
that the attack cannot be asked about."""


class Attack(NamedTuple):
    """An attack: label of tables, formula and source."""

    label: str
    formula: str
    source: str


KNOWN: Mapping[str, Attack] = {
    "recall": Attack(
        "ReCaLL",
        "LL(x after non-members) / LL(x): foreign context takes more from members",
        "Xie et al. 2024",
    ),
    "con_recall": Attack(
        "Con-ReCaLL",
        "(LL(x after non-members) - LL(x after members)) / LL(x)",
        "Wang et al. 2024",
    ),
    "neighbourhood": Attack(
        "neighbourhood",
        "mean nll of altered copies - nll(x), nats/token; tokens are replaced by others that the model predicts there",
        "Mattern et al. 2023",
    ),
    "gradient_norm": Attack(
        "gradient norm",
        "minus the mean over tensors of the norm of the gradient of nll(x) per token",
        "mimir, Duan et al. 2024",
    ),
    "dc_pdd": Attack(
        "DC-PDD",
        "mean over first occurrences of min(0.01, p ln(1 / frequency in the corpus))",
        "Zhang et al. 2024",
    ),
}
"""Attacks by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackConfig:
    """Membership attacks with passes of their own: the section ``attack`` of a config."""

    names: tuple[str, ...] = tuple(KNOWN)
    """Names of the attacks (:data:`KNOWN`)."""
    shots: int = 4
    """``recall``, ``con_recall``: number of texts in a prefix, of never-inserted items, and of items of the highest
    dose. They are set aside in each family, at most a quarter of either group, and get no value."""
    neighbours: int = 16
    """``neighbourhood``: number of altered copies of a text."""
    replaced: float = 0.15
    """``neighbourhood``: share of a copy's tokens that are replaced."""
    seed: int = 0
    """Seed of the texts that are set aside, and of the replaced tokens."""

    def __post_init__(self) -> None:
        check_seed("attack.seed", self.seed)
        for name in self.names:
            if name not in KNOWN:
                raise UserError(f"attack.names: there is no attack {name}{nearest(name, KNOWN)}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise UserError(f"attack.names={list(self.names)} must be one name or more, each once")
        for name in ("shots", "neighbours"):
            if getattr(self, name) < 1:
                raise UserError(f"attack.{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.replaced <= 1:
            raise UserError(f"attack.replaced={self.replaced} must be above 0 and at most 1")


def texts(items: pl.DataFrame, probes: pl.DataFrame, config: AttackConfig) -> pl.DataFrame:
    """Texts that are attacked: the whole text of every item.

    Args:
        items: of the plan.
        probes: of the plan.
        config: settings.

    Returns:
        probe_id, family, tokens, and ``aside``: ``nonmember`` or ``member`` of the texts that stand in prefixes, else
        null.
    """
    whole = probes.filter((pl.col("kind") == "verbatim") & pl.col("item_id").is_not_null())
    rows = whole.select("probe_id", "item_id", "tokens").join(
        items.select("item_id", "family", "dose"), on="item_id", maintain_order="left"
    )
    aside: dict[str, str] = {}
    highest = max(rows["dose"], default=0)
    if {"recall", "con_recall"} & set(config.names):
        for number, (_, part) in enumerate(rows.group_by("family", maintain_order=True)):
            for group, dose in (("nonmember", 0), ("member", highest)):
                own = sorted(part.filter(pl.col("dose") == dose)["probe_id"])
                taken = min(config.shots, len(own) // 4)
                rng = np.random.default_rng([config.seed, number, dose])
                aside |= dict.fromkeys(rng.permutation(own)[:taken].tolist(), group)
    return rows.select(
        "probe_id",
        "family",
        "tokens",
        aside=pl.col("probe_id").replace_strict(aside, default=None, return_dtype=pl.String),
    )


def read(directory: Path, runs: tuple[str, ...], *, plan: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Values of a pair at every checkpoint that has all parts (``analysis.scoring.parts.read_parts``)."""
    return read_parts(
        directory, runs, plan=plan, kind=KIND, version=VERSION, file=FILE, schema=SCHEMA, program="attack"
    )


def attack_rows(items: pl.DataFrame, probes: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    """Values as rows of :data:`~analysis.metrics.scored.ROW_SCHEMA`, the attack's name as the metric.

    Args:
        items: of the plan.
        probes: of the plan.
        values: stored values with ``run`` and ``step``.
    """
    named = probes.select("probe_id", "item_id", question=pl.col("name").str.replace(r" #.*$", ""))
    about = items.select("item_id", "family", "stratum", "cluster", "dose")
    rows = values.rename({"attack": "metric"}).join(named, on="probe_id", maintain_order="left")
    reason = pl.when(pl.col("value").is_null()).then(pl.lit("it stands in prefixes, or has none"))
    return (
        rows.join(about, on="item_id", maintain_order="left")
        .with_columns(reason=reason)
        .select(pl.col(name).cast(kind) for name, kind in ROW_SCHEMA.items())
    )
