"""The token that a text begins with, which is the tokenizer's word, and the texts that are read after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from palimpsest.analysis.scoring.token_statistics import Reading
from palimpsest.data.errors import UserError, nearest
from palimpsest.data.tokenizer import Tokenizer

BOS = ("auto", "always", "never")
LONG_TEXTS = ("refuse", "truncate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """The token that texts begin with."""

    id: int
    """Id of the token."""
    text: str
    """Its text, such as ``<s>``."""
    added: bool
    """True if the tokenizer itself puts it before every text (Llama, Gemma), False if it does not (GPT-2, Pythia)."""

    def reading(self, bos: str, long_texts: str) -> Reading:
        """Options of reading texts, checked.

        Args:
            bos: ``always`` after the token; ``never`` prompts without it; ``auto`` prompts after it where the tokenizer
                puts it there itself, as ``lm_eval`` does.
            long_texts: ``refuse`` those that the model has not enough positions for, or ``truncate`` them on the left.

        Raises:
            UserError: if one is none of these words.
        """
        for name, value, known in (("bos", bos, BOS), ("long_texts", long_texts, LONG_TEXTS)):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown{nearest(value, known)}")
        alone = bos == "always" or (bos == "auto" and self.added)
        return Reading(bos=alone, truncate=long_texts == "truncate")

    def line(self, reading: Reading) -> str:
        """Line for the user that says what texts begin with."""
        prompts = "prompts, too" if reading.bos else "prompts do not, and their first token is not predicted"
        return f"texts begin with {self.text!r} (id {self.id}); {prompts}"


def of_run(tokenizer: Tokenizer) -> Beginning:
    """The token that texts of a run's corpus begin with: the one that ended the document before."""
    whole, bare = (tokenizer.backend.encode("a", add_special_tokens=add).ids for add in (True, False))
    text = str(tokenizer.backend.id_to_token(tokenizer.eod))
    return Beginning(id=tokenizer.eod, text=text, added=_front(whole, bare))


def of_released(model: str, config: Any, *, revision: str | None = None) -> Beginning:
    """The token that texts begin with for a released model.

    The one that its tokenizer puts before a text; otherwise the one that it names as the beginning of a text, or as its
    end; only if its tokenizer names none, the one in the model's configuration.

    Args:
        model: directory, or name on the hub.
        config: the model's configuration.
        revision: of the model on the hub.

    Raises:
        UserError: if neither names one, or ``transformers`` cannot open the tokenizer.
    """
    from transformers import AutoTokenizer

    named = {} if revision is None else {"revision": revision}
    try:
        words = AutoTokenizer.from_pretrained(model, trust_remote_code=False, **named)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"transformers cannot open the tokenizer of {model}: {' '.join(str(error).split())[:300]}"
        ) from None
    whole, bare = (words("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    added = _front(whole, bare)
    found = [whole[0] if added else None, words.bos_token_id, words.eos_token_id]
    found += [getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)]
    first = next((one for one in found if one is not None), None)
    if isinstance(first, (list, tuple)):
        first = first[0]
    if not isinstance(first, int):
        raise UserError(f"{model} names no token that begins a text (bos_token_id or eos_token_id)")
    return Beginning(id=first, text=str(words.convert_ids_to_tokens(first)), added=added)


def _front(whole: list[int], bare: list[int]) -> bool:
    """True if special tokens were put before a text."""
    return len(whole) > len(bare) and whole[:1] != bare[:1]
