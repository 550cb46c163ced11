"""Look into a finished corpus: is it whole, and which text does a step read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data import artifact, tokens
from data.order import Order
from data.prepare import DOCUMENTS, KIND, SCHEMA_VERSION, TRAIN
from data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one document in a window."""

    position: int
    """Of the window."""
    offset: int
    """Where it begins in the window, in tokens."""
    document: int
    """Number of the document in ``train.bin``."""
    source: str
    row: str
    text: str


def verify(corpus: Path) -> None:
    """Read all of a finished corpus: every file against its digest, every id against the vocabulary.

    Raises:
        UserError: naming the file that was changed, or the document that holds an id outside the vocabulary.
    """
    manifest = artifact.read(corpus, kind=KIND, schema_version=SCHEMA_VERSION)
    tokens.check(corpus / TRAIN, manifest.facts["vocab_size"])
    tokens.scan(corpus / TRAIN, manifest.facts["vocab_size"])
    artifact.verify(corpus, manifest)


def pieces(order: Order, corpus: Path, tokenizer: Tokenizer, positions: range) -> list[Piece]:
    """What windows are made of, piece by piece, as the corpus has it (before any insertion).

    Args:
        order: of the corpus.
        corpus: its directory.
        tokenizer: its tokenizer.
        positions: of the windows.
    """
    found = []
    index, documents = order.dataset.sample_index, order.dataset.document_index
    for position in positions:
        sample = int(order.dataset.shuffle_index[position])
        first = int(index[sample][0])
        window = order.window(position)
        splits, starts = order.boundaries(np.array([position]))
        edges = [0, *starts[: splits[1]].tolist(), len(window)]
        # A document that begins with the window's last token, which the next window predicts from, is listed, too.
        for number, (start, stop) in enumerate(pairwise(edges)):
            if stop > start:
                text = tokenizer.decode(window[start:stop])
                found.append((position, start, int(documents[first + number]), text))
    rows = _rows(corpus, sorted({document for _, _, document, _ in found}))
    return [Piece(p, offset, document, *rows[document], text) for p, offset, document, text in found]


def _rows(corpus: Path, documents: list[int]) -> dict[int, tuple[str, str]]:
    """Document -> (source, row); only the row groups that hold them are read."""
    result = {}
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
