"""Shape of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config.checks import not_negative, positive

VOCABULARY_MULTIPLE = 128
"""Multiple to which the vocabulary is padded for every tensor-parallel size, so that shapes do not depend on it."""


def padded_vocabulary(size: int) -> int:
    """Vocabulary size rounded up to a multiple of 128."""
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerParameters:
    """Numbers of weights of one layer, by their sharding."""

    divided: int
    """Number of weights divided by tensor parallelism: matrices, and biases of matrices split by outputs."""
    replicated: int
    """Number of weights on every tensor-parallel rank: norms, routers, biases added to the residual stream."""
    expert: int
    """Number of weights of each expert, which tensor parallelism divides; 0 without experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RotaryScaling:
    """Scaling of rotary frequencies for longer contexts."""

    kind: Literal["linear", "llama3"]
    """``linear``: divide all frequencies by ``factor`` (Chen et al., 2023). ``llama3``: divide only the low ones (Llama
    Team, 2024)."""
    factor: float
    """Number that frequencies are divided by."""
    low_factor: float = 1.0
    """``llama3``: frequencies whose wavelength exceeds ``original_length / low_frequency_factor`` are divided by
    ``factor``."""
    high_factor: float = 4.0
    """``llama3``: frequencies whose wavelength is below ``original_length / high_frequency_factor`` are unchanged;
    those between are interpolated."""
    original_length: int = 8192
    """``llama3``: context length, in tokens, before the extension."""

    def __post_init__(self) -> None:
        positive(
            "model.rotary_scaling",
            factor=self.factor,
            low_factor=self.low_factor,
            high_factor=self.high_factor,
            original_length=self.original_length,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a GPT without dropout. The defaults are Llama's."""

    name: str
    """Name of the preset, for logs."""
    layers: int
    """Number of transformer blocks."""
    hidden: int
    """Hidden size, the width of the residual stream."""
    heads: int
    """Number of query heads."""
    kv_heads: int | None = None
    """Number of key/value heads; fewer than ``heads`` is grouped-query attention. None: equal to ``heads``."""
    head_size: int | None = None
    """Dimensions of a head; None: ``hidden / heads``."""
    ffn: int
    """Inner width of the feed-forward block; of each expert, if there are any."""
    norm: Literal["rms", "layer", "layer_plain"] = "rms"
    """Kind of norm: RMSNorm, LayerNorm with gain and bias, or LayerNorm without either (OLMo)."""
    activation: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    """Activation of the feed-forward block; ``gelu_tanh`` is GPT-2's approximation."""
    biases: bool = False
    """Biases in the linear layers of the blocks."""
    attention_biases: Literal["none", "qkv", "all"] = "none"
    """Biases in attention if ``biases`` is false: of queries, keys and values (Qwen 2), or of all its linear layers."""
    qk_norm: bool = False
    """Norm queries and keys."""
    qk_norm_over: Literal["head", "all_heads"] = "head"
    """Dimensions over which ``qk_norm`` normalises: those of each head (Qwen 3), or of all heads together (OLMo 2,
    OLMoE)."""
    qkv_clip: float | None = None
    """Largest magnitude of queries, keys and values, which are clipped to it (OLMo); None: no clipping."""
    attention_window: int | None = None
    """Sliding window of attention in tokens, the query's own included (Mistral); at least ``train.sequence_length``."""
    post_norm: bool = False
    """Norm the output of each block (OLMo 2), not its input."""
    parallel_residual: bool = False
    """Attention and feed-forward block read the same input and are added together (GPT-NeoX)."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Position encoding; ``learned`` has an embedding for each of ``train.sequence_length`` positions."""
    rotary_base: int = 10_000
    """Base of the rotary frequencies (theta)."""
    rotary_fraction: float = 1.0
    """Share of each head's dimensions that is rotated."""
    rotary_scaling: RotaryScaling | None = None
    tied_embeddings: bool = True
    """The output layer shares its weight with the input embedding."""
    experts: int | None = None
    """Number of experts of the mixture that replaces each feed-forward block; None: no mixture."""
    experts_per_token: int = 2
    """Number of experts that the router sends each token to."""
    normalise_experts: bool = True
    """Make the weights of a token's experts sum to 1 (Mixtral); otherwise they are probabilities among all experts
    (OLMoE)."""
    balance_loss: float = 0.01
    """Weight of the loss that balances the experts (Fedus et al., 2022, equation 4); that loss is computed for each
    window separately."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; output projections get it over sqrt(2 * layers)."""
    norm_epsilon: float = 1e-5
    """Number added to the variance in every norm."""
    tokenizer_size: int | None = None
    """Vocabulary size of the published model's tokenizer; ``dry_run`` uses it while no corpus is prepared. It changes
    nothing else."""
    vocab_size: int | None = None
    """Number of rows of the vocabulary if there are more than tokenizer ids; None: the number of ids."""
    weights: str | None = None
    """Directory or hub name of a ``transformers`` model whose weights training starts from; None: drawn from
    ``train.seed``."""
    revision: str | None = None
    """Branch, tag or commit on the hub, such as ``step1000``."""

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
        for name in ("kv_heads", "tokenizer_size", "head_size", "vocab_size", "qkv_clip", "attention_window"):
            if (value := getattr(self, name)) is not None:
                positive("model", **{name: value})
        if self.head_size is None and self.hidden % self.heads:
            raise UserError(
                f"model.hidden={self.hidden} must be a multiple of model.heads={self.heads}, or set model.head_size"
            )
        if self.head_dim % 2:
            raise UserError(f"model.hidden / model.heads = {self.head_dim} must be even (rotary)")
        rotated = self.head_dim * self.rotary_fraction
        if not 0 < self.rotary_fraction <= 1 or rotated % 2:
            raise UserError(
                f"model.rotary_fraction={self.rotary_fraction} must lie above 0, at most 1, and make an even number "
                f"of the {self.head_dim} dimensions of a head"
            )
        self._check_blocks()

    def _check_blocks(self) -> None:
        """Check the consistency of the settings of attention and feed-forward blocks."""
        if self.biases and self.attention_biases != "none":
            raise UserError(
                f"model.attention_biases={self.attention_biases} is part of model.biases=true; set one of them"
            )
        if self.attention_biases == "all" and (self.activation != "swiglu" or self.experts is not None):
            raise UserError(
                "model.attention_biases=all needs model.activation=swiglu and model.experts=null; it has "
                f"{self.activation} and {'null' if self.experts is None else self.experts}"
            )
        if self.post_norm and (self.parallel_residual or self.biases):
            raise UserError(
                "model.post_norm cannot be combined with model.parallel_residual or "
                "model.biases; switch one off"
            )
        if self.qk_norm and self.qk_norm_over == "all_heads" and self.norm != "rms":
            raise UserError(f"model.qk_norm_over=all_heads needs model.norm=rms, not {self.norm}")
        if self.experts is not None:
            positive("model", experts=self.experts, experts_per_token=self.experts_per_token)
            not_negative("model", balance_loss=self.balance_loss)
            if self.experts_per_token > self.experts:
                raise UserError(
                    f"model.experts_per_token={self.experts_per_token} must be at most model.experts={self.experts}"
                )
            if self.experts_per_token == 1 and self.normalise_experts:
                raise UserError(
                    "model.experts_per_token=1 needs model.normalise_experts=false: the weight of a single expert, "
                    "made to sum to 1, is always 1, and the router learns nothing from the text"
                )
            if self.biases or self.parallel_residual:
                raise UserError(
                    "model.experts cannot be combined with model.biases or "
                    "model.parallel_residual; switch one off"
                )
        if self.heads % self.query_groups:
            raise UserError(f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}")

    @property
    def query_groups(self) -> int:
        """Key/value heads, ``num_query_groups`` of megatron-core."""
        return self.kv_heads or self.heads

    @property
    def head_dim(self) -> int:
        """Dimensions of a head, ``kv_channels`` of megatron-core."""
        return self.head_size or self.hidden // self.heads

    def rows(self, vocab_size: int) -> int:
        """Number of rows of the vocabulary that can be predicted, for a tokenizer with ``vocab_size`` ids."""
        return max(vocab_size, self.vocab_size or 0)

    def check(self, sequence_length: int) -> None:
        """Check the shape against the windows of training.

        Raises:
            UserError: if attention does not cover a window.
        """
        if self.attention_window is not None and sequence_length > self.attention_window:
            raise UserError(
                f"train.sequence_length={sequence_length} is beyond model.attention_window={self.attention_window} "
                "(sliding_window of the model), further than which its attention does not reach; that is not "
                f"represented here: set train.sequence_length={self.attention_window} or less"
            )

    def layer_parameters(self) -> LayerParameters:
        """Numbers of weights of one layer."""
        head = self.head_dim
        gains = {"rms": 1, "layer": 2, "layer_plain": 0}[self.norm]
        wide = head * (self.heads + 2 * self.query_groups)
        matrices = 3 if self.activation == "swiglu" else 2
        divided = self.hidden * wide + self.hidden * head * self.heads
        replicated = 2 * gains * self.hidden
        feed_forward = matrices * self.hidden * self.ffn
        if self.experts is None:
            divided += feed_forward
        else:
            replicated += self.experts * self.hidden
        if self.biases:
            divided += wide + (matrices - 1) * self.ffn
            replicated += 2 * self.hidden
        if self.attention_biases != "none":
            divided += wide
        if self.attention_biases == "all":
            replicated += self.hidden
        if self.qk_norm and self.qk_norm_over == "head":
            replicated += 2 * gains * head
        elif self.qk_norm:
            divided += gains * head * (self.heads + self.query_groups)
        expert = 0 if self.experts is None else feed_forward
        return LayerParameters(divided=divided, replicated=replicated, expert=expert)

    def final_norm_parameters(self) -> int:
        """Number of weights of the norm before the output layer."""
        return {"rms": 1, "layer": 2, "layer_plain": 0}[self.norm] * self.hidden

    def parameters(self, vocab_size: int, sequence_length: int, *, active: bool = False) -> int:
        """Number of weights.

        Args:
            vocab_size: number of rows of the embeddings; the padded size gives the weights in training.
            sequence_length: number of positions, if they are learned.
            active: count only the experts to which a token is routed.
        """
        layer = self.layer_parameters()
        experts = 0 if self.experts is None else self.experts_per_token if active else self.experts
        embeddings = vocab_size * self.hidden * (1 if self.tied_embeddings else 2)
        if self.positions == "learned":
            embeddings += sequence_length * self.hidden
        layers = self.layers * (layer.divided + layer.replicated + experts * layer.expert)
        return layers + embeddings + self.final_norm_parameters()
