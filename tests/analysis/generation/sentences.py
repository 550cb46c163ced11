"""A sentence-embedding model for tests: each word a unit vector at right angles to the others, and their mean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_model(place: Path, words: Sequence[str]) -> None:
    """Write a model of ``sentence-transformers`` that embeds texts of these words; other words are left out."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, **{word: 1 + n for n, word in enumerate(words)}}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.concatenate([np.zeros((1, len(words))), np.eye(len(words))]).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], device="cpu").save(
        str(place)
    )
