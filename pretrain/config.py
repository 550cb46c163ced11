"""Settings of a training run, as frozen dataclasses that check themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from palimpsest.data.errors import UserError

SEEDS = 2**32
"""Seeds lie below this."""


def _positive(owner: str, **values: int | float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:  # nan is neither
            raise UserError(f"{owner}.{name}={value} must be above 0")


def _not_negative(owner: str, **values: int | float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{owner}.{name}={value} must be 0 or above")


def _divisors(*numbers: int) -> str:
    """What divides all of the numbers, in words."""
    common = math.gcd(*numbers)
    found = [str(one) for one in range(1, common + 1) if common % one == 0]
    return f"{', '.join(found[:-1])} and {found[-1]} fit" if len(found) > 1 else "only 1 fits"


def check_seed(name: str, value: int) -> None:
    """Check that every generator takes a seed.

    Raises:
        UserError: naming the field.
    """
    if not 0 <= value < SEEDS:
        raise UserError(f"{name}={value} must lie between 0 and {SEEDS - 1}")


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
    """Whether the linear layers of the blocks have biases."""
    qk_norm: bool = False
    """Whether queries and keys are normed per head."""
    parallel_residual: bool = False
    """Whether attention and feed-forward block read the same input and are added together (GPT-NeoX)."""
    positions: Literal["rotary", "learned"] = "rotary"
    """``learned``: an embedding for each of ``train.sequence_length`` positions."""
    rotary_base: int = 10_000
    rotary_fraction: float = 1.0
    """Share of each head's dimensions that is rotated."""
    tied_embeddings: bool = True
    """Whether the output layer is the input embedding."""
    experts: int | None = None
    """Experts of a mixture that takes the place of each feed-forward block; None: no mixture."""
    experts_per_token: int = 2
    balance_loss: float = 0.01
    """Weight of the loss that balances the experts (Fedus et al., 2022, equation 4), taken of each window."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; output projections get it over sqrt(2 * layers)."""
    norm_epsilon: float = 1e-5
    weights: str | None = None
    """Directory of a Hugging Face model whose weights training starts from; None: drawn from ``train.seed``."""

    def __post_init__(self) -> None:
        _positive(
            "model",
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            ffn=self.ffn,
            rotary_base=self.rotary_base,
            init_std=self.init_std,
            norm_epsilon=self.norm_epsilon,
        )
        if self.kv_heads is not None:
            _positive("model", kv_heads=self.kv_heads)
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
            _positive("model", experts=self.experts, experts_per_token=self.experts_per_token)
            _not_negative("model", balance_loss=self.balance_loss)
            if self.experts_per_token > self.experts:
                raise UserError(
                    f"model.experts_per_token={self.experts_per_token} must be at most model.experts={self.experts}"
                )
            if self.biases or self.parallel_residual:
                raise UserError("model.experts excludes model.biases and model.parallel_residual")
        if self.heads % self.groups:
            raise UserError(f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}")

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    def parameters(self, vocab_size: int, sequence_length: int, *, active: bool = False) -> int:
        """Number of weights.

        Args:
            vocab_size: rows of the embeddings; the padded size counts what a training holds.
            sequence_length: number of positions, where they are learned.
            active: count only the experts that a token goes through.
        """
        head = self.hidden // self.heads
        gains = {"rms": 1, "layer": 2, "layer_plain": 0}[self.norm]
        wide = head * (self.heads + 2 * self.groups)
        matrices = 3 if self.activation == "swiglu" else 2
        layer = self.hidden * wide + self.hidden * self.hidden + 2 * gains * self.hidden
        feed_forward = matrices * self.hidden * self.ffn
        if self.experts is None:
            layer += feed_forward
        else:
            used = self.experts_per_token if active else self.experts
            layer += used * feed_forward + self.experts * self.hidden
        if self.biases:
            layer += wide + self.hidden + (matrices - 1) * self.ffn + self.hidden
        if self.qk_norm:
            layer += 2 * gains * head
        embeddings = vocab_size * self.hidden * (1 if self.tied_embeddings else 2)
        if self.positions == "learned":
            embeddings += sequence_length * self.hidden
        return self.layers * layer + embeddings + gains * self.hidden


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, or Muon for the blocks' matrices, with linear warm-up and a decay."""

    kind: Literal["adamw", "muon"] = "adamw"
    """``muon``: the layers' matrices get orthogonalised momentum (Jordan et al., 2024), each as megatron-core keeps it
    (queries, keys and values in one, gate and up in one); embeddings and norms get AdamW. Steps are as large as AdamW's
    (Liu et al., 2025), so that learning rates carry over."""
    law: Literal["step_law"] | None = None
    """Where the learning rates come from (:mod:`pretrain.laws`); None: they are given."""
    learning_rate: float
    """Peak."""
    min_learning_rate: float
    """At the last step."""
    warmup_steps: int
    """Fewer than ``train.steps``."""
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """After the warm-up. ``wsd`` stays at the peak and decays over the last ``decay_steps`` as 1 - sqrt
    (Haegele et al., 2024); ``constant`` never decays."""
    decay_steps: int | None = None
    """Of ``wsd``."""
    initial_learning_rate: float = 0.0
    """Where the warm-up starts; above 0 for re-warming a model that was trained before."""
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 clips nothing."""

    def __post_init__(self) -> None:
        _positive("optimizer", learning_rate=self.learning_rate, epsilon=self.epsilon)
        _not_negative(
            "optimizer",
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            clip_grad=self.clip_grad,
        )
        if not 0 <= self.initial_learning_rate <= self.learning_rate:
            raise UserError(
                f"optimizer.initial_learning_rate={self.initial_learning_rate} must lie between 0 and "
                f"optimizer.learning_rate={self.learning_rate}"
            )
        if (self.schedule == "wsd") != (self.decay_steps is not None):
            raise UserError(
                f"optimizer.decay_steps={self.decay_steps} does not go with optimizer.schedule={self.schedule}; wsd "
                "needs it, the others have no use for it"
            )
        if self.decay_steps is not None:
            _positive("optimizer", decay_steps=self.decay_steps)
        if self.schedule == "constant" and self.min_learning_rate != self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate={self.min_learning_rate} is never reached with "
                f"optimizer.schedule=constant; set it to {self.learning_rate}"
            )
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise UserError(f"optimizer.{name}={beta} must lie between 0 and 1, 1 excluded")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate={self.min_learning_rate} must lie between 0 and "
                f"optimizer.learning_rate={self.learning_rate}"
            )

    def check(self, train: TrainConfig, model: ModelConfig, parallel: ParallelConfig) -> None:
        """Check the schedule against the length of the run, and Muon against model and topology.

        Raises:
            UserError: if the learning rate would never decay, or Muon could not have whole matrices.
        """
        if self.kind == "muon":
            for told, wrong in (
                (f"parallel.tensor={parallel.tensor}", parallel.tensor > 1),
                (f"model.experts={model.experts}", model.experts is not None),
            ):
                if wrong:
                    raise UserError(
                        f"optimizer.kind=muon does not go with {told}: it needs each matrix whole on one rank, and "
                        "has not learnt of experts; use optimizer=adamw, or parallel.tensor=1 and no experts"
                    )
        if self.warmup_steps >= train.steps:
            raise UserError(
                f"optimizer.warmup_steps={self.warmup_steps} must be below train.steps={train.steps}; lower the "
                "one or raise the other"
            )
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > train.steps:
            raise UserError(
                f"optimizer.decay_steps={self.decay_steps} and optimizer.warmup_steps={self.warmup_steps} do not fit "
                f"into train.steps={train.steps}; lower one"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, on what batches, and when to save."""

    steps: int
    global_batch_size: int
    """Windows a step, over all ranks."""
    micro_batch_size: int
    """Windows a forward pass on one data-parallel rank."""
    sequence_length: int
    """Tokens predicted per window; a window holds one more."""
    seed: int
    """Of the initial weights and of the order of the windows."""
    precision: Literal["fp32", "bf16", "fp8"] = "fp32"
    """``fp8``: bf16 but for the matrix products, which Transformer Engine makes; the weights are saved in bf16."""
    deterministic: bool = False
    """Whether two runs on the same machines end with the same weights to the last bit. Otherwise some kernels of GPUs
    sum in no fixed order; on CPUs it makes no difference."""
    recompute: bool = False
    """Whether the forward pass keeps only the input of each layer, and the backward pass computes the rest again: a
    third more computation for far less memory."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do about a step whose loss or gradient is NaN or infinite: ``stop`` before it; or ``skip``, learn nothing
    from its windows and go on, which the ledger records and the audit weighs."""
    document_attention: bool = False
    """Whether tokens attend to their own document alone, from the end-of-document token before it on; otherwise to all
    of the window before them."""
    start_from: str | None = None
    """Checkpoint of another run (``.../checkpoints/step_00000100``) that this one goes on from, with its weights and
    its optimizer, at the same position of the same order; the first step is the checkpoint's."""
    stop_at: int | None = None
    """Finished steps at which the run ends, though its schedule is that of ``steps``: another run goes on from there.
    None: ``steps``."""
    checkpoint_every: int
    """Steps between regular checkpoints; steps 0, 1, 2, 4, 8, ... and the last are saved besides."""
    checkpoint_at: tuple[int, ...] = ()
    """Further steps to save."""
    checkpoint_after_last: tuple[int, ...] = ()
    """Steps after the last exposure of an arm to save, for each arm: how soon is it forgotten?"""
    checkpoint_keep: int | None = None
    """Regular checkpoints to keep, the newest; all others are always kept. None: all."""
    checkpoint_async: bool = False
    """Whether checkpoints are written by other processes while training goes on. Takes the memory of a copy."""

    def __post_init__(self) -> None:
        _positive(
            "train",
            steps=self.steps,
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            sequence_length=self.sequence_length,
            checkpoint_every=self.checkpoint_every,
        )
        check_seed("train.seed", self.seed)
        for step in self.checkpoint_at:
            if not 0 <= step <= self.steps:
                raise UserError(
                    f"train.checkpoint_at: {step} must lie between 0 and train.steps={self.steps}"
                )
        for later in self.checkpoint_after_last:
            if later < 0:
                raise UserError(f"train.checkpoint_after_last: {later} must be 0 or above")
        if self.checkpoint_keep is not None:
            _positive("train", checkpoint_keep=self.checkpoint_keep)
        if self.stop_at is not None and not 0 < self.stop_at <= self.steps:
            raise UserError(f"train.stop_at={self.stop_at} must lie between 1 and train.steps={self.steps}")
        if self.begin >= self.end:
            raise UserError(
                f"train.start_from={self.start_from} is at step {self.begin}, and the run ends at step {self.end}; "
                "raise train.steps (or train.stop_at), which count the steps before it, too"
            )

    @property
    def low(self) -> bool:
        """Whether weights and activations have 16 bits."""
        return self.precision != "fp32"

    @property
    def end(self) -> int:
        """Finished steps at the end."""
        return self.steps if self.stop_at is None else self.stop_at

    @property
    def begin(self) -> int:
        """The first step."""
        if self.start_from is None:
            return 0
        found = re.fullmatch(r"step_(\d+)", Path(self.start_from).name)
        if found is None:
            raise UserError(
                f"train.start_from={self.start_from} is no checkpoint; give its directory, such as "
                "runs/quickstart/run-1a2b3c4d/twin/checkpoints/step_00000100"
            )
        return int(found[1])

    @property
    def windows(self) -> int:
        """Windows consumed up to the end, with those before ``start_from``."""
        return self.end * self.global_batch_size

    def lasting_checkpoints(self, last_exposures: Iterable[int] = ()) -> set[int]:
        """Steps after which a checkpoint is written that is never deleted.

        Args:
            last_exposures: finished steps with which each arm had its last exposure.
        """
        powers = {self.begin + (1 << k) for k in range(self.steps.bit_length())}
        after = {step + later for step in last_exposures for later in self.checkpoint_after_last}
        asked = {self.begin, self.end} | powers | after | set(self.checkpoint_at)
        return {step for step in asked if step <= self.end}

    def checkpoint_steps(self, last_exposures: Iterable[int] = ()) -> list[int]:
        """Steps after which a checkpoint is written, ascending: the lasting and the regular ones."""
        regular = set(range(0, self.steps + 1, self.checkpoint_every))
        return sorted(self.lasting_checkpoints(last_exposures) | regular)

    def unneeded_checkpoints(self, saved: Iterable[int], last_exposures: Iterable[int] = ()) -> list[int]:
        """Of the saved steps those to delete: regular ones beyond ``checkpoint_keep``, and those of a signal.

        The newest is always needed: a run goes on from it.
        """
        saved = sorted(saved)
        regular = [step for step in saved if step % self.checkpoint_every == 0]
        keep = set(regular if self.checkpoint_keep is None else regular[-self.checkpoint_keep :])
        keep |= self.lasting_checkpoints(last_exposures) | set(saved[-1:])
        return [step for step in saved if step not in keep]


VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to this, whatever the tensor-parallel size, so that shapes never depend on it."""


def padded_vocabulary(size: int) -> int:
    """Vocabulary size rounded up to a multiple of 128."""
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the ranks share the work. Data-parallel size is what remains of the world size."""

    tensor: int = 1
    """Ranks that share each matrix; a divisor of the heads, of the inner width and of 128."""
    pipeline: int = 1
    """Ranks that share the layers."""
    virtual_pipeline: int = 1
    """Pieces that each pipeline rank's layers are cut into; above 1 is the interleaved schedule (Narayanan et al.,
    2021), which waits less between micro-batches and sends more."""
    sequence: bool = False
    """Whether tensor-parallel ranks share the sequence between matrices, too (sequence parallelism)."""
    context: int = 1
    """Ranks that share each window: every one has a part of its tokens in all layers."""
    expert: int = 1
    """Data-parallel ranks that share the experts of a mixture."""
    distributed_optimizer: bool = True
    """Whether data-parallel ranks share the optimizer's state (ZeRO, stage 1) instead of each holding all of it, as
    they always do with ``optimizer.kind=muon``."""
    overlap: bool = False
    """Whether data-parallel ranks exchange gradients during the backward pass, and with ``distributed_optimizer``
    weights during the forward pass."""

    def __post_init__(self) -> None:
        _positive(
            "parallel",
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual_pipeline=self.virtual_pipeline,
            context=self.context,
            expert=self.expert,
        )
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise UserError(
                f"parallel.virtual_pipeline={self.virtual_pipeline} needs parallel.pipeline above 1"
            )
        if self.sequence and self.tensor == 1:
            raise UserError("parallel.sequence=true needs parallel.tensor above 1")
        if VOCABULARY_MULTIPLE % self.tensor:
            raise UserError(
                f"parallel.tensor={self.tensor} must divide {VOCABULARY_MULTIPLE}, of which the padded "
                f"vocabulary is a multiple; {_divisors(VOCABULARY_MULTIPLE)}"
            )

    @property
    def smallest(self) -> int:
        """The fewest ranks that the settings can do with."""
        return self.tensor * self.pipeline * self.context * self.expert

    @property
    def sharing(self) -> int:
        """Ranks that have different tokens of the same window."""
        return self.context * (self.tensor if self.sequence else 1)

    def data(self, world_size: int) -> int:
        """Data-parallel size.

        Raises:
            UserError: if the world size is no multiple of tensor x pipeline x context.
        """
        model = self.tensor * self.pipeline * self.context
        if world_size % model:
            context = f" x parallel.context={self.context}" if self.context > 1 else ""
            raise UserError(
                f"parallel.tensor={self.tensor} x parallel.pipeline={self.pipeline}{context} = {model} does not "
                f"divide the world size {world_size}; start a multiple of {model} processes "
                f"(torchrun --nproc-per-node {model})"
            )
        return world_size // model

    def check(self, world_size: int, model: ModelConfig, train: TrainConfig) -> None:
        """Check the topology against the model and the batch.

        With a world of ``tensor * pipeline`` ranks this says what no number of ranks could mend.

        Raises:
            UserError: naming the field, the value and what would fit.
        """
        data = self.data(world_size)
        for name, size in (("heads", model.heads), ("kv_heads", model.groups), ("ffn", model.ffn)):
            if size % self.tensor:
                fit = _divisors(model.heads, model.groups, model.ffn, VOCABULARY_MULTIPLE)
                raise UserError(f"parallel.tensor={self.tensor} must divide model.{name}={size}; {fit}")
        if model.layers % self.pipeline:
            raise UserError(
                f"parallel.pipeline={self.pipeline} must divide model.layers={model.layers}; "
                f"{_divisors(model.layers)}"
            )
        if model.layers // self.pipeline % self.virtual_pipeline:
            raise UserError(
                f"parallel.virtual_pipeline={self.virtual_pipeline} must divide the "
                f"{model.layers // self.pipeline} layers of each of the {self.pipeline} pipeline ranks; "
                f"{_divisors(model.layers // self.pipeline)}"
            )
        if self.expert > 1 and model.experts is None:
            raise UserError(
                f"parallel.expert={self.expert} needs a mixture of experts; model.experts is null"
            )
        if self.expert > 1 and (model.experts or 0) % self.expert:
            raise UserError(
                f"parallel.expert={self.expert} must divide model.experts={model.experts}; "
                f"{_divisors(model.experts or 1)}"
            )
        if data % self.expert:
            raise UserError(
                f"parallel.expert={self.expert} must divide the {data} data-parallel ranks ({world_size} ranks over "
                f"tensor x pipeline x context); {_divisors(data)}, or start a multiple of {self.smallest} ranks"
            )
        if model.experts is not None and self.tensor > 1 and not self.sequence:
            raise UserError(
                f"parallel.tensor={self.tensor} with model.experts={model.experts} needs parallel.sequence=true"
            )
        if self.context > 1 and train.document_attention:
            raise UserError(
                f"parallel.context={self.context} shares windows among ranks, which train.document_attention=true does "
                "not know; set parallel.context=1"
            )
        if self.context > 1 and train.sequence_length % (2 * self.context):
            raise UserError(
                f"parallel.context={self.context} cuts windows into {2 * self.context} blocks, which must divide "
                f"train.sequence_length={train.sequence_length}"
            )
        if train.sequence_length % self.sharing:
            over = f" over parallel.context={self.context}" if self.context > 1 else ""
            raise UserError(
                f"parallel.tensor={self.tensor} with parallel.sequence=true must divide "
                f"train.sequence_length={train.sequence_length}{over}"
            )
        if train.global_batch_size % (train.micro_batch_size * data):
            raise UserError(
                f"train.global_batch_size={train.global_batch_size} must be a multiple of "
                f"train.micro_batch_size={train.micro_batch_size} x {data} data-parallel ranks"
                + (
                    ""
                    if train.global_batch_size % data
                    else f"; with micro-batches, {_divisors(train.global_batch_size // data)}"
                )
            )
        batches = train.global_batch_size // (train.micro_batch_size * data)
        if self.virtual_pipeline > 1 and batches % self.pipeline:
            raise UserError(
                f"parallel.virtual_pipeline={self.virtual_pipeline} works on micro-batches in groups of "
                f"parallel.pipeline={self.pipeline}, and a step has {batches} a data-parallel rank; change "
                "train.global_batch_size or train.micro_batch_size"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What is asked of the model while it trains, on top of what ``launch/score.py`` asks of its checkpoints."""

    heldout_every: int | None = None
    """Steps between losses on held-out documents; None: never."""
    probes_every: int | Literal["checkpoint"] | None = None
    """Steps between losses on all probes of the plan, by family and dose, or ``checkpoint``: whenever one is saved."""

    def __post_init__(self) -> None:
        for name in ("heldout_every", "probes_every"):
            value = getattr(self, name)
            if isinstance(value, int):
                _positive("eval", **{name: value})

    @property
    def wanted(self) -> bool:
        """Whether anything is asked."""
        return self.heldout_every is not None or self.probes_every is not None

    def due(self, step: int, *, saved: bool) -> Literal["probes", "heldout"] | None:
        """What is asked after a step: all probes, only those of held-out documents, or nothing.

        Args:
            step: finished steps.
            saved: whether a checkpoint is saved with it.
        """
        if (
            saved
            if self.probes_every == "checkpoint"
            else self.probes_every and step % self.probes_every == 0
        ):
            return "probes"
        return "heldout" if self.heldout_every and step % self.heldout_every == 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """Which steps to record with ``torch.profiler``."""

    steps: tuple[int, ...] = ()
    """The first and the last, counted from 1; the first rank records. Empty: none."""

    def __post_init__(self) -> None:
        if self.steps and (len(self.steps) != 2 or not 1 <= self.steps[0] <= self.steps[1]):
            raise UserError(
                f"profile.steps={list(self.steps)} must be the first and the last step, such as [10,12]"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine; nothing here changes what is computed beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    threads: int = 0
    """CPU threads a process; 0 leaves it to PyTorch (and to torchrun's OMP_NUM_THREADS)."""
    workers: int = 2
    """Processes that read and tokenize text."""
    attention: Literal["auto", "te", "sdpa"] = "auto"
    """Layers and attention of Transformer Engine, or our own over ``scaled_dot_product_attention``. auto: Transformer
    Engine's on GPUs where it is installed and has the model's layers, unless ``train.document_attention`` is wanted,
    which only ours has."""
    cuda_graphs: bool = False
    """Whether megatron-core records the kernels of each layer as CUDA graphs in the first step and replays them after
    it. Helps small models, whose kernels end before the CPU has started the next; takes memory."""
    hang_minutes: float = 60.0
    """Without a finished step before a training prints its stacks and ends; 0: it waits for ever."""

    def __post_init__(self) -> None:
        _positive("runtime", workers=self.workers)
        _not_negative("runtime", threads=self.threads, hang_minutes=self.hang_minutes)
