"""Inspection of a finished corpus: its integrity, and the source text of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from palimpsest.data import artifact, tokens
from palimpsest.data.mixture import Windows
from palimpsest.data.prepare import DOCUMENTS, KIND, SCHEMA_VERSION, TRAIN
from palimpsest.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of one document in a window."""

    position: int
    """Position of the window."""
    offset: int
    """Index of the piece's first token in the window."""
    end: int
    """Index after the piece's last token in the window."""
    document: int
    """Index of the document in its corpus's ``train.bin``."""
    source: str
    row: str
    text: str


def verify(corpus: Path) -> None:
    """Check a whole finished corpus: every file against its digest, every token id against the vocabulary.

    Raises:
        UserError: naming the file that was changed, or the document that holds an id outside the vocabulary.
    """
    manifest = artifact.read(corpus, kind=KIND, schema_version=SCHEMA_VERSION)
    tokens.check(corpus / TRAIN, manifest.facts["vocab_size"])
    tokens.scan(corpus / TRAIN, manifest.facts["vocab_size"])
    artifact.verify(corpus, manifest)


def pieces(order: Windows, corpora: Sequence[Path], tokenizer: Tokenizer, positions: range) -> list[Piece]:
    """Source documents of windows, piece by piece, before any insertion.

    Args:
        order: order of the corpora's windows.
        corpora: directories of the corpora.
        tokenizer: tokenizer of the corpora.
        positions: positions of the windows.
    """
    pieces = []
    for position in positions:
        corpus, own, inside = order.locate(position)
        window = own.window(inside)
        # A document that begins with the window's last token, which the next window predicts from, is listed, too.
        for document, start, stop in own.documents(inside):
            if stop > start:
                pieces.append((position, start, stop, corpus, document, tokenizer.decode(window[start:stop])))
    rows = {
        (corpus, document): row
        for corpus, place in enumerate(corpora)
        for document, row in _rows(place, sorted({f[4] for f in pieces if f[3] == corpus})).items()
    }
    return [
        Piece(position, start, stop, document, *rows[corpus, document], text)
        for position, start, stop, corpus, document, text in pieces
    ]


def _rows(corpus: Path, documents: list[int]) -> dict[int, tuple[str, str]]:
    """Document -> (source, row); only the row groups that hold them are read."""
    result: dict[int, tuple[str, str]] = {}
    if not documents:
        return result
    with pq.ParquetFile(corpus / DOCUMENTS) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        firsts = np.concatenate([[0], np.cumsum(sizes)])
        groups = np.searchsorted(firsts, documents, side="right") - 1
        for group in np.unique(groups).tolist():
            table = file.read_row_group(group, columns=["source", "row"])
            for document in np.asarray(documents)[groups == group].tolist():
                place = document - int(firsts[group])
                result[document] = (table["source"][place].as_py(), table["row"][place].as_py())
    return result
