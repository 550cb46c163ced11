"""Language models to score: our checkpoints, and any causal model that ``transformers`` opens.

Shapes: B rows, T tokens, N tokens of all rows, D hidden, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.analysis import decoder
from palimpsest.analysis.decoder import Shape
from palimpsest.data.errors import UserError

log = logging.getLogger(__name__)

AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of log-probabilities between a model and the lean form of it, by precision."""
COARSE_AGREEMENT = 0.1
"""The same for bf16 and fp16, whose roundings differ between any two orders of the same sums."""


class Model(Protocol):
    """What the scorer asks of a model."""

    trees: bool
    """Whether ``hidden`` takes positions and masks, so that texts share what they have in common."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def head(self) -> Tensor:
        """Output matrix, (V, D): logits are ``hidden @ head.T``."""

    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, mask_BTT: Tensor | None = None
    ) -> Tensor:
        """What the output matrix is applied to, (B, T, D); see :meth:`analysis.decoder.Decoder.hidden`."""


class Trained:
    """megatron-core's ``GPTModel`` as it is; for shapes that :mod:`analysis.decoder` does not cover."""

    trees = False

    def __init__(self, gpt: Any) -> None:
        self.gpt = gpt

    @property
    def head(self) -> Tensor:
        """Output matrix, (V, D)."""
        from palimpsest.pretrain import (
            model as engine,  # takes seconds, and models of transformers need none of it
        )

        weight: Tensor = engine.output_weight(self.gpt)
        return weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.device

    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, mask_BTT: Tensor | None = None
    ) -> Tensor:
        """Final hidden states, (B, T, D); plainly causal."""
        if positions_BT is not None or mask_BTT is not None:
            raise NotImplementedError("this model is plainly causal")
        from palimpsest.pretrain import model as engine

        found: Tensor = engine.hidden_states(self.gpt, ids_BT)
        return found


class HuggingFace:
    """A causal model of ``transformers`` as it is."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.trees = "position_ids" in inspect.signature(model.base_model.forward).parameters

    @property
    def head(self) -> Tensor:
        """Output matrix, (V, D)."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.device

    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, mask_BTT: Tensor | None = None
    ) -> Tensor:
        """Final hidden states, (B, T, D)."""
        given: dict[str, Tensor] = {}
        if positions_BT is not None:
            given["position_ids"] = positions_BT
        if mask_BTT is not None:
            dtype = self.head.dtype
            blocked = torch.zeros(mask_BTT.shape, dtype=dtype, device=mask_BTT.device)
            given["attention_mask"] = blocked.masked_fill_(~mask_BTT, torch.finfo(dtype).min)[:, None]
        found: Tensor = self.model.base_model(input_ids=ids_BT, use_cache=False, **given).last_hidden_state
        return found


def logprobs(model: Model, hidden_BTD: Tensor) -> Tensor:
    """ln of the next-token distribution, float32, over the whole vocabulary: for checks on few tokens."""
    return torch.log_softmax(functional.linear(hidden_BTD.float(), model.head.float()), -1)


def agree(model: Model, reference_BTV: Tensor, ids_BT: Tensor) -> bool:
    """Whether a model's log-probabilities are the reference's, causally and, if it says so, over a tree of texts."""
    limit = AGREEMENT.get(model.head.dtype, COARSE_AGREEMENT)
    with torch.inference_mode():
        plain = logprobs(model, model.hidden(ids_BT))
        if plain.shape != reference_BTV.shape or not torch.allclose(plain, reference_BTV, rtol=0, atol=limit):
            return False
        if not model.trees:
            return True
        # The first half once, the second half twice, as two branches: each must see the first half and itself.
        half, count = ids_BT.shape[1] // 2, ids_BT.shape[1]
        line = torch.arange(count, device=ids_BT.device)
        positions = torch.cat([line, line[half:]])[None].expand(len(ids_BT), -1)
        branch = torch.cat([torch.zeros(half), torch.ones(count - half), torch.full((count - half,), 2.0)])
        branch = branch.to(ids_BT.device)
        order = torch.arange(len(branch), device=ids_BT.device)
        seen = (order[:, None] >= order) & ((branch == 0) | (branch[:, None] == branch))
        twice = torch.cat([ids_BT, ids_BT[:, half:]], 1)
        tree = logprobs(model, model.hidden(twice, positions, seen.expand(len(ids_BT), -1, -1)))
        return bool(
            torch.allclose(tree[:, :count], plain, rtol=0, atol=limit)
            and torch.allclose(tree[:, count:], plain[:, half:], rtol=0, atol=limit)
        )


def _sample(vocabulary: int, device: torch.device) -> Tensor:
    """(2, 16) ids to check a model with; any will do."""
    return (torch.arange(32, device=device).view(2, 16) * 7919) % vocabulary


def of_checkpoint(gpt: Any) -> Model:
    """The model to score a ``GPTModel`` by, whole on this rank: lean if its shape allows, otherwise itself.

    On CPUs it computes in float32 whatever precision it was trained in.
    """
    plain = Trained(gpt)
    config = gpt.config
    if plain.device.type == "cpu":
        gpt.float()
    frequencies: Tensor | None = getattr(getattr(gpt, "rotary_pos_emb", None), "inv_freq", None)
    covered = (
        config.normalization == "RMSNorm"
        and config.gated_linear_unit
        and config.activation_func is functional.silu
        and config.num_moe_experts is None
    )
    if not covered or frequencies is None or 2 * len(frequencies) != config.kv_channels:
        return plain  # the last: only part of each head is rotated
    shape = Shape(
        config.num_attention_heads, config.num_query_groups, config.layernorm_epsilon, frequencies.float()
    )
    try:
        lean = decoder.from_gpt(gpt.state_dict(), shape)
    except ValueError as error:
        log.warning("scoring with megatron-core's own forward pass, which is slower: %s", error)
        return plain
    with torch.inference_mode():
        ids = _sample(len(plain.head), plain.device)
        if agree(lean, logprobs(plain, plain.hidden(ids)), ids):
            return lean
    log.warning("scoring with megatron-core's own forward pass: the lean one does not agree with it")
    return plain


def open_huggingface(path: str | Path, device: torch.device) -> Model:
    """A causal model of ``transformers`` by path or name: lean if it is Llama-shaped, otherwise as it is.

    Float32 on CPUs, the saved precision on GPUs. Code that comes with a model is never run.

    Raises:
        UserError: if ``transformers`` is missing, cannot open it, or its logits are more than its output matrix
            applied to its last hidden state.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{path} is a Hugging Face model; install transformers (pip install -e '.[huggingface]')"
        ) from None
    try:
        opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32 if device.type == "cpu" else "auto", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"transformers cannot open {path} as a causal language model: {' '.join(str(error).split())}"
        ) from None
    return of_huggingface(opened.to(device))


def of_huggingface(opened: Any) -> Model:
    """As :func:`open_huggingface`, of a model that is open."""
    opened.eval()
    plain = HuggingFace(opened)
    ids = _sample(len(plain.head), plain.device)
    with torch.inference_mode():
        reference = torch.log_softmax(opened(input_ids=ids, use_cache=False).logits.float(), -1)
    if opened.config.model_type == "llama" and opened.config.hidden_act == "silu":
        rotary = opened.model.rotary_emb
        if rotary.rope_type in ("default", "linear", "llama3"):  # the others depend on the length of the text
            shape = Shape(
                opened.config.num_attention_heads,
                opened.config.num_key_value_heads,
                opened.config.rms_norm_eps,
                rotary.inv_freq.float(),
                float(rotary.attention_scaling),
            )
            try:
                lean = decoder.from_llama(opened.state_dict(), shape)
            except ValueError as error:
                log.info("not as a plain Llama: %s", error)
            else:
                if agree(lean, reference, ids):
                    return lean
    if agree(plain, reference, ids):
        return plain
    plain.trees = False
    if agree(plain, reference, ids):
        return plain
    raise UserError(
        f"{type(opened).__name__} is not supported: its logits are not its output matrix applied to its last "
        "hidden state (a bias, a scale or a cap comes after it)"
    )
