"""Conversion of text to token ids and back: a thin wrapper around ``tokenizers``, for a tokenizer trained here or an
existing one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from palimpsest.data.artifact import file_digest
from palimpsest.data.errors import UserError, nearest

FILE = "tokenizer.json"
DEFAULT_EOD = "<|endoftext|>"
_KINDS = ("train", "file", "hub")
_SMALLEST = 257  # the 256 bytes and the end-of-document token
_LARGEST = 1 << 24  # ids; beyond, an id is a mistake, and what is as large as the vocabulary takes all memory


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Settings of the tokenizer: trained here, or from a file."""

    kind: str = "train"
    """Origin of the tokenizer: ``train`` on the corpus, a ``file``, or a name on the Hugging Face ``hub``."""
    vocab_size: int = 4096
    """Number of ids to train for, the end-of-document token included; ``train`` only."""
    train_megabytes: int = 512
    """Largest amount of training text, MB; from more text, documents are drawn by a hash."""
    path: str | None = None
    """``tokenizer.json``, or a directory holding one; ``file`` only."""
    name: str | None = None
    """Repository such as ``gpt2``; ``hub`` only."""
    eod: str = DEFAULT_EOD
    """The special token that ends each document."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UserError(f"corpus.tokenizer.kind={self.kind!r} is unknown{nearest(self.kind, _KINDS)}")
        if self.kind == "train" and self.vocab_size < _SMALLEST:
            raise UserError(
                f"corpus.tokenizer.vocab_size={self.vocab_size} is too small; a byte-level vocabulary "
                f"needs {_SMALLEST}"
            )
        if self.train_megabytes < 1:
            raise UserError(
                f"corpus.tokenizer.train_megabytes={self.train_megabytes} is too small; give at least 1"
            )
        for field, value, kind in (("path", self.path, "file"), ("name", self.name, "hub")):
            if self.kind == kind and not value:
                raise UserError(
                    f"corpus.tokenizer.{field}={value!r} is empty; corpus.tokenizer.kind={kind} needs it"
                )
            if self.kind != kind and value is not None:
                raise UserError(
                    f"corpus.tokenizer.{field}={value!r} has no effect with corpus.tokenizer.kind={self.kind}; set "
                    f"corpus.tokenizer.kind={kind} or remove corpus.tokenizer.{field}"
                )
        if not self.eod:
            raise UserError("corpus.tokenizer.eod='' is empty; name the special token that ends a document")


class Tokenizer:
    """Tokenizer that adds no special tokens, and whose text never becomes one.

    The text ``<|endoftext|>`` inside a document becomes ordinary tokens, so the end-of-document id appears
    in a corpus at document ends only. Truncation, padding and BPE dropout stored in a ``tokenizer.json`` are
    switched off: the first two would change documents in silence, the last would encode a text anew each time.

    Args:
        backend: the tokenizer; its truncation, padding and special-token settings are changed in place.
        eod: text of the end-of-document token.

    Raises:
        UserError: if the tokenizer has no such token, or an id that no vocabulary has.
    """

    vocab_size: int
    """Largest id + 1, added tokens included."""
    eod: int
    """Id of the end-of-document token."""
    digest: str
    """128-bit BLAKE2b (hex) of the text that ``save`` writes: ``file_digest`` of the saved file."""
    backend: tokenizers.Tokenizer
    """The library's encoder; its settings must stay as they are."""

    def __init__(self, backend: tokenizers.Tokenizer, eod: str = DEFAULT_EOD) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.vocab_size > _LARGEST:
            raise UserError(
                f"the tokenizer has a token with id {self.vocab_size - 1}; ids above {_LARGEST - 1} are not "
                "supported: number its tokens from 0 without gaps"
            )
        eod_id = backend.token_to_id(eod)
        if eod_id is None:
            special = [t.content for _, t in sorted(backend.get_added_tokens_decoder().items()) if t.special]
            known = ", ".join(special) if special else "none"
            raise UserError(
                f"corpus.tokenizer.eod={eod!r} is not in the tokenizer; its special tokens: {known}"
            )
        self.backend = backend
        self._text = backend.to_str(pretty=True)
        self.eod = int(eod_id)
        self._whole: tokenizers.Tokenizer | None = None
        self.digest = hashlib.blake2b(self._text.encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Ids of a text, int32 (tokens,).

        Raises:
            UserError: if the text holds a lone surrogate, which no UTF-8 can express.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of each text, int32 (tokens,), on all cores.

        Raises:
            UserError: naming the first text that holds a lone surrogate.
        """
        return [np.array(ids, dtype=np.int32) for ids in self._ids(texts)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Concatenated ids of all texts, int32 (T,), and number of tokens of each, int64 (D,).

        Raises:
            UserError: naming the first text that holds a lone surrogate.
        """
        ids = self._ids(texts)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        return np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum())), lengths

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            _refuse_surrogates(texts)
            raise
        return [encoding.ids for encoding in encodings]

    def encode_offsets(self, text: str) -> tuple[npt.NDArray[np.int32], list[tuple[int, int]]]:
        """Ids of a text, int32 (tokens,), and the character range ``[start, end)`` of each token.

        Tokens that share one character (its UTF-8 bytes split between them) all carry that character's
        range. The space that a token begins with is in its range, also where the ``tokenizer.json`` says to trim
        offsets (Pythia, GPT-NeoX, OLMo); spaces that are in no token (WordPiece) are in no range.

        Raises:
            UserError: if the text holds a lone surrogate.
        """
        try:
            encoding = self._untrimmed().encode(text, add_special_tokens=False)
        except TypeError:
            _refuse_surrogates([text])
            raise
        return np.array(encoding.ids, dtype=np.int32), list(encoding.offsets)

    def _untrimmed(self) -> tokenizers.Tokenizer:
        """The tokenizer as ``save`` writes it, except that offsets are not trimmed.

        Raises:
            UserError: if the written file could not be loaded again, such as merges of missing tokens.
        """
        if self._whole is None:
            try:
                whole = tokenizers.Tokenizer.from_str(self._text)
            except Exception as error:  # tokenizers raises bare Exception
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"the tokenizer is inconsistent ({reason}); save it again") from error
            # Offsets are trimmed by the post-processor alone, which does nothing else without special tokens.
            whole.encode_special_tokens = True
            whole.post_processor = processors.ByteLevel(trim_offsets=False)
            self._whole = whole
        return self._whole

    def decode(self, ids: Iterable[int] | npt.NDArray[np.integer]) -> str:
        """Text of the ids, special tokens included; bytes that are no UTF-8 become U+FFFD.

        Raises:
            UserError: if an id is outside the vocabulary.
        """
        values = np.fromiter(ids, dtype=np.int64)
        outside = values[(values < 0) | (values >= self.vocab_size)]
        if len(outside):
            raise UserError(f"id {outside[0]} is outside the vocabulary of {self.vocab_size} ids")
        return str(self.backend.decode(values.tolist(), skip_special_tokens=False))

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``; equal tokenizers give equal bytes."""
        path.write_text(self._text, encoding="utf-8", newline="\n")


def train(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train a byte-level BPE tokenizer, which can encode any text and decode it unchanged.

    The same texts in any order give the same tokenizer, on any number of threads. Too few texts for
    ``config.vocab_size`` give a smaller vocabulary.

    Args:
        texts: training texts.
        config: settings of kind ``train``.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[config.eod],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # a set in random order
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer)
    return Tokenizer(backend, config.eod)


def load(path_or_name: str | Path, eod: str = DEFAULT_EOD) -> Tokenizer:
    """Load a tokenizer from a file, a directory, or by its name on the Hugging Face hub.

    Args:
        path_or_name: ``tokenizer.json``, a directory holding one, or a hub name; what exists as a path, is a
            ``Path``, or looks like one (``./x``, ``x.json``) is a path.
        eod: text of the end-of-document token.

    Raises:
        UserError: if it is missing, unreachable, malformed, or has no such token.
    """
    path = _as_path(path_or_name)
    if path is None:
        return _from_hub(str(path_or_name), eod)
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"corpus.tokenizer.path={str(path_or_name)!r}: {path} does not exist; give a {FILE}"
        ) from None
    except BaseException as error:  # tokenizers raises bare Exception, and where it panics not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a {FILE} ({reason}); save the tokenizer again") from error
    tokenizer = Tokenizer(backend, eod)
    tokenizer._untrimmed()  # checks that the corpus's copy of it can be loaded
    return tokenizer


def build(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of ``config``, trained on ``texts`` if its kind is ``train``."""
    if config.kind == "train":
        return train(texts, config)
    return load(Path(config.path) if config.path else str(config.name), config.eod)


def inputs(config: TokenizerConfig) -> dict[str, str]:
    """Digest of the tokenizer file if the settings name one: ``{"tokenizer": digest}``.

    Raises:
        UserError: if the file is missing.
    """
    path = _as_path(Path(config.path)) if config.path else None
    if path is None:
        return {}
    if not path.is_file():
        raise UserError(f"corpus.tokenizer.path={config.path!r}: {path} does not exist; give a {FILE}")
    return {"tokenizer": file_digest(path)}


def _as_path(path_or_name: str | Path) -> Path | None:
    path = Path(path_or_name)
    if path.is_dir():
        return path / FILE
    looks_like_one = isinstance(path_or_name, Path) or str(path_or_name).startswith((".", "/", "~"))
    return path if looks_like_one or path.suffix == ".json" or path.exists() else None


def _from_hub(name: str, eod: str) -> Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_pretrained(name)
    except Exception as error:  # network, hub and tokenizers errors share no narrower class
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"corpus.tokenizer.name={name!r} could not be loaded from the Hugging Face hub ({reason}); check the "
            f"name and the network, or download its {FILE} and set corpus.tokenizer.kind=file"
        ) from error
    return Tokenizer(backend, eod)


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"text {number} holds a lone surrogate at character {error.start}, which has no "
                "UTF-8; remove it"
            ) from None
