"""Near-duplicates: wordings in which a share of an item's words is replaced, another draw for each exposure.

The fuzzy duplicates of Shilov et al., 2024 (Mosaic Memory), which replace tokens; words are replaced here, so that
every wording is text that the tokenizer turns into the tokens that were planned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion.arms import Arm
from palimpsest.insertion.items import WORDING_SCHEMA, span_hash

_WORD = re.compile(r"\S+")


def with_variants(
    items: pl.DataFrame,
    wordings: pl.DataFrame,
    arms: Sequence[Arm],
    tokenizer: Tokenizer,
    *,
    seed: int,
    longest: int,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables in which every item of an arm with ``wording=fuzzy:P`` has one more wording for each exposure.

    Replacements are words of the family's items, of as many tokens as the word they replace where there are such. They
    depend on the seed and the item's name alone.

    Args:
        items: ``items.ITEM_SCHEMA``.
        wordings: ``items.WORDING_SCHEMA``.
        arms: arm of each item.
        tokenizer: the corpus's.
        seed: of the draws.
        longest: most tokens that a wording may have.

    Raises:
        UserError: for an item of a single word, or a wording that became too long.
    """
    chosen = [row for row, arm in enumerate(arms) if arm.replaced and arm.dose]
    if not chosen:
        return items, wordings
    sizes, pools = _words(items, tokenizer)
    owner, text = [], []
    for row in chosen:
        name, family, original = (
            items.row(row, named=True)["item_id"],
            items["family"][row],
            items["text"][row],
        )
        rng = np.random.default_rng([seed, 7, xxhash.xxh3_64_intdigest(name.encode())])
        drawn = _draws(original, arms[row], sizes, pools[family], rng)
        if drawn is None:
            raise UserError(
                f"insertion.wording={arms[row].wording}: item {name} has fewer than two words, or its family has; "
                "give it a longer text, or use verbatim"
            )
        owner += [row] * len(drawn)
        text += drawn
    tokens = [ids.tolist() for ids in tokenizer.encode_batch(text)]
    worst = int(np.argmax([len(ids) for ids in tokens]))
    if len(tokens[worst]) > longest:
        raise UserError(
            f"insertion.wording={arms[owner[worst]].wording}: a wording of item {items['item_id'][owner[worst]]} has "
            f"{len(tokens[worst])} tokens, and a window takes {longest}; shorten the item or raise "
            "train.sequence_length"
        )
    first = np.searchsorted(owner, owner)
    own = items["wordings"].to_numpy()
    added = pl.DataFrame(
        {
            "item": owner,
            "wording": own[owner] + np.arange(len(owner)) - first,
            "text": text,
            "tokens": tokens,
            "hash": [span_hash(np.array(ids, dtype=np.int32)) for ids in tokens],
        },
        schema=WORDING_SCHEMA,
    )
    counts = own + np.bincount(owner, minlength=len(own))
    return (
        items.with_columns(pl.Series("wordings", counts, dtype=items.schema["wordings"])),
        pl.concat([wordings, added]).sort("item", "wording"),
    )


def _words(
    items: pl.DataFrame, tokenizer: Tokenizer
) -> tuple[dict[str, int], dict[str, dict[int, list[str]]]]:
    """Number of tokens of every word, and each family's words by that number."""
    of_family = {
        family: sorted({word for text in part["text"] for word in _WORD.findall(text)})
        for (family,), part in items.group_by("family", maintain_order=True)
    }
    words = sorted(set().union(*of_family.values()))
    sizes = dict(zip(words, map(len, tokenizer.encode_batch([f" {word}" for word in words])), strict=True))
    pools: dict[str, dict[int, list[str]]] = {}
    for family, own in of_family.items():
        pools[family] = {}
        for word in own:
            pools[family].setdefault(sizes[word], []).append(word)
    return sizes, pools


def _draws(
    text: str,
    arm: Arm,
    sizes: dict[str, int],
    pool: dict[int, list[str]],
    rng: np.random.Generator,
) -> list[str] | None:
    """One text an exposure; None if there are too few words."""
    spans = [match.span() for match in _WORD.finditer(text)]
    everything = [word for words in pool.values() for word in words]
    if len(spans) < 2 or len(everything) < 2:
        return None
    texts = []
    for _ in range(arm.dose):
        count = max(1, round(len(spans) * arm.replaced / 100))
        pieces, end = [], 0
        for start, stop in sorted(spans[at] for at in rng.permutation(len(spans))[:count]):
            pieces += [text[end:start], _other(text[start:stop], sizes, pool, everything, rng)]
            end = stop
        texts.append("".join([*pieces, text[end:]]))
    return texts


def _other(
    word: str,
    sizes: dict[str, int],
    pool: dict[int, list[str]],
    everything: list[str],
    rng: np.random.Generator,
) -> str:
    alike = pool[sizes[word]] if len(pool[sizes[word]]) > 1 else everything
    at = int(rng.integers(len(alike) - 1))
    return alike[at] if alike[at] != word else alike[-1]


def rows(arm: Arm, first: npt.NDArray[np.int64], wordings: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rows of the wordings table that the items of a fuzzy arm read, (items x dose) flattened: the last ones of each.

    Args:
        arm: with ``wording=fuzzy:P``.
        first: row of each item's first wording.
        wordings: number of each item's wordings.
    """
    return ((first + wordings)[:, None] - arm.dose + np.arange(arm.dose)).ravel()
