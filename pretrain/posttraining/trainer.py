"""Post-training on this rank: load a checkpoint, take the steps of a method, save checkpoints as training does."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor, distributed

from palimpsest.data.errors import UserError
from palimpsest.pretrain import checkpoint, chunks, optim
from palimpsest.pretrain.checkpointing import Checkpointer
from palimpsest.pretrain.config import PosttrainConfig
from palimpsest.pretrain.parallel import World
from palimpsest.pretrain.posttraining import low_rank, methods, texts
from palimpsest.pretrain.posttraining.methods import Batch, Method, Rows
from palimpsest.pretrain.posttraining.texts import MicroBatch, Step, Texts
from palimpsest.pretrain.settings import Settings

log = logging.getLogger(__name__)


class Posttrainer:
    """Trains on from a checkpoint by a post-training method, such as unlearning a forget set.

    Building it loads the weights; ``run`` trains.

    Args:
        settings: of the training that made the checkpoint; its topology may be another one.
        posttrain: the method and its settings.
        world: this process's rank among the others.
        parent: directory of the checkpoints of the run to start from.
        step: step of the checkpoint to start from.
        forget: texts of the forget set.
        retain: texts of the retain set.
        refusals: a refusal for each text of the forget set, for methods that ask for it.
        student: step of the checkpoint whose weights are trained, while those of ``step`` stay as the reference
            model; None: those of ``step`` are trained.
        vocab_size: of the tokenizer.
        inputs: digests of what determines the texts.
        directory: of the post-trained run; gets ``checkpoints/``.

    Raises:
        UserError: for settings that the method does not have, or a topology that it cannot use.
    """

    def __init__(
        self,
        settings: Settings,
        posttrain: PosttrainConfig,
        world: World,
        *,
        parent: Path,
        step: int,
        forget: Texts,
        retain: Texts,
        vocab_size: int,
        inputs: dict[str, str],
        directory: Path,
        refusals: Texts | None = None,
        student: int | None = None,
    ) -> None:
        self.method = methods.find(posttrain.method)
        self.weights = method_settings(self.method, posttrain)
        self.posttrain, self.world = posttrain, world
        self.forget, self.retain, self.vocab_size = forget, retain, vocab_size
        self._used = used_sets(self.method, self.weights)
        self.refusals = refusals if self.method.refuses and self._used[0] else None
        self._kinds = sum(self._used) + (self.refusals is not None)
        self.settings = _settings(settings, posttrain, self._kinds)
        _check_topology(self.settings, self.method, self.posttrain, world)
        own = chunks.build(self.settings, world, vocab_size, drawn=False)
        manifest = checkpoint.read(parent, step)
        checkpoint.require_whole(checkpoint.path_of(parent, step), manifest, world)
        _load_weights(own, parent, step if student is None else student)
        if posttrain.rank is not None:
            for gpt in own:
                low_rank.adapt(gpt, posttrain.rank, posttrain.seed, world)
        self.chunks = chunks.distributed(own, self.settings, world)
        self.optimizer, self.scheduler = optim.build(
            self.chunks,
            self.settings.optimizer,
            self.settings.train,
            distributed=self.settings.shards_optimizer(world.data_size),
        )
        self.forward_backward = chunks.schedule(self.chunks, self.optimizer, self.settings, world)
        self.checkpointer = Checkpointer(
            directory / "checkpoints",
            self.settings,
            world,
            chunks=self.chunks,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            identity={**self.settings.identity(vocab_size), "posttrain": identity(posttrain)},
            inputs={**inputs, "parent": manifest.digest, "ledger": ""},
            last_exposures=(),
        )
        self.before = self._former_model(parent, step) if self._compares else None
        self._layer = layer_of(self.settings, posttrain)
        self.step = self._begin()
        """Finished steps."""

    @property
    def _compares(self) -> bool:
        """True if the model before post-training is asked, too."""
        return self.method.before or self._divergence

    @property
    def _divergence(self) -> bool:
        """True if the loss on the retain set is the divergence from the model before."""
        return self.posttrain.retain_loss == "kl" and self.weights["alpha"] > 0

    def _former_model(self, directory: Path, step: int) -> list[Any]:
        former = chunks.build(self.settings, self.world, self.vocab_size, drawn=False)
        _load_weights(former, directory, step)
        return [gpt.requires_grad_(False) for gpt in former]

    def _begin(self) -> int:
        """Load the newest checkpoint of this post-training, or save the parent as step 0.

        With updates of low rank checkpoints hold their sum with the weights alone, so that steps begin anew.
        """
        done = checkpoint.newest(self.checkpointer.directory, self.world)
        if done == self.posttrain.steps:
            return done
        if done is not None and self.posttrain.rank is None:
            self.weights["alpha"] = self.checkpointer.load(done).facts.get("alpha", self.weights["alpha"])
            return done
        if done is not None:
            log.info("updates of low rank are not in checkpoints: the steps begin anew")
            self.world.barrier()
            if self.world.main:
                checkpoint.remove(
                    self.checkpointer.directory, checkpoint.finished(self.checkpointer.directory)
                )
            self.world.barrier()
        self.optimizer.reload_model_params()
        self._save(0)
        return 0

    def run(self, write: Callable[[dict[str, Any]], None]) -> None:
        """Take the remaining steps.

        Args:
            write: gets the record of each step: ``step``, ``loss`` (the method's), ``loss_forget`` and
                ``loss_retain`` (nats a token; None for a set whose loss has no weight: it is not read),
                ``gradient_norm``, ``seconds``.

        Raises:
            UserError: if loss or gradient is not finite; the step is not taken.
        """
        while self.step < self.posttrain.steps:
            began = time.monotonic()
            record = self._take_step()
            self.step += 1
            write({"step": self.step, **record, "seconds": time.monotonic() - began})
            if self.step in self.checkpointer.due:
                self._save(self.step)
        self.world.barrier()

    def _save(self, step: int) -> None:
        facts = {"alpha": self.weights["alpha"]}
        self.checkpointer.gather_weights()
        with low_rank.merged([chunk.module for chunk in self.chunks]):
            self.checkpointer.save(step, {}, facts=facts, weights_only=self.posttrain.rank is not None)

    def _take_step(self) -> dict[str, float | None]:
        rows = texts.of_step(
            *(self.forget, self.retain, self.step),
            refusals=self.refusals,
            rows=self.posttrain.rows,
            seed=self.posttrain.seed,
            labels=self.method.labels,
            vocabulary=self.vocab_size,
            used=self._used,
        )
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        before = None if self.before is None else self._pass(rows, self.before, None, forward_only=True)
        parts = self._pass(rows, self.chunks, before, forward_only=False)
        sums = torch.zeros(4, device=self.world.device, dtype=torch.float64)
        if self.world.last_stage and self.world.tensor_rank == 0:
            sums += torch.stack([part["figures"] for part in parts]).double().sum(0)
        distributed.all_reduce(sums)
        overflow = self.optimizer.prepare_grads()
        norm = math.inf if overflow else float(self.optimizer.get_grad_norm())
        loss, forget, retain, retain_before = sums.tolist()
        if not math.isfinite(loss + norm):
            raise UserError(
                f"posttrain.method={self.method.name}: loss {loss} and gradient norm {norm} at step {self.step + 1}; "
                "lower posttrain.learning_rate or posttrain.steps"
            )
        self.scheduler.step(increment=self.settings.train.global_batch_size)
        limit = self.settings.optimizer.clip_grad
        if limit:
            clip_grad_by_total_norm_fp32(optim.updated(self.optimizer), max_norm=limit, total_norm=norm)
        self.optimizer.step_with_ready_grads()
        self.weights["alpha"] = methods.multiplier(self.method, self.weights, retain, retain_before)
        return {
            "loss": loss,
            "loss_forget": forget if self._used[0] else None,
            "loss_retain": retain if self._used[1] else None,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm,
        }

    def _pass(
        self, rows: Step, model: list[Any], before: list[dict[str, Any]] | None, *, forward_only: bool
    ) -> list[dict[str, Any]]:
        """Run the step's rows through a model; what the loss function reports of each micro-batch, on the last stage.

        Args:
            rows: of the step.
            model: the model, or the one before post-training.
            before: what that one gave; None where it is not asked, or this pass asks it.
            forward_only: without gradients.
        """
        posttrain, world = self.posttrain, self.world
        count = posttrain.rows // (posttrain.micro_rows * world.data_size)

        def micro_batches() -> Iterator[MicroBatch]:
            return rows.micro_batches(posttrain.micro_rows, world.data_rank, world.data_size, world.device)

        def step_part(batches: Iterator[MicroBatch], gpt: Any) -> tuple[Any, Callable[..., Any]]:
            batch = next(batches)
            output, hidden = self._output(gpt, batch)
            finish = partial(self._loss, batch, rows, hidden, before, count * world.data_size, forward_only)
            return output, finish

        with torch.set_grad_enabled(not forward_only):
            parts: list[dict[str, Any]] = self.forward_backward(
                forward_step_func=step_part,
                data_iterator=[micro_batches() for _ in model],
                model=model,
                num_microbatches=count,
                seq_length=self.settings.train.sequence_length,
                micro_batch_size=self._kinds * posttrain.micro_rows,
                forward_only=forward_only,
            )
        return parts

    def _output(self, gpt: Any, batch: MicroBatch) -> tuple[Tensor, list[Tensor]]:
        """A stage's output for a micro-batch (of the last one logits or losses), and hidden states where asked for."""
        hidden: list[Tensor] = []
        with _watched(gpt, self._layer, hidden) if "hidden" in self.method.outputs else _nothing():
            labels = None if self._logits else batch.labels
            output = gpt(batch.tokens, batch.position_ids, None, labels=labels)
        return output, hidden

    @property
    def _logits(self) -> bool:
        return "logits" in self.method.outputs or self._divergence

    def _loss(
        self,
        batch: MicroBatch,
        rows: Step,
        hidden: list[Tensor],
        before: list[dict[str, Any]] | None,
        micro_batches: int,
        only_rows: bool,
        output: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The micro-batch's share of the step's loss, as megatron-core's schedules take it.

        They divide by the sum of the counts returned (1 of each of ``micro_batches``), so it is multiplied by that.
        """
        logits = None
        if self._logits:
            logits = gather_from_tensor_model_parallel_region(output)[..., : self._rows].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
        else:
            losses = output.float()
        count = len(batch.tokens) // self._kinds
        states = hidden[0].transpose(0, 1) if hidden else None
        outputs: list[Rows] = []
        end = 0
        for number, kind in enumerate(rows.kinds):
            part = slice(end, end + (count if len(kind) else 0))
            end = part.stop
            outputs.append(
                Rows(
                    nll=losses[part],
                    mask=batch.loss_mask[part],
                    tokens=kind.counted,
                    rows=self.posttrain.rows,
                    labels=batch.labels[part],
                    logits=None if logits is None else logits[part],
                    hidden=None if states is None else states[part],
                    segment=None if number else batch.segments,
                    segment_tokens=0.0 if number else float(kind.segment_mask.sum()),
                )
            )
        forget, retain = outputs[:2]
        one = torch.ones((), dtype=torch.int, device=losses.device)
        if only_rows:
            return losses.sum(), one, {"rows": outputs}
        loss = methods.step_loss(
            self.method,
            self.posttrain.retain_loss,
            _batch(outputs, None if before is None else before[batch.number]["rows"]),
            self.weights,
        )
        former = retain if before is None else before[batch.number]["rows"][1]
        figures = torch.stack([one.detach() for one in (loss, forget.loss, retain.loss, former.loss)])
        return loss * micro_batches, one, {"figures": figures}

    @property
    def _rows(self) -> int:
        return self.settings.model.rows(self.vocab_size)


def used_sets(used: Method, weights: Mapping[str, float]) -> tuple[bool, bool]:
    """True for each of forget and retain set if its loss has a weight, or may get one.

    Args:
        used: the method.
        weights: its settings.

    Raises:
        UserError: if neither has.
    """
    both = weights["gamma"] != 0, weights["alpha"] != 0 or "dual_step" in used.settings
    if not any(both):
        raise UserError(
            "posttrain.settings: gamma and alpha, the weights of the two losses, are both 0; set one"
        )
    return both


def method_settings(used: Method, posttrain: PosttrainConfig) -> dict[str, float]:
    """A method's settings: its defaults with those that were given.

    Raises:
        UserError: for a setting that it does not have.
    """
    return chosen_settings(used.name, {"gamma": 1.0, "alpha": float(used.retain), **used.settings}, posttrain)


def chosen_settings(name: str, known: dict[str, float], posttrain: PosttrainConfig) -> dict[str, float]:
    """The settings ``known`` of a method with those that were given.

    Raises:
        UserError: for a setting that it does not have.
    """
    for key, value in posttrain.settings.items():
        if key not in known:
            raise UserError(
                f"posttrain.settings.{key}={value}: {name} has no such setting; it has {', '.join(known)}"
            )
    return {**known, **posttrain.settings}


def identity(posttrain: PosttrainConfig) -> dict[str, Any]:
    """The settings that determine the result, as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(posttrain)))
    for name in ("micro_rows", "checkpoint_every", "after"):  # the parent is named by its digest
        del values[name]
    if values["rank"] is None:  # names of runs that had no such setting stay
        del values["rank"]
    return values


def layer_of(settings: Settings, posttrain: PosttrainConfig) -> int:
    """``posttrain.layer``, or the middle one.

    Raises:
        UserError: if the model has no such layer.
    """
    layers = settings.model.layers
    if posttrain.layer is not None and not 0 <= posttrain.layer < layers:
        raise UserError(f"posttrain.layer={posttrain.layer}: the model has layers 0 to {layers - 1}")
    return layers // 2 if posttrain.layer is None else posttrain.layer


def _batch(now: list[Rows], before: list[Rows] | None) -> Batch:
    """Outputs of the rows of all kinds, of the model and of the one before post-training."""
    former: list[Rows | None] = [None] * len(now) if before is None else [*before]
    forget, retain, refusal = [*now, None][:3]
    assert forget is not None
    assert retain is not None
    return Batch(forget, retain, former[0], former[1], refusal, former[2] if refusal is not None else None)


def _settings(settings: Settings, posttrain: PosttrainConfig, kinds: int) -> Settings:
    """Settings of the post-training: a constant learning rate, ``rows`` windows of each kind a step."""
    rate = posttrain.learning_rate or settings.optimizer.min_learning_rate or settings.optimizer.learning_rate
    return replace(
        settings,
        optimizer=replace(
            settings.optimizer,
            kind="adamw",
            learning_rate=rate,
            min_learning_rate=rate,
            initial_learning_rate=0.0,
            warmup_steps=0,
            schedule="constant",
            decay_steps=None,
            weight_decay=0.0,
        ),
        train=replace(
            settings.train,
            steps=max(1, posttrain.steps),
            global_batch_size=kinds * posttrain.rows,
            micro_batch_size=kinds * posttrain.micro_rows,
            checkpoint_every=posttrain.checkpoint_every,
            checkpoint_at=(),
            checkpoint_after_last=(),
            start_from=None,
            stop_at=None,
        ),
    )


def _check_topology(settings: Settings, used: Method, posttrain: PosttrainConfig, world: World) -> None:
    parallel = settings.parallel
    if parallel.context > 1:
        raise UserError(f"parallel.context={parallel.context}: post-training needs whole texts; set it to 1")
    if posttrain.rows % (posttrain.micro_rows * world.data_size):
        raise UserError(
            f"posttrain.rows={posttrain.rows} is no multiple of posttrain.micro_rows={posttrain.micro_rows} times "
            f"{world.data_size} data-parallel ranks; change one"
        )
    layer_of(settings, posttrain)
    if posttrain.rank is not None and parallel.sequence:
        raise UserError(f"posttrain.rank={posttrain.rank}: updates of low rank need parallel.sequence=false")
    if "hidden" in used.outputs and (parallel.pipeline > 1 or parallel.sequence):
        raise UserError(
            f"posttrain.method={used.name} reads a layer's output together with the loss: it needs "
            "parallel.pipeline=1 and parallel.sequence=false"
        )


def _load_weights(model: list[Any], directory: Path, step: int) -> None:
    sharded = {number: gpt.sharded_state_dict() for number, gpt in enumerate(model)}
    state = checkpoint.load(directory, step, {"model": sharded})
    for number, gpt in enumerate(model):
        gpt.load_state_dict(state["model"][number])


@contextmanager
def _watched(gpt: Any, layer: int, into: list[Tensor]) -> Iterator[None]:
    """Keep the output of a layer, (T, B, H)."""
    inner = getattr(gpt, "module", gpt)
    hook = inner.decoder.layers[layer].register_forward_hook(
        lambda _module, _inputs, output: into.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _nothing() -> Iterator[None]:
    yield
