"""The training loop: megatron-core's schedules around our batches, ledger and checkpoints."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, distributed

from palimpsest.data import artifact
from palimpsest.data.artifact import differences
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Windows
from palimpsest.insertion import ledger
from palimpsest.insertion.ledger import PlanViolation, Recorder
from palimpsest.insertion.overlay import Overlay
from palimpsest.insertion.plan import Plan
from palimpsest.pretrain import checkpoint, estimate, huggingface, model, optim
from palimpsest.pretrain.batches import Batch, Batches, Groups, positions_of
from palimpsest.pretrain.config import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
    padded_vocabulary,
)
from palimpsest.pretrain.identity import result_settings
from palimpsest.pretrain.interrupts import Interrupted, Interrupts, Watchdog
from palimpsest.pretrain.parallel import Attention, World
from palimpsest.pretrain.routing import Routing
from palimpsest.pretrain.telemetry import Profile, Writer, finite, peak_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to train."""

    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    parallel: ParallelConfig
    attention: Attention = "sdpa"
    graphs: bool = False
    """Whether layers are recorded as CUDA graphs."""

    def identity(self, vocab_size: int) -> dict[str, Any]:
        """The settings that determine the result, as JSON values: not the topology, not when it is saved."""
        settings = result_settings(self.model, self.optimizer, self.train)
        for key in ("start_from", "stop_at"):  # the checkpoint it starts from is named by its digest
            del settings["train"][key]
        if self.model.weights:  # what they are, not where they lie
            settings["model"]["weights"] = huggingface.digest(Path(self.model.weights))
        return {**settings, "vocab_size": vocab_size}


_MAY_DIFFER = {
    "train": ("steps",),
    "optimizer": (
        *("learning_rate", "min_learning_rate", "warmup_steps", "schedule"),
        *("decay_steps", "initial_learning_rate"),
    ),
}
"""Settings in which a run may differ from the one whose checkpoint it starts from."""


def _without(identity: dict[str, Any], left_out: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        part: {key: one for key, one in value.items() if key not in left_out[part]}
        if part in left_out
        else value
        for part, value in identity.items()
    }


Evaluate = Callable[[Any, int, bool], dict[str, float]]
"""Asks a model something: (this rank's ``GPTModel``, finished steps, whether a checkpoint is due) -> what to record."""


class NonFinite(UserError):
    """The loss or its gradient is NaN or infinite. No optimizer step was taken on it."""


SKIPS = 3
"""Steps in a row that may be skipped (``train.non_finite=skip``); after so many it is not the data."""


class Trainer:
    """One run, perturbed or twin, on this rank.

    Args:
        settings: what to train.
        world: this process's place.
        order: the corpus's windows.
        plan: what is inserted, or None for the twin.
        vocab_size: of the tokenizer.
        last_exposures: of each arm of the plan, the twin's too: finished steps with the last one.
        directory: of the run; gets ``checkpoints/`` and ``ledger/``.

    Raises:
        UserError: for a topology that does not fit, or a run that leaves the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        world: World,
        *,
        order: Windows,
        plan: Plan | None,
        vocab_size: int,
        directory: Path,
        last_exposures: Sequence[int] = (),
    ) -> None:
        train = settings.train
        settings.parallel.check(world.size, settings.model, train)
        order.require(train.windows)
        self.settings, self.world, self.last_exposures = settings, world, last_exposures
        self.directory = directory
        self.checkpoints, self.ledger = directory / "checkpoints", directory / "ledger"
        self.identity = settings.identity(vocab_size)
        self.inputs = {"order": order.identity, "plan": plan.digest if plan else ""}
        self.start = None if train.start_from is None else Path(train.start_from)
        if self.start is not None:
            self.inputs["start"] = checkpoint.read(self.start.parent, train.begin).digest
        self.recorder = Recorder(plan, train.global_batch_size, world.rank)
        self.groups = Groups(plan)
        self.batches = Batches(
            order,
            plan.overlay() if plan else Overlay.empty(),
            self.recorder,
            self.groups,
            train,
            data_rank=world.data_rank,
            data_size=world.data_size,
            device=world.device,
            context=(world.context_rank, settings.parallel.context),
        )
        parallel = settings.parallel
        distribute = parallel.distributed_optimizer and world.data_size * parallel.context > 1
        distribute = distribute and settings.optimizer.kind != "muon"
        self.chunks = self._pieces(vocab_size, distribute=distribute)
        """This rank's pieces of the model, in the order of the layers."""
        self.routing = Routing(self.chunks, settings.model, world.device)
        self.optimizer, self.scheduler = optim.build(
            self.chunks, settings.optimizer, train, distributed=distribute
        )
        if world.size > 1 and world.main:
            updated = sum(one.numel() for one in optim.updated(self.optimizer))
            held = sum(one.numel() for chunk in self.chunks for one in chunk.parameters())
            log.info(
                "%d ranks (tensor %d, pipeline %d, context %d, data %d); each holds %s weights, and the optimizer's "
                "state of %s",
                *(world.size, parallel.tensor, parallel.pipeline, parallel.context, world.data_size),
                *(f"{number:,}" for number in (held, updated)),
            )
        config = self.chunks[0].config
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss
        if parallel.overlap:  # gradients are exchanged after the last micro-batch alone
            without = [chunk.no_sync for chunk in self.chunks]
            config.no_sync_func = without if len(without) > 1 else without[0]
        self.forward_backward = get_forward_backward_func()
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        peak = estimate.peak_flops(name)
        self.peak = None if peak is None else peak * world.size
        """FLOP/s of all ranks together; None where that is not known, as of CPUs."""
        self.flops_a_token = estimate.flops_per_token(
            settings.model, padded_vocabulary(vocab_size), train.sequence_length
        )
        self.step = 0
        """Finished steps."""
        self._skipped: list[int] = []
        self._committed = 0
        self._ledger_head = ""
        self._saving: checkpoint.Saving | None = None

    def _pieces(self, vocab_size: int, *, distribute: bool) -> list[DistributedDataParallel]:
        """Build them, with the weights of ``model.weights`` where it is set; ``distribute``: the optimizer's state."""
        settings, parallel = self.settings, self.settings.parallel
        weights = settings.model.weights
        start = huggingface.read(Path(weights), settings.model) if weights else None
        if start and len(start[huggingface.EMBEDDING]) < vocab_size:
            raise UserError(
                f"model.weights={weights} knows {len(start[huggingface.EMBEDDING])} tokens, the corpus {vocab_size}; "
                "tokenize the corpus with the model's own tokenizer (corpus.tokenizer.kind=file)"
            )
        found = []
        for piece in range(parallel.virtual_pipeline) if parallel.virtual_pipeline > 1 else [None]:
            gpt = model.build(
                *(settings.model, vocab_size, parallel, settings.train, start, piece),
                attention=settings.attention,
                graphs=settings.graphs,
            ).to(self.world.device)
            exchanged = DistributedDataParallelConfig(
                # Gradients are summed in float32, so that the sum does not depend on micro-batches or ranks.
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=distribute,
                overlap_grad_reduce=parallel.overlap,
                overlap_param_gather=parallel.overlap and distribute,
            )
            found.append(DistributedDataParallel(gpt.config, exchanged, gpt))
        return found

    def resume(self) -> int:
        """Go on from the last finished checkpoint, or write the first one.

        Returns:
            Finished steps.

        Raises:
            UserError: if the checkpoint is damaged or belongs to another configuration, corpus or plan.
        """
        # One rank looks: directories may appear later elsewhere, and ranks that disagree would wait for each other.
        found = [checkpoint.finished(self.checkpoints) if self.world.main else None]
        distributed.broadcast_object_list(found)
        steps = found[0]
        if not steps:
            if self.world.main:
                ledger.discard_beyond(self.ledger, -1)
            if self.start is not None:
                self._start_from(self.start)
            self._save()
            return self.step
        step = steps[-1]
        path = checkpoint.path_of(self.checkpoints, step)
        manifest = checkpoint.read(self.checkpoints, step)
        checkpoint.require_same(path, manifest, self.identity, self.inputs)
        if self.world.main:
            checkpoint.require_whole(path, manifest)
            ledger.discard_beyond(self.ledger, step)
        scheduler = self._load(self.checkpoints, step)
        if scheduler is not None:
            self.scheduler.load_state_dict(scheduler)
        self._ledger_head = manifest.inputs["ledger"]
        distributed.barrier()
        return step

    def _load(self, checkpoints: Path, step: int) -> dict[str, Any] | None:
        """Take weights and optimizer from a checkpoint; returns the state of the schedule."""
        state = checkpoint.load(checkpoints, step, self._state(step, loading=True))
        for number, chunk in enumerate(self.chunks):
            chunk.module.load_state_dict(state["model"][number])
        if step:
            optim.load_state(self.optimizer, state["optimizer"])
        else:
            self.optimizer.reload_model_params()
        self.step = self._committed = step
        scheduler: dict[str, Any] | None = state.get("scheduler")
        return scheduler

    def _start_from(self, path: Path) -> None:
        """Take another run's checkpoint as the beginning of this one.

        Raises:
            UserError: if that run differs in more than its insertions, its length and its learning rates.
        """
        manifest = checkpoint.read(path.parent, self.settings.train.begin)
        own = _without(self.identity, _MAY_DIFFER)
        theirs = _without(manifest.config, _MAY_DIFFER)
        found = differences(replace(manifest, config=theirs), config=own, inputs=manifest.inputs)
        if manifest.inputs["order"] != self.inputs["order"]:
            found.append("it read another corpus or order")
        if found:
            raise UserError(f"train.start_from={path} does not fit this run: {'; '.join(found)}")
        if self.world.main:
            checkpoint.require_whole(path, manifest)
        distributed.barrier()
        self._load(path.parent, self.settings.train.begin)
        # The schedule is this run's own, at the place that the step has in it.
        self.scheduler.step(increment=self.step * self.settings.train.global_batch_size)

    def run(
        self,
        writers: Sequence[Writer],
        until: int | None = None,
        *,
        interrupts: Interrupts | None = None,
        watchdog: Watchdog | None = None,
        evaluate: Evaluate | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Train to the end (or to ``until`` finished steps), checkpointing on the way.

        Args:
            writers: of telemetry, on the rank that writes.
            until: finished steps to stop at.
            interrupts: tell when to save and stop before the end.
            watchdog: is fed after each step and each checkpoint.
            evaluate: is asked after each step, on every rank; what it returns is recorded with the step.
            profile: is told when steps begin and end.

        Raises:
            Interrupted: after saving, if any rank was told to stop.
            PlanViolation: if a batch is not what the plan says; the step is not taken.
            NonFinite: if loss or gradient is NaN or infinite, unless such a step is to be skipped; it is not taken.
        """
        train = self.settings.train
        due = set(train.checkpoint_steps(self.last_exposures))
        tokens_a_step = train.global_batch_size * train.sequence_length
        watchdog = watchdog or Watchdog(0)
        while self.step < (train.end if until is None else until):
            began = time.monotonic()
            watchdog.feed()
            if profile is not None:
                profile.before(self.step + 1)
            losses, norm, stop = self._train_step(interrupts is not None and interrupts.requested)
            self.step += 1
            if profile is not None:
                profile.after(self.step)
            speed = tokens_a_step / (time.monotonic() - began)
            record = {
                "step": self.step,
                **losses,
                "tokens": self.step * tokens_a_step,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "gradient_norm": norm,
                **({"skipped": True} if self._skipped[-1:] == [self.step - 1] else {}),
                "tokens_per_second": speed,
                "mfu": None if self.peak is None else speed * self.flops_a_token / self.peak,
                "memory_gib": peak_memory(self.world.device),
            }
            if evaluate is not None:
                record |= evaluate(self.chunks[0].module, self.step, self.step in due)
            record = finite(record)
            for writer in writers:
                writer.write(record)
            if self.step in due or stop:
                watchdog.feed()
                self._save(background=train.checkpoint_async and not stop)
            else:
                self._finish_saving(wait=False)
            if stop and self.step < train.end:
                raise Interrupted(
                    f"told to stop: saved step {self.step}; run the same command again to go on"
                )
        watchdog.feed()
        self._finish_saving(wait=True)
        distributed.barrier()
        watchdog.stop()

    def _train_step(self, stop: bool) -> tuple[dict[str, Any], float, bool]:
        """One step over the global batch.

        Args:
            stop: whether this rank was told to stop.

        Returns:
            Mean losses (nats a token) by the name they are recorded under, and what became of the routing; the
            gradient norm before clipping; whether any rank was told to stop.
        """
        world = self.world
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        parts = self._batch(1 + len(self.groups.names), forward_only=False)
        # [sum of losses, tokens, the same by group, ranks told to stop]: the losses are known on the last stage, and
        # are the same on all its tensor-parallel ranks. One collective call for all of it.
        total = torch.zeros(3 + 2 * (1 + len(self.groups.names)), device=world.device, dtype=torch.float64)
        if world.last_stage and world.tensor_rank == 0:
            total[:-1] += torch.stack([part["loss"] for part in parts]).sum(0)
        total[-1] = float(stop)
        distributed.all_reduce(total)
        overflow = self.optimizer.prepare_grads()
        # megatron-core waits for the GPU to have the norm. The losses are there by then: the guard waits for nothing.
        norm = math.inf if overflow else float(self.optimizer.get_grad_norm())
        *sums, stopped = total.tolist()
        found = {"loss": sums[0] / sums[1], "gradient norm": norm}
        wrong = next((name for name, value in found.items() if not math.isfinite(value)), None)
        if wrong is not None:
            self._blame(wrong, found[wrong])
        # The schedule counts the step that is being taken: the first has a rate above 0, the last the lowest.
        self.scheduler.step(increment=self.settings.train.global_batch_size)
        if wrong is None:
            self._update(norm)
        return self._by_group(sums) | self.routing.take(), norm, stopped > 0

    def _batch(self, groups: int, *, forward_only: bool) -> list[dict[str, Tensor]]:
        """The global batch through the model: what ``_loss`` tells of each micro-batch, on the last stage."""
        train = self.settings.train
        parts: list[dict[str, Tensor]] = self.forward_backward(
            forward_step_func=partial(_forward, groups),
            # Each piece of the model asks for the batches; they are read once.
            data_iterator=list(tee(self.batches.step(self.step, record=not forward_only), len(self.chunks))),
            model=self.chunks,
            num_microbatches=train.global_batch_size // (train.micro_batch_size * self.world.data_size),
            seq_length=train.sequence_length,
            micro_batch_size=train.micro_batch_size,
            forward_only=forward_only,
        )
        return parts

    def _by_group(self, sums: list[float]) -> dict[str, float | None]:
        """Mean losses from [sum, tokens, sums by group, tokens by group]; None where the batch has no such token."""

        def mean(total: float, count: float) -> float | None:
            return total / count if count else None

        found = {"loss": mean(sums[0], sums[1])}
        if names := self.groups.names:
            by_group = sums[2 : 3 + len(names)]
            counts = sums[3 + len(names) :]
            found["loss_corpus"] = mean(by_group[0], counts[0])
            found["loss_inserted"] = mean(sum(by_group[1:]), sum(counts[1:]))
            found["tokens_inserted"] = sum(counts[1:])
            found |= {
                f"loss/{name}": mean(one, count)
                for name, one, count in zip(names, by_group[1:], counts[1:], strict=True)
            }
        return found

    def _update(self, norm: float) -> None:
        """Clip gradients of this norm, and take the optimizer's step."""
        limit = self.settings.optimizer.clip_grad
        if limit:
            clip_grad_by_total_norm_fp32(optim.updated(self.optimizer), max_norm=limit, total_norm=norm)
        self.optimizer.step_with_ready_grads()

    def _blame(self, name: str, value: float) -> None:
        """Write down which windows made a loss or gradient that is not finite, and stop or skip the step.

        All ranks know the value.

        Raises:
            NonFinite: unless the step is to be skipped, and those before it were not all skipped, too.
        """
        batch = self.settings.train.global_batch_size
        first = self.step * batch
        losses = self._losses_by_window()
        offending = [first + row for row, loss in enumerate(losses) if not math.isfinite(loss)]
        path = self.directory / "non_finite.json"
        in_a_row = self._skipped[-SKIPS:] == list(range(self.step - SKIPS, self.step))
        skip = self.settings.train.non_finite == "skip" and not in_a_row
        if self.world.main:
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            event = {
                "step": self.step,
                "skipped": skip,
                "what": name,
                "value": str(value),
                "windows": [first, first + batch - 1],
                "offending": offending,
                "losses": [str(loss) for loss in losses],
            }
            artifact.write_json(path, [one for one in known if one["step"] < self.step] + [event])
        told = (
            f"the {name} is {value} in step {self.step} (windows {first} to {first + batch - 1}, of which "
            f"{len(offending)} have a loss that is not finite: {path})"
        )
        if not skip:
            asked = f", nor were the {SKIPS} before it" if in_a_row else ""
            raise NonFinite(
                f"{told}; the step was not taken{asked}. Lower optimizer.learning_rate or optimizer.clip_grad"
                + ("" if asked else ", or go on without such steps: train.non_finite=skip")
            )
        log.warning("%s; skipped, as train.non_finite=skip asks", told)
        self._skipped.append(self.step)

    def _losses_by_window(self) -> list[float]:
        """The sum of losses of each window of the step, in the order of positions, on every rank.

        It reads the windows once more, which is not recorded.
        """
        train, world = self.settings.train, self.world
        with torch.no_grad():
            parts = self._batch(0, forward_only=True)
        found = torch.zeros(train.global_batch_size, device=world.device, dtype=torch.float64)
        if world.last_stage and world.tensor_rank == 0:
            read = positions_of(self.step, train, world.data_rank, world.data_size)
            for positions, part in zip(read, parts, strict=True):
                places = torch.from_numpy(positions - self.step * train.global_batch_size)
                found[places] = part["loss"].double()
        distributed.all_reduce(found)
        return list(found.tolist())

    def _state(self, step: int, *, loading: bool = False) -> dict[str, Any]:
        """What a checkpoint holds. At step 0 that is the weights alone: Adam has no state before its first step."""
        for chunk in self.chunks:
            if chunk.ddp_config.overlap_param_gather:  # the next forward pass would gather them
                chunk.start_param_sync(force_sync=True)
        sharded = {number: chunk.module.sharded_state_dict() for number, chunk in enumerate(self.chunks)}
        if step == 0:
            return {"model": sharded}
        held = optim.state_to_load if loading else optim.state
        return {
            "model": sharded,
            "optimizer": held(self.optimizer, sharded),
            "scheduler": self.scheduler.state_dict(),
        }

    def _save(self, *, background: bool = False) -> None:
        self._finish_saving(wait=True)
        self._commit_ledger()
        self._saving = checkpoint.Saving(
            self.checkpoints,
            self.step,
            self._state(self.step),
            self.world,
            config=self.identity,
            inputs={**self.inputs, "ledger": self._ledger_head},
            facts={"step": self.step, "parallel": asdict(self.settings.parallel)},
            background=background,
        )
        self._finish_saving(wait=not background)

    def _finish_saving(self, *, wait: bool) -> None:
        """Put a checkpoint that is being written in its place; those beyond what is kept go then."""
        if self._saving is None or not self._saving.finish(wait=wait):
            return
        self._saving = None
        if self.world.main:
            saved = checkpoint.finished(self.checkpoints)
            unneeded = self.settings.train.unneeded_checkpoints(saved, self.last_exposures)
            checkpoint.remove(self.checkpoints, unneeded)

    def _commit_ledger(self) -> None:
        """Gather the records since the last checkpoint and write them as one part of the ledger."""
        if self.step == self._committed:
            return
        world = self.world
        windows, exposures = self.recorder.drain()
        gathered: list[Any] | None = [None] * world.size if world.main else None
        distributed.gather_object((world.data_rank, windows, exposures), gathered)
        owners: dict[int, tuple[Any, Any]] = {}
        for data_rank, one_windows, one_exposures in gathered or []:
            seen = owners.setdefault(data_rank, (one_windows, one_exposures))
            # Ranks that share a model replica read for themselves; they must have read the same.
            if not (seen[0].equals(one_windows) and seen[1].equals(one_exposures)):
                raise PlanViolation(f"ranks of data-parallel replica {data_rank} consumed different windows")
        head = [self._ledger_head]
        if world.main:
            head = [
                ledger.write_part(
                    self.ledger,
                    start=self._committed,
                    stop=self.step,
                    global_batch_size=self.settings.train.global_batch_size,
                    windows=[own[0] for own in owners.values()],
                    exposures=[own[1] for own in owners.values()],
                    previous=self._ledger_head,
                    plan=self.inputs["plan"],
                    order=self.inputs["order"],
                    skipped=[step for step in self._skipped if step >= self._committed],
                )
            ]
        distributed.broadcast_object_list(head)
        self._ledger_head, self._committed = head[0], self.step


def _forward(groups: int, batches: Iterator[Batch], gpt: Any) -> tuple[Tensor, Callable[..., Any]]:
    batch = next(batches)
    losses = gpt(
        batch.tokens, batch.position_ids, batch.unseen, labels=batch.labels, loss_mask=batch.loss_mask
    )
    return losses, partial(_loss, batch.loss_mask, batch.groups, groups)


def _loss(
    loss_mask_BT: Tensor, groups_BT: Tensor, groups: int, losses: Tensor | tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weighted sum of the losses, how many count, and for telemetry that and their plain sum, in all and by group.

    Args:
        loss_mask_BT: the weight of each target's loss, 0 where it does not count.
        groups_BT: the group of each target.
        groups: their number; 0: tell the sum of each window instead.
        losses: of each target, (B, T), or the weighted sum, and those of each without weights.
    """
    whole, losses_BT = losses if isinstance(losses, tuple) else (None, losses)
    total = (losses_BT.float() * loss_mask_BT).sum() if whole is None else whole
    counted_BT = (loss_mask_BT != 0).float()
    plain_BT = losses_BT.detach().float() * counted_BT
    if not groups:
        return total, counted_BT.sum().to(torch.int), {"loss": plain_BT.sum(1)}
    by_group = torch.zeros(2, groups, device=total.device)
    by_group.index_add_(1, groups_BT.flatten(), torch.stack([plain_BT.flatten(), counted_BT.flatten()]))
    count = counted_BT.sum()
    told = torch.cat([torch.stack([plain_BT.sum(), count]), by_group.flatten()])
    return total, count.to(torch.int), {"loss": told}
