"""Shape of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config.checks import not_negative, positive

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to this, whatever the tensor-parallel size, so that shapes never depend on it."""


def padded_vocabulary(size: int) -> int:
    """Vocabulary size rounded up to a multiple of 128."""
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerParameters:
    """Numbers of weights of one layer."""

    divided: int
    """By tensor parallelism: the matrices, and biases of those that are divided by outputs."""
    replicated: int
    """On every tensor-parallel rank: norms, routers, biases that are added to the residual stream."""
    expert: int
    """Of each expert of a mixture, which tensor parallelism divides; 0 without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a GPT with norms before each block and no dropout. The defaults are Llama's."""

    name: str
    """Name of the preset, for logs."""
    layers: int
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int | None = None
    """Key/value heads; fewer than ``heads`` is grouped-query attention. None: as many as ``heads``."""
    ffn: int
    """Inner width of the feed-forward block; of each expert, if there are any."""
    norm: Literal["rms", "layer", "layer_plain"] = "rms"
    """RMSNorm, LayerNorm with gain and bias, or LayerNorm without either (OLMo)."""
    activation: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    """``gelu_tanh`` is GPT-2's approximation."""
    biases: bool = False
    """Biases in the linear layers of the blocks."""
    qk_norm: bool = False
    """Norm queries and keys per head."""
    parallel_residual: bool = False
    """Attention and feed-forward block read the same input and are added together (GPT-NeoX)."""
    positions: Literal["rotary", "learned"] = "rotary"
    """``learned``: an embedding for each of ``train.sequence_length`` positions."""
    rotary_base: int = 10_000
    rotary_fraction: float = 1.0
    """Share of each head's dimensions that is rotated."""
    tied_embeddings: bool = True
    """The output layer shares its weight with the input embedding."""
    experts: int | None = None
    """Experts of a mixture that takes the place of each feed-forward block; None: no mixture."""
    experts_per_token: int = 2
    balance_loss: float = 0.01
    """Weight of the loss that balances the experts (Fedus et al., 2022, equation 4), taken of each window."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; output projections get it over sqrt(2 * layers)."""
    norm_epsilon: float = 1e-5
    tokenizer_size: int | None = None
    """Ids of the published model's tokenizer, with which ``dry_run`` counts where no corpus is prepared and none is
    to be trained. Changes nothing else."""
    weights: str | None = None
    """Directory of a Hugging Face model whose weights training starts from; None: drawn from ``train.seed``."""

    def __post_init__(self) -> None:
        positive(
            "model",
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            ffn=self.ffn,
            rotary_base=self.rotary_base,
            init_std=self.init_std,
            norm_epsilon=self.norm_epsilon,
        )
        for name in ("kv_heads", "tokenizer_size"):
            if (value := getattr(self, name)) is not None:
                positive("model", **{name: value})
        if self.hidden % self.heads:
            raise UserError(f"model.hidden={self.hidden} must be a multiple of model.heads={self.heads}")
        if (self.hidden // self.heads) % 2:
            raise UserError(f"model.hidden / model.heads = {self.hidden // self.heads} must be even (rotary)")
        rotated = self.hidden // self.heads * self.rotary_fraction
        if not 0 < self.rotary_fraction <= 1 or rotated % 2:
            raise UserError(
                f"model.rotary_fraction={self.rotary_fraction} must lie above 0, at most 1, and make an even number "
                f"of the {self.hidden // self.heads} dimensions of a head"
            )
        if self.experts is not None:
            positive("model", experts=self.experts, experts_per_token=self.experts_per_token)
            not_negative("model", balance_loss=self.balance_loss)
            if self.experts_per_token > self.experts:
                raise UserError(
                    f"model.experts_per_token={self.experts_per_token} must be at most model.experts={self.experts}"
                )
            if self.biases or self.parallel_residual:
                raise UserError("model.experts excludes model.biases and model.parallel_residual")
        if self.heads % self.query_groups:
            raise UserError(f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}")

    @property
    def query_groups(self) -> int:
        """Key/value heads, ``num_query_groups`` of megatron-core."""
        return self.kv_heads or self.heads

    def layer_parameters(self) -> LayerParameters:
        """Weights of one layer."""
        head = self.hidden // self.heads
        gains = {"rms": 1, "layer": 2, "layer_plain": 0}[self.norm]
        wide = head * (self.heads + 2 * self.query_groups)
        matrices = 3 if self.activation == "swiglu" else 2
        divided = self.hidden * wide + self.hidden * self.hidden
        replicated = 2 * gains * self.hidden
        feed_forward = matrices * self.hidden * self.ffn
        if self.experts is None:
            divided += feed_forward
        else:
            replicated += self.experts * self.hidden
        if self.biases:
            divided += wide + (matrices - 1) * self.ffn
            replicated += 2 * self.hidden
        if self.qk_norm:
            replicated += 2 * gains * head
        expert = 0 if self.experts is None else feed_forward
        return LayerParameters(divided=divided, replicated=replicated, expert=expert)

    def final_norm_parameters(self) -> int:
        """Weights of the norm before the output layer."""
        return {"rms": 1, "layer": 2, "layer_plain": 0}[self.norm] * self.hidden

    def parameters(self, vocab_size: int, sequence_length: int, *, active: bool = False) -> int:
        """Number of weights.

        Args:
            vocab_size: rows of the embeddings; the padded size counts what a training holds.
            sequence_length: number of positions, where they are learned.
            active: count only the experts that a token goes through.
        """
        layer = self.layer_parameters()
        experts = 0 if self.experts is None else self.experts_per_token if active else self.experts
        embeddings = vocab_size * self.hidden * (1 if self.tied_embeddings else 2)
        if self.positions == "learned":
            embeddings += sequence_length * self.hidden
        layers = self.layers * (layer.divided + layer.replicated + experts * layer.expert)
        return layers + embeddings + self.final_norm_parameters()
