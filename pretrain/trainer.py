"""The training loop: megatron-core's schedules with batches, ledger, checkpoints and hooks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from torch import Tensor, distributed

from palimpsest.data.mixture import Windows
from palimpsest.insertion.ledger import Recorder
from palimpsest.insertion.overlay import Overlay
from palimpsest.insertion.plan import Plan
from palimpsest.pretrain import checkpoint, chunks, estimate, losses, optim
from palimpsest.pretrain.batches import Batches, Groups, positions_of
from palimpsest.pretrain.checkpointing import Checkpointer
from palimpsest.pretrain.config import padded_vocabulary
from palimpsest.pretrain.hooks import Hook
from palimpsest.pretrain.huggingface import mapping
from palimpsest.pretrain.interrupts import Interrupted
from palimpsest.pretrain.ledger_writer import LedgerWriter
from palimpsest.pretrain.non_finite import NonFiniteGuard
from palimpsest.pretrain.parallel import World
from palimpsest.pretrain.routing import Routing
from palimpsest.pretrain.settings import Settings
from palimpsest.pretrain.telemetry import peak_memory

log = logging.getLogger(__name__)


class Trainer:
    """One run, perturbed or twin, on this rank.

    Args:
        settings: model, optimizer, schedule and topology.
        world: this process's rank and groups.
        order: windows of the corpus.
        plan: the plan, or None for the twin.
        vocab_size: size of the tokenizer's vocabulary.
        last_exposures: for each arm with exposures, the number of finished steps once its last exposure has been
            consumed; a twin gets those of the perturbed run.
        directory: directory of the run, with ``checkpoints/`` and ``ledger/``.

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
        train, parallel = settings.train, settings.parallel
        parallel.check(world.size, settings.model, train)
        order.require(train.windows)
        self.settings, self.world = settings, world
        inputs = {"order": order.identity, "plan": plan.digest if plan else ""}
        self.start = None if train.start_from is None else Path(train.start_from)
        if self.start is not None:
            inputs["start"] = checkpoint.read(self.start.parent, train.begin).digest
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
            context=(world.context_rank, parallel.context),
        )
        # Weights that a checkpoint brings are neither drawn nor read from elsewhere.
        self._resumes = checkpoint.newest(directory / "checkpoints", world)
        self._weights_set = self._resumes is None and self.start is None
        weights = settings.model.weights and self._weights_set
        built = chunks.build(
            *(settings, world, vocab_size),
            start=mapping.read(settings.model, vocab_size) if weights else None,
            drawn=self._weights_set,
        )
        self.chunks = chunks.distributed(built, settings, world)
        """This rank's virtual pipeline stages, in the order of the layers."""
        self.routing = Routing(self.chunks, settings.model, world.device)
        self.optimizer, self.scheduler = optim.build(
            self.chunks, settings.optimizer, train, distributed=settings.shards_optimizer(world.data_size)
        )
        self.forward_backward = chunks.schedule(self.chunks, self.optimizer, settings, world)
        self.non_finite = NonFiniteGuard(directory / "non_finite.json", train, writes=world.main)
        self.ledger = LedgerWriter(
            directory / "ledger",
            self.recorder,
            world,
            global_batch_size=train.global_batch_size,
            inputs=inputs,
            skipped=self.non_finite.skipped,
        )
        self.checkpointer = Checkpointer(
            directory / "checkpoints",
            settings,
            world,
            chunks=self.chunks,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            identity=settings.identity(vocab_size),
            inputs=inputs,
            last_exposures=last_exposures,
        )
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        peak = estimate.peak_flops(name)
        self.peak = None if peak is None else peak * world.size
        """Peak FLOP/s of all ranks together; None if unknown, as for CPUs."""
        self.flops_a_token = estimate.flops_per_token(
            settings.model, padded_vocabulary(settings.model.rows(vocab_size)), train.sequence_length
        )
        self.step = 0
        """Finished steps."""

    def resume(self) -> int:
        """Resume from the last finished checkpoint, or write the first one.

        Returns:
            Number of finished steps.

        Raises:
            UserError: if the checkpoint is damaged or belongs to another configuration, corpus or plan.
        """
        step = self._resumes
        if step is None:
            self.ledger.discard_beyond(-1)
            if self.start is not None:
                self.step = self.checkpointer.start_from(self.start)
                self._weights_set = True
                self.ledger.begin_at(self.step, "")
            self._save([self.ledger])
            return self.step
        manifest = self.checkpointer.load(step)
        self.ledger.discard_beyond(step)
        self.ledger.begin_at(step, manifest.inputs["ledger"])
        self.step, self._weights_set = step, True
        return step

    def run(self, hooks: Sequence[Hook] = (), until: int | None = None) -> None:
        """Train to the end (or to ``until`` finished steps), checkpointing on the way.

        Args:
            hooks: called around each step and checkpoint, in this order, after the ledger's; closed at the end.
            until: finished steps to stop at.

        Raises:
            Interrupted: after saving, if a hook of any rank asked to stop.
            PlanViolation: if a batch differs from the plan; the step is not taken.
            NonFinite: if loss or gradient is NaN or infinite and such steps are not skipped; the step is not taken.
        """
        if not self._weights_set:
            raise RuntimeError("the directory has checkpoints: call resume() first")
        hooks = [self.ledger, *hooks]
        try:
            self._run(hooks, self.settings.train.end if until is None else until)
        finally:
            for hook in hooks:
                hook.close()

    def _run(self, hooks: Sequence[Hook], until: int) -> None:
        train = self.settings.train
        while self.step < until:
            began = time.monotonic()
            for hook in hooks:
                hook.before_step(self.step + 1)
            asked = any(hook.stop_requested() for hook in hooks)
            means, norm, stop = self._train_step(asked)
            self.step += 1
            record = self._record(means, norm, time.monotonic() - began)
            for hook in hooks:
                hook.after_step(self, record)
            if self.step in self.checkpointer.due or stop:
                self._save(hooks, background=train.checkpoint_async and not stop)
            else:
                self.checkpointer.finish(wait=False)
            if stop and self.step < train.end:
                raise Interrupted(
                    f"told to stop: saved step {self.step}; run the same command again to go on"
                )
        self.checkpointer.finish(wait=True)
        self.world.barrier()

    def _record(self, means: dict[str, Any], norm: float, seconds: float) -> dict[str, Any]:
        """Figures of the step that was just finished, by name."""
        train = self.settings.train
        tokens = train.global_batch_size * train.sequence_length
        speed = tokens / seconds
        return {
            "step": self.step,
            **means,
            "tokens": self.step * tokens,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm,
            **({"skipped": True} if self.non_finite.skipped[-1:] == [self.step - 1] else {}),
            "tokens_per_second": speed,
            "mfu": None if self.peak is None else speed * self.flops_a_token / self.peak,
            "memory_gib": peak_memory(self.world.device),
        }

    def _save(self, hooks: Sequence[Hook], *, background: bool = False) -> None:
        """Write a checkpoint whose manifest names the digests that the hooks give."""
        digests: dict[str, str] = {}
        for hook in hooks:
            digests |= hook.before_checkpoint(self.step)
        self.checkpointer.save(self.step, digests, background=background)

    def _train_step(self, stop: bool) -> tuple[dict[str, Any], float, bool]:
        """One step over the global batch.

        Args:
            stop: true if this rank was told to stop.

        Returns:
            Mean losses (nats/token) by name, with the routing of tokens to experts; the gradient norm before clipping;
            and true if any rank was told to stop.
        """
        world = self.world
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        parts = self._forward_backward(1 + len(self.groups.names), forward_only=False)
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
        figures = {"loss": sums[0] / sums[1], "gradient norm": norm}
        accepted = self.non_finite.accepts(self.step, figures, self._losses_by_window)
        # The schedule counts the step that is being taken: the first has a rate above 0, the last the lowest.
        self.scheduler.step(increment=self.settings.train.global_batch_size)
        if accepted:
            self._update(norm)
        return losses.by_group(sums, self.groups.names) | self.routing.take(), norm, stopped > 0

    def _forward_backward(self, groups: int, *, forward_only: bool) -> list[dict[str, Tensor]]:
        """Run the global batch through the model; returns the results of ``losses.loss`` on the last stage."""
        train = self.settings.train
        parts: list[dict[str, Tensor]] = self.forward_backward(
            forward_step_func=partial(losses.forward, groups),
            # Each virtual stage asks for the batches; they are read once.
            data_iterator=list(tee(self.batches.step(self.step, record=not forward_only), len(self.chunks))),
            model=self.chunks,
            num_microbatches=train.global_batch_size // (train.micro_batch_size * self.world.data_size),
            seq_length=train.sequence_length,
            micro_batch_size=train.micro_batch_size,
            forward_only=forward_only,
        )
        return parts

    def _update(self, norm: float) -> None:
        """Clip gradients of this norm, and take the optimizer's step."""
        limit = self.settings.optimizer.clip_grad
        if limit:
            clip_grad_by_total_norm_fp32(optim.updated(self.optimizer), max_norm=limit, total_norm=norm)
        self.optimizer.step_with_ready_grads()

    def _losses_by_window(self) -> list[float]:
        """Sum of losses of each window of the step, in training order, on every rank.

        The windows are read a second time; the ledger has them once.
        """
        train, world = self.settings.train, self.world
        with torch.no_grad():
            parts = self._forward_backward(0, forward_only=True)
        sums = torch.zeros(train.global_batch_size, device=world.device, dtype=torch.float64)
        if world.last_stage and world.tensor_rank == 0:
            read = positions_of(self.step, train, world.data_rank, world.data_size)
            for positions, part in zip(read, parts, strict=True):
                rows = torch.from_numpy(positions - self.step * train.global_batch_size)
                sums[rows] = part["loss"].double()
        distributed.all_reduce(sums)
        return list(sums.tolist())
