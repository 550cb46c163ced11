"""Store of scores: Parquet that any tool opens, in parts that are made once.

A run's scores are directories ``step_<number>`` (``step_<number>-<part>`` from the second part on), each with
``scores.parquet`` (:data:`analysis.scoring.token_statistics.SCORE_SCHEMA`: one row a probe, lists with one entry a
token) and a manifest. A part holds the probes of one stretch of the plan's list at one checkpoint; how a list is cut
depends on it alone, so that any number of tasks share the work and none does it twice. A part is reused if it was
made from the same checkpoint, the same plan or items (tokenizer included) and by the same code.

One line opens a run::

    pl.read_parquet("scores/perturbed/step_*/scores.parquet")                  # Polars
    duckdb.sql("from 'scores/perturbed/step_*/scores.parquet'")                # DuckDB
    pd.read_parquet("scores/perturbed/step_00000040/scores.parquet")           # pandas
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
"""Bits kept of the 23 after the binary point in ``entropy``, ``variance`` and ``margin``: within 1 part in 4,096, at
any magnitude (half precision would lose a memorised token's variance, 2e-9). ``logprob`` is kept whole."""
ROUNDED = ("entropy", "variance", "margin")


FORWARD_PASS = ("attention.py", "layers.py", "model.py")
"""Modules beside ``pretrain.kernels``; importing them would import megatron-core, which takes seconds."""


def scorer_digest() -> str:
    """Digest of the code that scores, the forward pass of checkpoints included."""
    digest = hashlib.sha256()
    for module in (batches, huggingface, models, token_statistics, kernels):
        digest.update(Path(str(module.__file__)).read_bytes())
    for name in FORWARD_PASS:
        digest.update(Path(str(kernels.__file__)).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float32 rounded to ``KEPT_BITS`` binary digits after the point: signs and zeros stay, and the rest compresses."""
    drop = 23 - KEPT_BITS
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << (drop - 1))) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)


def write(scores: pl.DataFrame, path: Path) -> None:
    """Write a table of ``SCORE_SCHEMA``: Parquet, zstd, about 10 bytes a token."""
    table = scores.to_arrow(compat_level=pl.CompatLevel.oldest())
    for name in ROUNDED:
        column = table.column(name).combine_chunks()
        index = table.schema.get_field_index(name)
        kept = rounded(column.values.to_numpy(zero_copy_only=False))
        table = table.set_column(index, name, type(column).from_arrays(column.offsets, kept))
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
    """The probes in stretches of at most ``TOKENS_A_PART`` tokens (or one probe); at least one part."""
    ends = probes["tokens"].list.len().cum_sum().to_numpy()
    number = (ends - 1) // TOKENS_A_PART if len(ends) else ends
    return [probes.filter(pl.Series(number == k)) for k in sorted(set(number.tolist()))] or [probes]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be loaded."""

    step: int
    digest: str
    """Of its files."""
    load: Callable[[], Model]
    revision: str = ""
    """Name of the revision of a released model."""


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
    """Score the probes at every checkpoint; parts that are there already are left alone.

    Args:
        scores: directory that gets the parts.
        probes: with ``probe_id`` and ``tokens``.
        checkpoints: to score at.
        items_digest: of what the probes and the tokenizer come from.
        eod: id of the token that begins a text.
        vocab_size: of the tokenizer.
        share: (k, n): do every n-th part of all, from part k on.
        reading: how texts are read.

    Returns:
        How many parts were scored now.

    Raises:
        UserError: if a model cannot read a probe; before anything is scored.
    """
    cut = parts(probes)
    reading = reading or Reading()
    config = {"scorer": scorer_digest()}
    if reading != Reading():
        config |= {name: str(value) for name, value in asdict(reading).items()}
    done = 0
    for number, checkpoint in enumerate(checkpoints):
        inputs = {"checkpoint": checkpoint.digest, "items": items_digest}
        model = None
        for part, chosen in enumerate(cut):
            if (number * len(cut) + part) % share[1] != share[0]:
                continue
            place = scores / (f"step_{checkpoint.step:08d}" + (f"-{part}" if part else ""))
            if _made(place, config, inputs):
                continue
            if model is None:
                model = checkpoint.load()
                token_statistics.require_readable(
                    model, probes, eod=eod, vocab_size=vocab_size, reading=reading
                )
            found = token_statistics.score(model, chosen, eod=eod, vocab_size=vocab_size, reading=reading)
            with artifact.writing(
                place, kind=KIND, schema_version=VERSION, config=config, inputs=inputs
            ) as draft:
                write(found, draft.path / FILE)
                draft.facts.update(step=checkpoint.step, part=part, parts=len(cut), probes=len(found))
                if checkpoint.revision:
                    draft.facts["revision"] = checkpoint.revision
            done += 1
    return done


def _made(place: Path, config: Mapping[str, str], inputs: Mapping[str, str]) -> bool:
    """True if the part is there; one of another version of the programs is made again."""
    try:
        done, differs = artifact.reuse(place, kind=KIND, schema_version=VERSION, config=config, inputs=inputs)
    except UserError as error:
        log.info("%s", error)
        return False
    if differs:
        log.info("%s is scored again: %s", place, "; ".join(differs))
    return done is not None
