"""Order test of a model on the windows of a run: was it trained from this run's data, in this order?

A model remembers what it read last a little better. If its log-likelihood of a run's windows follows the order in which
the run read them, which was drawn at random, it was trained from the run, or goes back to a model that was
(Kuditipudi et al. 2025). Stored in ``derived/<model>-<digest>``, each with ``windows.parquet`` (:data:`SCHEMA`) and a
manifest that has the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.metrics.order import order_permutation_p, order_test
from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import check_seed

KIND = "derived"
VERSION = 1
FILE = "windows.parquet"
SCHEMA = pl.Schema(
    {
        "position": pl.Int64(),
        "loglik": pl.Float64(),
        "reference_loglik": pl.Float64(),
        "residual": pl.Float64(),
    }
)
"""One row a window: its position in training, the mean log-likelihood of its text's tokens (nats/token) under the model
and under the reference (null without one), and their difference, or the former."""
PERTURBED, TWIN, REFERENCE = "perturbed", "twin", "reference"
LEAST_TOKENS = 16
"""Tokens of the shortest text that is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DerivedConfig:
    """Models that may be derived from a run: the section ``derived`` of a config."""

    models: tuple[str, ...] = (PERTURBED,)
    """Models to test: ``perturbed`` or ``twin`` of the run, ``reference``, or a model of ``transformers`` by its
    directory or name on the hub, or a checkpoint (``.../step_<number>``)."""
    reference: str | None = None
    """Model whose log-likelihoods are subtracted, because texts differ in difficulty; it must not have read the windows
    in this order. ``reference``: a model of the same shape is trained on the corpus in another order; or a directory.
    None: nothing is subtracted."""
    windows: int = 2000
    """Number of windows, drawn among those without insertions."""
    texts: tuple[str, ...] = ()
    """Files of text that may have been written by a model that was trained from this run: ``.jsonl``, ``.json``,
    ``.csv`` or ``.parquet`` with a column ``text``, or plain text."""
    reshuffled: int = 19
    """Number of models with which a text's log-likelihood under the run's is compared; each is the end of the run,
    trained again with its windows in another order."""
    since: int | None = None
    """Step of the checkpoint from which these are trained. None: the last one in the first half of the run."""
    seed: int = 0
    """Seed of the draw of windows, and of the other orders."""

    def __post_init__(self) -> None:
        check_seed("derived.seed", self.seed)
        for name, given in (("models", self.models), ("texts", self.texts)):
            if len(set(given)) < len(given):
                raise UserError(f"derived.{name}={list(given)} must name each once")
        if not self.models and not self.texts:
            raise UserError(
                f"derived.models={list(self.models)} must be one model or more, or give derived.texts"
            )
        if self.windows < 8:
            raise UserError(f"derived.windows={self.windows} must be at least 8")
        if self.reshuffled < 2:
            raise UserError(f"derived.reshuffled={self.reshuffled} must be at least 2")
        if self.reference in (PERTURBED, TWIN):
            raise UserError(
                f"derived.reference={self.reference} has read the windows in this order; set "
                "derived.reference=reference"
            )


def texts_of(
    window: Callable[[int], NDArray[np.int64]],
    positions: NDArray[np.int64],
    count: int,
    seed: int,
    eod: int,
    decode: Callable[[Sequence[int]], str],
) -> list[tuple[int, str]]:
    """Positions in training and texts of windows drawn at random, in training order.

    A window's text is that of its longest document; windows without one of ``LEAST_TOKENS`` tokens are left out.

    Args:
        window: function that gives the tokens of a window.
        positions: to draw from.
        count: of windows.
        seed: of the draw.
        eod: id of the token between documents.
        decode: text of token ids.
    """
    drawn = np.random.default_rng(seed).choice(positions, min(count, len(positions)), replace=False)
    found = []
    for position in np.sort(drawn).tolist():
        ids = window(position)
        longest = max(np.split(ids, np.flatnonzero(ids == eod)), key=len)
        longest = longest[longest != eod]
        if len(longest) >= LEAST_TOKENS:
            found.append((position, decode(longest.tolist())))
    return found


def table_of(
    texts: Sequence[tuple[int, str]], loglik: Sequence[float], reference: Sequence[float] | None
) -> pl.DataFrame:
    """Rows of ``SCHEMA``.

    Args:
        texts: positions and texts.
        loglik: mean of each text's tokens under the model, nats/token.
        reference: that under the reference.
    """
    rows = pl.DataFrame(
        {
            "position": [position for position, _ in texts],
            "loglik": list(loglik),
            "reference_loglik": list(reference) if reference is not None else [None] * len(texts),
        },
        schema={name: kind for name, kind in SCHEMA.items() if name != "residual"},
    )
    return rows.with_columns(residual=pl.col("loglik") - pl.col("reference_loglik").fill_null(0))


def result(rows: pl.DataFrame, permutations: int = 1999) -> dict[str, float]:
    """Order test: Spearman's ``rho`` of ``position`` and ``residual`` over the windows, and its two-sided p-values.

    Args:
        rows: of ``SCHEMA``, one a window.
        permutations: random orders for ``p_permutation``; with 8 windows or fewer, all orders are used.

    Returns:
        ``rho``, ``low`` and ``high`` (95 % interval), ``p`` (t distribution), ``p_permutation``, and ``n``, windows.
    """
    position, residual = rows["position"].to_numpy(), rows["residual"].to_numpy()
    found = order_test(position, residual)
    chance = order_permutation_p(position, residual, permutations=permutations)
    return {
        **{"rho": found.rho, "low": found.low, "high": found.high},
        **{"p": found.p, "p_permutation": chance, "n": found.n},
    }


def read(directory: Path, *, plan: str) -> list[tuple[dict[str, Any], pl.DataFrame]]:
    """Facts of every tested model (``model``, ``reference``, and those of :func:`result`), and its rows.

    Args:
        directory: ``derived`` of the run.
        plan: digest of the plan; tests of another one are left out.
    """
    tests = stored(directory, kind=KIND, version=VERSION, plan=plan)
    return [(facts, pl.read_parquet(place / FILE)) for place, facts in tests]


def stored(directory: Path, *, kind: str, version: int, plan: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Directory of every stored test of a plan, and its facts with ``digest``; its files are as they were written.

    Args:
        directory: the tests' common directory.
        kind: kind of the artefacts.
        version: version of their schema.
        plan: digest of the plan.
    """
    for place in sorted(path.parent for path in directory.glob(f"*/{artifact.MANIFEST}")):
        manifest = artifact.read(place, kind=kind, schema_version=version)
        if manifest.inputs["plan"] == plan:
            artifact.verify(place, manifest)
            yield place, {**manifest.facts, "digest": manifest.digest}
