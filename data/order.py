"""The window at a position: megatron-core's own order of a tokenized corpus.

Positions are *sample indices*: window ``p`` is consumed in step ``p // global_batch_size``. The order is that of
one epoch, so it depends on the documents, their lengths, the sequence length and the seed, never on how long a
run is or how large its batches are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import shutil
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from palimpsest.data import megatron_core
from palimpsest.data.artifact import (
    draft_directory,
    full_disk_named,
    json_digest,
    remove_abandoned,
    write_json,
)
from palimpsest.data.errors import UserError
from palimpsest.data.tokens import check

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _TokenizerFacts:
    """Stand-in for a tokenizer, with the attributes that megatron-core's datasets read."""

    vocab_size: int
    eod: int
    digest: str
    pad: int = -1
    """Padding id that no token has: a corpus holds no padding, and megatron-core would rewrite pad tokens and mask
    their loss."""

    @property
    def unique_identifiers(self) -> OrderedDict[str, Any]:
        return OrderedDict(digest=self.digest)


_DIGESTS = "digests.json"
_ARRAYS = 3
"""Index arrays that megatron-core stores: of documents, of samples, and their shuffle."""


def _arrays_digest(dataset: Any) -> str:
    """XXH3-128 of a dataset's document, sample and shuffle index."""
    digest = xxhash.xxh3_128()
    for array in (dataset.document_index, dataset.sample_index, dataset.shuffle_index):
        flat = array.reshape(-1)
        for start in range(0, len(flat), 1 << 24):
            digest.update(np.ascontiguousarray(flat[start : start + (1 << 24)]).data)
    return digest.hexdigest()


class Order:
    """The windows of a corpus in training order, read through megatron-core's ``GPTDataset``.

    Args:
        corpus: directory of a prepared corpus (``train.bin``, ``train.idx``).
        corpus_digest: digest of its manifest.
        vocab_size: size of its tokenizer's vocabulary.
        eod: id of the end-of-document token.
        sequence_length: L; a window holds L + 1 tokens.
        seed: seed of the shuffles.
        build: build the index arrays if they do not exist.

    Raises:
        UserError: if the token files are damaged, or too small for one window, or the order is not built.
    """

    claim = ("the order of the windows is megatron-core's", "index arrays rebuilt and compared")
    """Name of the audit's check of the order, and its evidence."""

    def __init__(
        self,
        corpus: Path,
        *,
        corpus_digest: str,
        vocab_size: int,
        eod: int,
        sequence_length: int,
        seed: int,
        build: bool = True,
    ) -> None:
        self.sequence_length = sequence_length
        self.seed = seed
        self.eod = eod
        self.corpus_digest = corpus_digest
        self.prefix = prefix = corpus / "train"
        check(prefix, vocab_size)
        self._facts = _TokenizerFacts(vocab_size, eod, corpus_digest)
        # megatron-core writes its three index arrays one after the other: build them aside and rename, so that
        # a killed build is never taken for a finished one. They live inside the corpus and vanish with it. Its own
        # name for them depends on the corpus's path, so the directory's does too.
        place = blake2b(str(prefix.resolve()).encode(), digest_size=4).hexdigest()
        cache = corpus / "order" / f"length{sequence_length}-seed{seed}-{place}"
        if not cache.is_dir():
            if not build:
                raise UserError(
                    f"the order {cache} is not built, and training on several nodes does not build it (all would at "
                    "once, on GPUs that wait); run launch/prepare.py with index=true first"
                )
            self._make(cache)
        self._arrays: str
        try:
            self.dataset, self._arrays = self._open(cache)
        except (OSError, ValueError, LookupError, TypeError, EOFError) as error:
            if not build:
                raise UserError(
                    f"the order {cache} is damaged ({error}); run launch/prepare.py with index=true again"
                ) from None
            log.warning("the order %s is damaged (%s) and is built again", cache, error)
            shutil.rmtree(cache)  # whoever reads it has mapped its files, and keeps them
            self._make(cache)
            self.dataset, self._arrays = self._open(cache)
        if len(self.dataset) < 1:
            raise UserError(
                f"corpus {corpus} is too small for one window of train.sequence_length={sequence_length}; "
                "give more text or a shorter sequence length"
            )

    def _open(self, cache: Path) -> tuple[Any, str]:
        """The built data set, and the digest of its arrays recorded when they were built."""
        stored = json.loads((cache / _DIGESTS).read_text(encoding="utf-8"))["arrays"]
        if len(list(cache.glob("*.npy"))) < _ARRAYS:
            raise FileNotFoundError("an index array is missing")
        return self._build(self.prefix, self._facts, cache), str(stored)

    def _make(self, cache: Path) -> None:
        """Build the index arrays in a temporary directory and rename it, after removing those of killed builds."""
        cache.parent.mkdir(exist_ok=True)
        remove_abandoned(cache.parent)
        for left in cache.parent.glob(".building-*"):  # by earlier versions, whose names told no process
            shutil.rmtree(left, ignore_errors=True)
        aside = draft_directory(cache)
        try:
            with full_disk_named(cache):
                built = self._build(self.prefix, self._facts, aside)
                write_json(aside / _DIGESTS, {"arrays": _arrays_digest(built)})
                del built
            aside.chmod(0o755)
            with contextlib.suppress(OSError):  # another process was faster; its arrays are the same
                aside.rename(cache)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _build(self, prefix: Path, tokenizer: _TokenizerFacts, cache: Path) -> Any:
        megatron_core.make_importable()
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.utils import Split

        config = GPTDatasetConfig(
            random_seed=self.seed,
            sequence_length=self.sequence_length,
            blend=([str(prefix)], None),
            split="1,0,0",
            path_to_cache=str(cache),
            tokenizer=tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            mid_level_dataset_surplus=0.0,
        )
        low_level = GPTDataset.build_low_level_dataset(str(prefix), config)
        documents = np.arange(GPTDataset.numel_low_level_dataset(low_level), dtype=np.int32)
        # No number of samples: exactly one epoch, whatever the run's length.
        return GPTDataset(low_level, str(prefix), documents, None, Split.train, config)

    def __len__(self) -> int:
        """Windows in the epoch."""
        return len(self.dataset)

    @property
    def identity(self) -> str:
        """Digest of everything that the order depends on."""
        return json_digest([self.corpus_digest, self.sequence_length, self.seed, "one epoch", self._arrays])

    @property
    def prefixes(self) -> list[Path]:
        """The token files, without their endings."""
        return [self.prefix]

    def locate(self, position: int) -> tuple[int, Order, int]:
        """Index of the corpus at a position, the corpus's order, and the position in that order (see ``Mixture``)."""
        return 0, self, position

    def verify(self) -> list[str]:
        """Compare the index arrays with those that megatron-core builds from this corpus now.

        Returns:
            Faults, one line each; empty if there are none.
        """
        wrong = []
        if _arrays_digest(self.dataset) != self._arrays:
            wrong.append("the index arrays were changed since they were built")
        with tempfile.TemporaryDirectory() as place:
            if _arrays_digest(self._build(self.prefix, self._facts, Path(place))) != self._arrays:
                wrong.append("megatron-core builds other index arrays of this corpus now")
        return wrong

    def require(self, windows: int) -> None:
        """Check that a run stays inside the epoch.

        Raises:
            UserError: if it does not.
        """
        if windows > len(self):
            raise UserError(
                f"the run needs {windows:,} windows but one epoch of the corpus has {len(self):,}; lower "
                "train.steps or train.global_batch_size, prepare more text, or read it again in another order "
                f"(mixture.epochs={-(-windows // max(1, len(self)))} fits)"
            )

    def window(self, position: int) -> npt.NDArray[np.int64]:
        """The corpus window at a position, before any overlay: (L + 1,) int64."""
        sample = self.dataset[position]
        tokens = sample["tokens"].numpy()
        window = np.empty(len(tokens) + 1, dtype=np.int64)
        window[:-1] = tokens
        window[-1] = sample["labels"].numpy()[-1]
        return window

    def documents(self, position: int) -> list[tuple[int, int, int]]:
        """The documents of a window: (number of the document in the corpus, its first token in the window, end)."""
        splits, starts = self.boundaries(np.array([position]))
        sample = int(self.dataset.shuffle_index[position])
        first = int(self.dataset.sample_index[sample][0])
        edges = [0, *starts[: splits[-1]].tolist(), self.sequence_length + 1]
        numbers = self.dataset.document_index[first : first + len(edges) - 1].tolist()
        return list(zip(numbers, edges[:-1], edges[1:], strict=True))

    def boundaries(
        self, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Document starts inside windows, from the index arrays alone (no token is read).

        Args:
            positions: (N,) sample indices.

        Returns:
            ``splits`` (N + 1,) and ``offsets`` (splits[-1],): window i's documents start at the token offsets
            ``offsets[splits[i]:splits[i + 1]]``, ascending, each in 1..L. A document that starts at offset 0
            is not listed: nothing precedes it in the window.
        """
        arrays = (
            self.dataset.shuffle_index,
            self.dataset.sample_index,
            self.dataset.document_index,
            self.dataset.dataset.sequence_lengths,
        )
        return document_starts(positions, *arrays)


def document_starts(
    positions: npt.NDArray[np.int64],
    shuffle_index: npt.NDArray[np.uint32],
    sample_index: npt.NDArray[np.int32],
    document_index: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Document starts inside windows; see ``Order.boundaries``.

    The indices of a 500B-token corpus have many gigabytes. They are read in ascending order, in parts, and the pages
    are released in between; random reads would load a page for every number.

    Args:
        positions: (N,) sample indices.
        shuffle_index: (S,) position -> sample.
        sample_index: (S + 1, 2) sample -> entry of the document index, offset in that document.
        document_index: (D,) -> document.
        lengths: (documents,) tokens of each document.
    """
    samples = _take(shuffle_index, positions).astype(np.int64)
    first, first_offset = _take(sample_index, samples).astype(np.int64).T
    counts = _take(sample_index, samples + 1)[:, 0].astype(np.int64) - first
    # Flat list of the documents first, first + 1, ..., last - 1 of every window: where each one *ends* is where the
    # next one starts.
    splits = np.concatenate([[0], np.cumsum(counts)])
    window = np.repeat(np.arange(len(positions)), counts)
    ordinal = np.arange(len(window)) - splits[window]
    own = _take(lengths, _take(document_index, first[window] + ordinal)).astype(np.int64)
    total = np.concatenate([[0], np.cumsum(own)])
    return splits, total[1:] - total[splits[window]] - first_offset[window]


_CHUNK = 1 << 16  # numbers read between two releases


def _take(array: npt.NDArray[Any], index: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
    """``array[index]`` of a mapped array, read in ascending order."""
    ranked = np.argsort(index, kind="stable")
    result = np.empty((len(index), *array.shape[1:]), dtype=array.dtype)
    for start in range(0, len(index), _CHUNK):
        chunk = ranked[start : start + _CHUNK]
        result[chunk] = array[index[chunk]]
        _release(array)
    return result


def _release(array: npt.NDArray[Any]) -> None:
    """Release the mapped pages of an array; they stay in the page cache."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        links = (getattr(base, name, None) for name in ("_mmap", "base", "obj"))
        base = next((link for link in links if link is not None), None)
    if base is not None:
        base.madvise(mmap.MADV_DONTNEED)
