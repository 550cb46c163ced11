"""Similarity in meaning of two texts, by the embeddings of a model of ``sentence-transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError


def load(name: str) -> Any:
    """The ``SentenceTransformer`` of a name on the hub or of a directory, on the CPU.

    Raises:
        UserError: if ``sentence-transformers`` is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"generate.embeddings={name} needs the package sentence-transformers; pip install -e '.[semantic]'"
        ) from None
    try:
        return SentenceTransformer(name, device="cpu")
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"generate.embeddings={name}: no sentence-embedding model could be read ({reason}); give the directory of "
            "one, or a name on the hub such as sentence-transformers/all-MiniLM-L6-v2"
        ) from None


def similarity(model: Any, texts: Sequence[str], others: Sequence[str]) -> npt.NDArray[np.float64]:
    """(N,) cosine similarities of the embeddings of paired texts, in [-1, 1].

    Args:
        model: a ``SentenceTransformer``; what is longer than its window is cut off.
        texts: N texts.
        others: N texts. Equal texts are embedded once.
    """
    distinct = {text: row for row, text in enumerate(dict.fromkeys([*texts, *others]))}
    embedded: npt.NDArray[np.float64] = model.encode(
        list(distinct), normalize_embeddings=True, show_progress_bar=False
    ).astype(np.float64)
    rows = [[distinct[text] for text in side] for side in (texts, others)]
    cosines: npt.NDArray[np.float64] = np.einsum("nd,nd->n", *(embedded[side] for side in rows))
    return np.clip(cosines, -1, 1)
