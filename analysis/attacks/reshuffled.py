"""Order test of a text: was it written by a model that was trained from this run?

The end of the run is trained again several times, with the same windows in other orders. A text that does not come from
the run is as likely under the run's model as under those (Kuditipudi et al. 2025). Stored in
``reshuffled/<text>-<digest>``, each with ``models.parquet`` (:data:`SCHEMA`) and a manifest that has the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis.attacks import order
from palimpsest.analysis.metrics.order import reshuffle_test

KIND = "reshuffled"
VERSION = 1
FILE = "models.parquet"
SCHEMA = pl.Schema({"model": pl.Int32(), "loglik": pl.Float64()})
"""One row a model: 0 is that of the run, the others are those of the other orders; and the mean log-likelihood of the
text's tokens under it, nats/token."""


def table_of(loglik: Sequence[float]) -> pl.DataFrame:
    """Rows of ``SCHEMA``.

    Args:
        loglik: mean of the text's tokens, nats/token, under the run's model first, then under each of the others.
    """
    return pl.DataFrame({"model": range(len(loglik)), "loglik": loglik}, schema=SCHEMA)


def result(rows: pl.DataFrame) -> dict[str, float]:
    """The reshuffle test: ``loglik`` under the run's model, its ``excess`` over the mean of the others (nats/token),
    ``p`` by rank, ``p_t`` by a t distribution, and the number of other ``models``.
    """
    own, *others = rows["loglik"].to_list()
    found = reshuffle_test(own, others)
    return {
        **{"loglik": own, "excess": own - sum(others) / len(others)},
        **{"p": found.p, "p_t": found.p_t, "models": found.models},
    }


def read(directory: Path, *, plan: str) -> list[dict[str, Any]]:
    """Facts of every tested text: ``text``, ``tokens``, ``since`` (the step from which on the windows were reshuffled),
    those of :func:`result`, and ``digest``.

    Args:
        directory: ``reshuffled`` of the run.
        plan: digest of the plan; tests of another one are left out.
    """
    return [facts for _, facts in order.stored(directory, kind=KIND, version=VERSION, plan=plan)]
