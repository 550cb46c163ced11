"""Revisions of released models, in a directory or on the Hugging Face hub, as checkpoints to score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from palimpsest.analysis.scoring import beginnings, huggingface
from palimpsest.analysis.scoring.beginnings import Beginning
from palimpsest.analysis.scoring.models import Model
from palimpsest.data import tokenizer
from palimpsest.data.artifact import file_digest, json_digest
from palimpsest.data.errors import UserError

_WEIGHTS = ("*.safetensors", "*.bin", "config.json")
_NUMBER = re.compile(r"(?:step|iter|checkpoint|ckpt)[-_]?(\d+)|^(\d+)$", re.IGNORECASE)


def steps(revisions: Sequence[str], final: int | None) -> dict[int, str]:
    """Step -> revision, by ascending step; the empty string is the default revision.

    ``step1000:step5000:2000`` stands for step1000, step3000 and step5000. The step is the number after ``step`` in a
    revision's name (``stage1-step1000-tokens5B``), or the name itself.

    Args:
        revisions: value of the setting ``revisions``.
        final: step of a revision whose name contains none. If None, such a revision gets step 0, and no other revision
            may be given.

    Raises:
        UserError: for a malformed range, a revision of unknown step, or two revisions with the same step.
    """
    by_step: dict[int, str] = {}
    wanted = [one for revision in revisions for one in _expanded(revision)] or [""]
    for revision in wanted:
        number = _NUMBER.search(revision)
        step = int(number[1] or number[2]) if number else final
        if step is None and len(wanted) > 1:
            raise UserError(
                f"revisions: the step of {revision or 'the default one'!r} is unknown; give it as final_step=143000"
            )
        if by_step.setdefault(step or 0, revision) != revision:
            raise UserError(
                f"revisions: {by_step[step or 0]!r} and {revision!r} both have step {step}; give one of them"
            )
    return dict(sorted(by_step.items()))


def _expanded(revision: str) -> list[str]:
    if ":" not in revision:
        return [revision]
    parts = [re.fullmatch(r"(\D*)(\d+)(\D*)", part) for part in revision.split(":")]
    if len(parts) == 3 and all(parts):
        first, last, every = (part for part in parts if part is not None)
        if first.group(1, 3) == last.group(1, 3) and every.group(1, 3) == ("", "") and int(every[2]):
            numbers = range(int(first[2]), int(last[2]) + 1, int(every[2]))
            if numbers:
                return [f"{first[1]}{number}{first[3]}" for number in numbers]
    raise UserError(f"revisions: {revision!r} is no range; write it as step1000:step5000:1000")


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """A model at a revision, located but not loaded."""

    name: str
    """Directory or hub name that ``transformers`` opens."""
    revision: str | None
    digest: str
    """Digest of the weights for a directory; of name and commit for a model on the hub."""
    commit: str | None
    """On the hub."""
    words: tokenizer.Tokenizer
    beginning: Beginning
    """The token that texts begin with."""
    ends: tuple[int, ...]
    """Ids of the tokens that end a text."""
    vocabulary: int
    """Rows of the output matrix."""

    def load(self, device: torch.device, options: Mapping[str, Any]) -> Model:
        """The model; ``options`` as for :func:`analysis.scoring.huggingface.open_huggingface`."""
        named = {} if self.revision is None else {"revision": self.revision}
        return huggingface.open_huggingface(self.name, device, {**options, **named})


def locate(model: str, revision: str) -> Released:
    """Locate a model and read its configuration and tokenizer. Weights are not loaded; those of a directory are read
    for their digest.

    Args:
        model: directory, or name on the hub. A revision of a directory is a directory inside it.
        revision: branch, tag or commit; empty: the default one.

    Raises:
        UserError: if there is no such model or revision, or no tokenizer.json.
    """
    try:
        from transformers import AutoConfig
        from transformers.utils.hub import cached_file
    except ImportError:
        raise UserError(
            "the package transformers is not installed; pip install -e '.[huggingface]'"
        ) from None
    place = Path(model)
    if place.is_dir() and revision:
        place = place / revision
        if not place.is_dir():
            known = ", ".join(sorted(path.name for path in Path(model).iterdir() if path.is_dir())) or "none"
            raise UserError(
                f"{model} has no revision {revision} (a directory of that name); there are: {known}"
            )
    name, chosen = (str(place), None) if place.is_dir() else (model, revision or None)
    options = {} if chosen is None else {"revision": chosen}
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        words_at = cached_file(name, "tokenizer.json", **options)
    except (OSError, ValueError) as error:
        at = f" at revision {chosen}" if chosen else ""
        raise UserError(
            f"transformers cannot open {name}{at}: {' '.join(str(error).split())[:300]}"
        ) from None
    beginning = beginnings.of_released(name, config, revision=chosen)
    file = Path(str(words_at))
    words = tokenizer.load(file, beginning.text)
    if place.is_dir():
        commit = None
        weights = sorted(path for glob in _WEIGHTS for path in place.glob(glob))
        digest = json_digest({path.name: file_digest(path) for path in weights})
    else:
        commit = file.parent.name  # models--owner--name/snapshots/<commit>/tokenizer.json
        digest = json_digest([model, commit])
    return Released(
        name=name,
        revision=chosen,
        digest=digest,
        commit=commit,
        words=words,
        beginning=beginning,
        ends=_ends(config, beginning.id),
        vocabulary=int(config.get_text_config().vocab_size),
    )


def _ends(config: Any, beginning: int) -> tuple[int, ...]:
    """Ids of a configuration's end-of-text tokens, or the one that texts begin with."""
    given = getattr(config.get_text_config(), "eos_token_id", None)
    ids = given if isinstance(given, list) else [] if given is None else [given]
    return tuple(sorted({int(one) for one in ids} or {beginning}))
