"""Store of scores: Parquet files in parts, each computed once.

A run's scores are directories ``step_<number>`` (``step_<number>-<part>`` from the second part on), each with
``scores.parquet`` (:data:`analysis.scoring.token_statistics.SCORE_SCHEMA`: one row per probe, whose list columns have
one entry per token) and a manifest. A part holds a contiguous range of the plan's probes at one checkpoint. The ranges
depend on the probes, not on the number of tasks, so that any number of tasks can share the work without computing a
part twice. A part is reused if it was made from the same checkpoint, tokenizer and plan (without a plan: the same
items) and by the same code.

All scores of a run, or with pandas those of one part, are opened by one line::

    pl.read_parquet("scores/perturbed/step_*/scores.parquet")                  # Polars
    duckdb.sql("from 'scores/perturbed/step_*/scores.parquet'")                # DuckDB
    pd.read_parquet("scores/perturbed/step_00000040/scores.parquet")           # pandas
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from palimpsest.analysis.scoring import batches, huggingface, models, token_statistics
from palimpsest.analysis.scoring.models import Model
from palimpsest.analysis.scoring.scores import FILE, KIND, VERSION
from palimpsest.analysis.scoring.token_statistics import Reading
from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.pretrain import kernels

log = logging.getLogger(__name__)

TOKENS_A_PART = 8_000_000
KEPT_BITS = 11
"""Number of the 23 mantissa bits stored of ``entropy``, ``variance`` and ``margin``: a relative error of at most
1/4,096 at any magnitude (half precision would round a memorised token's variance, 2e-9, to 0). ``logprob`` is stored at
full precision."""
ROUNDED = ("entropy", "variance", "margin")


FORWARD_PASS = ("attention.py", "layers.py", "model.py")
"""Modules of the forward pass, next to ``pretrain.kernels``, whose source is digested; they are not imported, because
megatron-core would take seconds."""


def scorer_digest() -> str:
    """Digest of the scoring code, including the forward pass of checkpoints."""
    digest = hashlib.sha256()
    for module in (batches, huggingface, models, token_statistics, kernels):
        digest.update(Path(str(module.__file__)).read_bytes())
    for name in FORWARD_PASS:
        digest.update(Path(str(kernels.__file__)).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float32 values rounded to ``KEPT_BITS`` mantissa bits, which compress better; signs and zeros are unchanged."""
    drop = 23 - KEPT_BITS
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << (drop - 1))) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)


def write(scores: pl.DataFrame, path: Path) -> None:
    """Write a table of ``SCORE_SCHEMA`` as Parquet with zstd compression, about 10 bytes per token."""
    table = scores.to_arrow(compat_level=pl.CompatLevel.oldest())
    for name in ROUNDED:
        column = table.column(name).combine_chunks()
        index = table.schema.get_field_index(name)
        values = rounded(column.values.to_numpy(zero_copy_only=False))
        table = table.set_column(index, name, type(column).from_arrays(column.offsets, values))
    floats = [f"{name}.list.element" for name in ("logprob", *ROUNDED)]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=9,
        use_dictionary=["rank.list.element", "argmax.list.element"],
        use_byte_stream_split=floats,
        write_statistics=False,
    )


def parts(probes: pl.DataFrame) -> list[pl.DataFrame]:
    """The probes cut into contiguous parts of about ``TOKENS_A_PART`` tokens; without probes, one empty part."""
    ends = probes["tokens"].list.len().cum_sum().to_numpy()
    number = (ends - 1) // TOKENS_A_PART if len(ends) else ends
    return [probes.filter(pl.Series(number == k)) for k in sorted(set(number.tolist()))] or [probes]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose model can be loaded."""

    step: int
    digest: str
    """Of its files."""
    load: Callable[[], Any]
    """Gives the model: for scores a :class:`~analysis.scoring.models.Model`."""
    revision: str = ""
    """Name of the revision, for a released model."""


def score_all(
    scores: Path,
    probes: pl.DataFrame,
    checkpoints: Sequence[Checkpoint],
    *,
    items_digest: str,
    eod: int,
    vocab_size: int,
    share: tuple[int, int] = (0, 1),
    reading: Reading | None = None,
) -> int:
    """Score the probes at every checkpoint; existing parts are reused.

    Args:
        scores: directory in which the parts are written.
        probes: frame with ``probe_id`` and ``tokens``.
        checkpoints: the checkpoints to score.
        items_digest: digest of the plan or items, tokenizer included, that the probes come from.
        eod: id of the token that begins a text.
        vocab_size: size of the tokenizer's vocabulary.
        share: (k, n): score every n-th part, starting at part k.
        reading: options of reading texts.

    Returns:
        Number of parts scored by this call.

    Raises:
        UserError: if a model cannot read a probe; raised before anything is scored.
    """
    reading = reading or Reading()
    config = {"scorer": scorer_digest()}
    if reading != Reading():
        config |= {name: str(value) for name, value in asdict(reading).items()}

    def loaded(one: Checkpoint) -> Model:
        model: Model = one.load()
        token_statistics.require_readable(model, probes, eod=eod, vocab_size=vocab_size, reading=reading)
        return model

    def scored(model: Model, chosen: pl.DataFrame, path: Path) -> int:
        table = token_statistics.score(model, chosen, eod=eod, vocab_size=vocab_size, reading=reading)
        write(table, path / FILE)
        return len(table)

    return make_parts(
        scores,
        parts(probes),
        [replace(one, load=partial(loaded, one)) for one in checkpoints],
        scored,
        kind=KIND,
        schema_version=VERSION,
        config=config,
        items_digest=items_digest,
        share=share,
    )


def make_parts(
    place: Path,
    cut: Sequence[pl.DataFrame],
    checkpoints: Sequence[Checkpoint],
    make: Callable[[Any, pl.DataFrame, Path], int],
    *,
    kind: str,
    schema_version: int,
    config: Mapping[str, Any],
    items_digest: str,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Make an artefact of each part at every checkpoint; those that are there already are left alone.

    Args:
        place: directory that gets them.
        cut: the parts.
        checkpoints: whose models make them; a model is loaded when a part of it is missing.
        make: from a model, a part and a directory to be filled to the number of its probes.
        kind: of the artefacts.
        schema_version: of their schema.
        config: settings that determine the contents.
        items_digest: of what the probes and the tokenizer come from.
        share: (k, n): do every n-th part of all, from part k on.

    Returns:
        How many were made now.
    """
    done = 0
    for number, checkpoint in enumerate(checkpoints):
        inputs = {"checkpoint": checkpoint.digest, "items": items_digest}
        model = None
        for part, chosen in enumerate(cut):
            if (number * len(cut) + part) % share[1] != share[0]:
                continue
            target = place / (f"step_{checkpoint.step:08d}" + (f"-{part}" if part else ""))
            if _made(target, kind, schema_version, config, inputs):
                continue
            if model is None:
                model = checkpoint.load()
            with artifact.writing(
                target, kind=kind, schema_version=schema_version, config=config, inputs=inputs
            ) as draft:
                probes = make(model, chosen, draft.path)
                draft.facts.update(step=checkpoint.step, part=part, parts=len(cut), probes=probes)
                if checkpoint.revision:
                    draft.facts["revision"] = checkpoint.revision
            done += 1
    return done


def _made(
    place: Path, kind: str, schema_version: int, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> bool:
    """True if the part exists and is valid; a part of an incompatible version of the programs counts as missing."""
    try:
        done, differs = artifact.reuse(
            place, kind=kind, schema_version=schema_version, config=config, inputs=inputs
        )
    except UserError as error:
        log.info("%s", error)
        return False
    if differs:
        log.info("%s is made again: %s", place, "; ".join(differs))
    return done is not None
