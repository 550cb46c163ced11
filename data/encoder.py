"""Fast encoding of many texts: by ``gigatoken`` where it gives the same ids as ``tokenizers``, otherwise by
``tokenizers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from palimpsest.data.tokenizer import Tokenizer

SAMPLE_CHARACTERS = 1 << 19
"""Approximate amount of a corpus's text on which both libraries are compared before ``gigatoken`` is used."""
_PROBES = (
    "\x00\x01\x7f \u200b\ufeff\u00a0\u2028",
    "é é \u0301 日本語 텍스트 नमस्ते العربية \U0001f600\U0001f1e9\U0001f1ea",
    "\r\n\r\n  x\t\ty   \n\n\n z  ",
    "I'll WE'VE don’t 12345678 3.14159 __init__(self) -> None: // http://a.b/c?d=e&f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 4,
)
"""Test texts on which pre-tokenizers are known to differ."""

Flat = tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.int64]]


class Encoder:
    """Encoder of batches of texts by one of the two libraries; text never becomes a special token.

    Args:
        tokenizer: the tokenizer.
        library: ``gigatoken`` or ``tokenizers``, from ``choose``.
    """

    def __init__(self, tokenizer: Tokenizer, library: str) -> None:
        self._tokenizer = tokenizer
        self._fast = _gigatoken(tokenizer) if library == "gigatoken" else None
        self.library = library

    def encode(self, texts: Sequence[str]) -> Flat:
        """Concatenated ids of all texts, (T,), and number of tokens of each, int64 (D,).

        Raises:
            UserError: naming the first text that holds a lone surrogate.
        """
        if not texts:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
        if self._fast is None:
            return self._tokenizer.encode_flat(texts)
        layout = self._fast.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)


def choose(tokenizer: Tokenizer, sample: Sequence[str]) -> tuple[str, str]:
    """Choose the library to encode a corpus with.

    Args:
        tokenizer: the tokenizer.
        sample: texts of the corpus that both libraries encode.

    Returns:
        ``gigatoken`` or ``tokenizers``, and the reason.
    """
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    try:
        fast = Encoder(tokenizer, "gigatoken")
    except ImportError:
        return "tokenizers", "gigatoken is not installed"
    except Exception as error:  # noqa: BLE001  gigatoken raises what it likes for tokenizers that it does not know
        return "tokenizers", f"gigatoken does not load it: {' '.join(str(error).split())[:120]}"
    problem = disagreement(fast, tokenizer, [*sample, *_PROBES, *(f"a{text}b {text}" for text in special)])
    if problem is not None:
        return "tokenizers", problem
    return "gigatoken", f"same ids as tokenizers on a sample of {len(sample)} documents"


def disagreement(fast: Encoder, tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """Reason not to use a fast encoder, as text: it fails on the sample, or gives other ids than the tokenizer; else
    None.

    Args:
        fast: encoder under test.
        tokenizer: whose ids are right, without special tokens.
        texts: the sample.
    """
    try:
        ids, lengths = fast.encode(texts)
    except Exception as error:  # noqa: BLE001  a library that fails on a sample is not used, and the manifest says so
        return f"gigatoken failed on the sample: {' '.join(str(error).split())[:120]}"
    wanted, theirs = tokenizer.encode_flat(texts)
    same = np.array_equal(lengths, theirs) and np.array_equal(ids, wanted)
    return None if same else "gigatoken gave other ids on the sample"


def version(library: str) -> str:
    """Name and version of the library, such as ``gigatoken 0.10.0``."""
    return f"{library} {metadata.version(library)}"


def sample(texts: Sequence[Sequence[str]], characters: int = SAMPLE_CHARACTERS) -> list[str]:
    """First texts of several groups of texts, up to a total number of characters."""
    room = characters // max(len(texts), 1)
    chosen: list[list[str]] = []
    for run in texts:
        left = room
        taken: list[str] = []
        for text in run:
            if (left := left - len(text)) < 0 and taken:
                break
            taken.append(text)
        chosen.append(taken)
    return list(chain.from_iterable(chosen))


def _gigatoken(tokenizer: Tokenizer) -> Any:
    import gigatoken

    settings = orjson.loads(tokenizer.backend.to_str())
    # Text that spells a special token is text; gigatoken has no switch for it, so it is not told of them.
    settings["added_tokens"] = [token for token in settings["added_tokens"] if not token["special"]]
    return gigatoken.Tokenizer.from_json(orjson.dumps(settings).decode())
