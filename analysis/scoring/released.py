"""Released models with their authors' items: any causal model of ``transformers``, and a JSONL file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer

from palimpsest.analysis.scoring import beginnings, huggingface, store
from palimpsest.data import tokenizer
from palimpsest.data.artifact import file_digest, json_digest
from palimpsest.data.errors import UserError
from palimpsest.insertion.items import Probe, tokenize_probes

log = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def probes(items: Path, words: tokenizer.Tokenizer) -> pl.DataFrame:
    """The probes of a JSONL file, tokenized (``insertion.items.PROBE_SCHEMA``).

    A line is an item: ``{"text": ...}`` is scored whole (kind ``verbatim``); ``{"prompt": ..., "target": ...}`` is a
    ``cloze``; ``{"prompt": ..., "choices": [...]}`` gives one probe of kind ``choice`` for each. ``id`` names the item,
    otherwise its line does; ``family`` groups items.

    Raises:
        UserError: for a line that is none of these, naming it, or a target that begins inside a token.
    """
    asked: list[tuple[str | None, str, Probe]] = []
    for number, line in enumerate(items.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            asked += _of_line(line, f"{items} line {number}", str(number))
    if not asked:
        raise UserError(f"{items} has no items")
    table, left_out = tokenize_probes(asked, words)
    if left_out:
        raise UserError(
            f"{items}: {left_out[0]}; {len(left_out)} in all. Begin targets with the space before them"
        )
    return table


def _of_line(line: str, where: str, number: str) -> list[tuple[str | None, str, Probe]]:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where} is not a JSON object")
    item, family = str(found.get("id", number)), str(found.get("family", "items"))
    if isinstance(found.get("text"), str) and found["text"]:
        made = [Probe("verbatim", "", found["text"])]
    elif isinstance(found.get("prompt"), str) and isinstance(found.get("choices"), list):
        made = [Probe("choice", found["prompt"], str(choice)) for choice in found["choices"]]
    elif isinstance(found.get("prompt"), str) and isinstance(found.get("target"), str):
        made = [Probe("cloze", found["prompt"], found["target"])]
    else:
        raise UserError(f"{where} has neither text, nor prompt and target, nor prompt and choices")
    return [(item, family, probe) for probe in made]


def score(
    model: str,
    items: Path,
    target: Path,
    *,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
    bos: str = "always",
    long_texts: str = "refuse",
    options: Mapping[str, Any] | None = None,
) -> int:
    """Score a JSONL file's items with a model; ``target`` gets ``probes.parquet`` and the score store.

    Args:
        model: directory, or name on the hub, of a causal model of ``transformers`` with its ``tokenizer.json``.
        items: see :func:`probes`.
        target: directory; finished parts in it are reused.
        device: to score on.
        share: (k, n), as :func:`analysis.scoring.store.score_all` has it.
        bos: see :meth:`analysis.scoring.beginnings.Beginning.reading`; so is ``long_texts``.
        long_texts: texts that are longer than the model's table of positions.
        options: as for :func:`analysis.scoring.huggingface.open_huggingface`.

    Returns:
        How many parts were scored now.

    Raises:
        UserError: if model, tokenizer or items cannot be read.
    """
    try:
        from transformers import AutoConfig
        from transformers.utils.hub import cached_file
    except ImportError:
        raise UserError(
            "the package transformers is not installed; pip install -e '.[huggingface]'"
        ) from None
    if not items.is_file():
        raise UserError(f"there is no file {items}")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        words_at = cached_file(model, "tokenizer.json")
    except (OSError, ValueError) as error:
        raise UserError(f"transformers cannot open {model}: {' '.join(str(error).split())}") from None
    beginning = beginnings.of_released(model, config)
    reading = beginning.reading(bos, long_texts)
    log.info("%s", beginning.line(reading))
    files = Path(str(words_at)).parent
    backend = Tokenizer.from_file(str(words_at))
    words = tokenizer.load(Path(str(words_at)), str(backend.id_to_token(beginning.id)))
    table = probes(items, words)
    opened = huggingface.open_huggingface(model, device, options)
    weights = {path.name: file_digest(path) for glob in _WEIGHTS for path in sorted(files.glob(glob))}
    target.mkdir(parents=True, exist_ok=True)
    table.write_parquet(target / "probes.parquet")
    return store.score_all(
        target,
        table,
        [store.Checkpoint(0, json_digest(weights), lambda: opened)],
        items_digest=json_digest(
            [file_digest(items), file_digest(Path(str(words_at))), beginning.id, str(options or "")]
        ),
        eod=beginning.id,
        vocab_size=opened.vocabulary,
        share=share,
        reading=reading,
    )
