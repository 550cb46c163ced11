"""Reference models, from which copyright traps are sampled: checkpoints, and causal models of ``transformers``.

No process groups are needed, and no code that comes with a model is run. Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import torch

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import Tokenizer


class Reference:
    """A causal language model with its tokenizer, on the CPU.

    Args:
        gpt: a causal model of ``transformers``.
        backend: the tokenizer.
        start: id of the beginning-of-text token.
    """

    def __init__(self, gpt: Any, backend: tokenizers.Tokenizer, start: int) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.gpt, self.backend, self.start = gpt.eval(), backend, start
        self.vocab_size = min(gpt.config.vocab_size, backend.get_vocab_size(with_added_tokens=True))
        special = [k for k, token in backend.get_added_tokens_decoder().items() if token.special]
        alone = backend.decode_batch([[k] for k in range(self.vocab_size)], skip_special_tokens=False)
        broken = [k for k, text in enumerate(alone) if "\ufffd" in text]
        self.never = sorted(k for k in {start, *special, *broken} if k < self.vocab_size)
        """Ids that are never sampled: special tokens and incomplete characters."""

    def sample(
        self, count: int, length: int, temperature: float, rng: np.random.Generator
    ) -> list[tuple[str, npt.NDArray[np.int64], float]]:
        """Texts of ``length`` tokens, sampled after the start token.

        Sampled tokens often differ from the tokens of their text. Therefore more tokens are sampled, their text is
        tokenized, and its first ``length`` tokens are kept and scored.

        Args:
            count: number of sequences, B.
            length: number of tokens of each, T.
            temperature: divisor of the logits.
            rng: random generator.

        Returns:
            Text, ids (T,) and -ln p (nats, at temperature 1) of each sequence; fewer than ``count`` if a text was too
            short, or its cut beginning is tokenized differently.
        """
        drawn = self._draw(count, length + length // 4 + 4, temperature, rng)
        texts = self.backend.decode_batch(drawn.tolist(), skip_special_tokens=False)
        beginnings = [
            encoding.ids[:length] for encoding in self.backend.encode_batch(texts, add_special_tokens=False)
        ]
        texts = self.backend.decode_batch(beginnings, skip_special_tokens=False)
        again = self.backend.encode_batch(texts, add_special_tokens=False)
        same = [
            (text, ids)
            for text, ids, encoding in zip(texts, beginnings, again, strict=True)
            if len(ids) == length and encoding.ids == ids
        ]
        if not same:
            return []
        ids_BT = np.array([ids for _, ids in same], dtype=np.int64)
        nll_B = self.nll(ids_BT)
        return [(text, row, lost) for (text, _), row, lost in zip(same, ids_BT, nll_B.tolist(), strict=True)]

    def nll(self, ids_BT: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Sum of -ln p of each sequence after the start token, nats, (B,)."""
        targets_BT = torch.from_numpy(ids_BT)
        starts_B1 = torch.full((len(ids_BT), 1), self.start)
        with torch.inference_mode():
            logits_BTV = self.gpt(input_ids=torch.cat([starts_B1, targets_BT[:, :-1]], dim=1)).logits
            lost_BT = torch.nn.functional.cross_entropy(
                logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none"
            ).view_as(targets_BT)
        losses: npt.NDArray[np.float64] = lost_BT.double().sum(1).numpy()
        return losses

    def loss(self, text: str) -> float:
        """Mean -ln p of a text's tokens after the start token, nats/token; a text longer than the model's positions is
        cut.
        """
        most = getattr(self.gpt.config, "max_position_embeddings", None)
        ids = self.backend.encode(text, add_special_tokens=False).ids[:most]
        return float(self.nll(np.array([ids], dtype=np.int64))[0]) / len(ids)

    def _draw(
        self, count: int, length: int, temperature: float, rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Sampled ids, (B, T)."""
        ids_BT = np.empty((count, length), dtype=np.int64)
        last_B1 = torch.full((count, 1), self.start)
        past: Any = None
        with torch.inference_mode():
            for place in range(length):
                out = self.gpt(input_ids=last_B1, past_key_values=past, use_cache=True)
                past = out.past_key_values
                chances_BV = out.logits[:, -1, : self.vocab_size].double().numpy() / temperature
                chances_BV[:, self.never] = -np.inf
                # The largest of logit + Gumbel noise is a draw from the softmax.
                ids_BT[:, place] = np.argmax(chances_BV + rng.gumbel(size=chances_BV.shape), axis=1)
                last_B1 = torch.from_numpy(ids_BT[:, place].copy())[:, None]
        return ids_BT


def open_reference(path: str, tokenizer: Tokenizer) -> Reference:
    """A model of ``transformers``, or a checkpoint of a run here, in float32.

    Args:
        path: directory of ``save_pretrained`` or of ``launch/export.py``; or a checkpoint, ``.../step_<number>``.
        tokenizer: of the corpus, which a checkpoint must have been trained with; a model of ``transformers`` brings its
            own ``tokenizer.json``.

    Raises:
        UserError: without ``transformers``, or if the directory is no such model.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("a reference model needs transformers; pip install -e '.[huggingface]'") from None
    directory = Path(path)
    if (directory / artifact.MANIFEST).is_file() and not (directory / "config.json").is_file():
        return _checkpoint(directory, tokenizer)
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UserError(
                f"{path}: there is no {name} in it; give a directory of save_pretrained, or a checkpoint"
            )
    try:
        gpt = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    config = gpt.config
    start = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
    if not isinstance(start, int):
        raise UserError(f"{path}: its config.json names no bos_token_id, which stands before every text")
    return Reference(gpt, tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")), start)


def _checkpoint(directory: Path, tokenizer: Tokenizer) -> Reference:
    match = re.fullmatch(r"step_(\d+)", directory.name)
    if not match:
        raise UserError(
            f"{directory} is not the directory of a checkpoint; give .../checkpoints/step_<number>"
        )
    # They need megatron-core, which a model of transformers does without.
    from palimpsest.pretrain import checkpoint
    from palimpsest.pretrain.huggingface import export

    step = int(match[1])
    size = checkpoint.read(directory.parent, step).config["vocab_size"]
    if size != tokenizer.vocab_size:
        raise UserError(
            f"{directory} has a vocabulary of {size}, the corpus here one of {tokenizer.vocab_size}; prepare the "
            "corpus that it was trained on, or export it and give the export"
        )
    gpt = export.load(directory.parent, step, eod=tokenizer.eod).float()
    return Reference(gpt, tokenizers.Tokenizer.from_str(tokenizer.backend.to_str()), tokenizer.eod)
