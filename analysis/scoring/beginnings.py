"""The beginning-of-text token of a tokenizer, and the choice of the texts that are read after it."""

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
    """Beginning-of-text token."""

    id: int
    """Id of the token."""
    text: str
    """Its text, such as ``<s>``."""
    added: bool
    """True if the tokenizer itself puts the token before every text (Llama, Gemma), False if not (GPT-2, Pythia)."""

    def reading(self, bos: str, long_texts: str) -> Reading:
        """Reading options, checked.

        Args:
            bos: ``always``: prompts are read after the beginning-of-text token; ``never``: prompts are read without it;
                ``auto``: prompts are read after it only if the tokenizer adds it itself, as in ``lm_eval``.
            long_texts: treatment of texts longer than the model's positions: ``refuse`` (an error) or ``truncate`` (on
                the left).

        Raises:
            UserError: if a value is not one of these.
        """
        for name, value, known in (("bos", bos, BOS), ("long_texts", long_texts, LONG_TEXTS)):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown{nearest(value, known)}")
        alone = bos == "always" or (bos == "auto" and self.added)
        return Reading(bos=alone, truncate=long_texts == "truncate")

    def line(self, reading: Reading) -> str:
        """Line for the user that names the beginning-of-text token and its use."""
        prompts = "prompts, too" if reading.bos else "prompts do not, and their first token is not predicted"
        return f"texts begin with {self.text!r} (id {self.id}); {prompts}"


def of_run(tokenizer: Tokenizer) -> Beginning:
    """The token before every text of a run trained here: the end-of-document token, which ends the preceding
    document.
    """
    whole, bare = (tokenizer.backend.encode("a", add_special_tokens=add).ids for add in (True, False))
    text = str(tokenizer.backend.id_to_token(tokenizer.eod))
    return Beginning(id=tokenizer.eod, text=text, added=_front(whole, bare))


def of_released(model: str, config: Any, *, revision: str | None = None) -> Beginning:
    """The beginning-of-text token of a released model.

    The first that exists of: the token that the tokenizer puts before a text; the tokenizer's beginning-of-text token;
    its end-of-text token; the beginning-of-text or end-of-text token in the model's configuration.

    Args:
        model: directory, or name on the hub.
        config: the model's configuration.
        revision: revision of the model on the hub.

    Raises:
        UserError: if neither the tokenizer nor the configuration has such a token, or ``transformers`` cannot open the
            tokenizer.
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
    candidates = [whole[0] if added else None, words.bos_token_id, words.eos_token_id]
    candidates += [getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)]
    first = next((one for one in candidates if one is not None), None)
    if isinstance(first, (list, tuple)):
        first = first[0]
    if not isinstance(first, int):
        raise UserError(
            f"{model} has no beginning-of-text token; set bos_token_id or eos_token_id in its config.json"
        )
    return Beginning(id=first, text=str(words.convert_ids_to_tokens(first)), added=added)


def _front(whole: list[int], bare: list[int]) -> bool:
    """True if the tokenizer put special tokens before a text."""
    return len(whole) > len(bare) and whole[:1] != bare[:1]
