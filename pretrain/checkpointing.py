"""Checkpoints of one run: their schedule, their contents, and resuming from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from palimpsest.data.artifact import Manifest, differences
from palimpsest.data.errors import UserError
from palimpsest.pretrain import checkpoint, optim
from palimpsest.pretrain.parallel import World
from palimpsest.pretrain.settings import MAY_DIFFER, Settings, without


class Checkpointer:
    """Saving and loading of weights, optimizer and schedule of one run.

    Args:
        directory: directory of the run's checkpoints.
        settings: settings of the training.
        world: this process's rank and groups.
        chunks: the model's chunks on this rank, each in megatron-core's ``DistributedDataParallel``.
        optimizer: megatron-core's optimizer.
        scheduler: megatron-core's learning-rate scheduler.
        identity: settings that determine the result.
        inputs: digests of the run's inputs.
        last_exposures: for each arm with exposures, the number of finished steps once its last exposure has been
            consumed; a twin gets those of the perturbed run.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        world: World,
        *,
        chunks: Sequence[Any],
        optimizer: Any,
        scheduler: Any,
        identity: dict[str, Any],
        inputs: dict[str, str],
        last_exposures: Sequence[int],
    ) -> None:
        self.directory, self.settings, self.world = directory, settings, world
        self.chunks, self.optimizer, self.scheduler = chunks, optimizer, scheduler
        self.identity, self.inputs, self.last_exposures = identity, inputs, last_exposures
        self.due = frozenset(settings.train.checkpoint_steps(last_exposures))
        """Finished steps after which a checkpoint is written."""
        self._saving: checkpoint.Saving | None = None

    def load(self, step: int) -> Manifest:
        """Load weights, optimizer and schedule from this run's checkpoint.

        Raises:
            UserError: if the checkpoint is damaged or belongs to another configuration, corpus or plan.
        """
        path = checkpoint.path_of(self.directory, step)
        manifest = checkpoint.read(self.directory, step)
        checkpoint.require_same(path, manifest, self.identity, self.inputs)
        checkpoint.require_whole(path, manifest, self.world)
        scheduler = self._load(self.directory, step)
        if scheduler is not None:
            self.scheduler.load_state_dict(scheduler)
        self.world.barrier()
        return manifest

    def start_from(self, path: Path) -> int:
        """Start this run from another run's checkpoint; returns the finished steps.

        Raises:
            UserError: if the two runs differ in more than insertions, windows, length and learning rates.
        """
        step = self.settings.train.begin
        manifest = checkpoint.read(path.parent, step)
        own, theirs = without(self.identity, MAY_DIFFER), without(manifest.config, MAY_DIFFER)
        differing = differences(replace(manifest, config=theirs), config=own, inputs=manifest.inputs)
        if differing:
            raise UserError(f"train.start_from={path} does not fit this run: {'; '.join(differing)}")
        checkpoint.require_whole(path, manifest, self.world)
        self._load(path.parent, step)
        # The schedule is this run's own, at the place that the step has in it.
        self.scheduler.step(increment=step * self.settings.train.global_batch_size)
        return step

    def save(
        self,
        step: int,
        digests: Mapping[str, str],
        *,
        background: bool = False,
        facts: Mapping[str, Any] = MappingProxyType({}),
        weights_only: bool = False,
    ) -> None:
        """Write a checkpoint after ``step`` finished steps; every rank calls this.

        Args:
            step: finished steps.
            digests: digests of the hooks' files of this step, for the manifest.
            background: return while other processes write.
            facts: further facts for the manifest.
            weights_only: leave out the optimizer and the schedule; training cannot go on from such a checkpoint.
        """
        self.finish(wait=True)
        self._saving = checkpoint.Saving(
            self.directory,
            step,
            self._state(0 if weights_only else step),
            self.world,
            config=self.identity,
            inputs={**self.inputs, **digests},
            facts={"step": step, "parallel": asdict(self.settings.parallel), **facts},
            background=background,
        )
        self.finish(wait=not background)

    def finish(self, *, wait: bool) -> None:
        """Finish a checkpoint being written, and delete older ones that ``train.checkpoint_keep`` drops."""
        if self._saving is None or not self._saving.finish(wait=wait):
            return
        self._saving = None
        if self.world.main:
            saved = checkpoint.finished(self.directory)
            checkpoint.remove(
                self.directory, self.settings.train.deletable_checkpoints(saved, self.last_exposures)
            )

    def gather_weights(self) -> None:
        """Wait until this rank's weights are those of the last step; every rank calls this.

        With ``parallel.overlap`` and a distributed optimizer they would otherwise be gathered in the next forward pass.
        """
        for chunk in self.chunks:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)

    def _state(self, step: int, *, loading: bool = False) -> dict[str, Any]:
        """Sharded state dict of a checkpoint. At step 0 it has only weights, because Adam has no state before its first
        step.
        """
        self.gather_weights()
        sharded = {number: chunk.module.sharded_state_dict() for number, chunk in enumerate(self.chunks)}
        if step == 0:
            return {"model": sharded}
        state = optim.state_to_load if loading else optim.state
        return {
            "model": sharded,
            "optimizer": state(self.optimizer, sharded),
            "scheduler": self.scheduler.state_dict(),
        }

    def _load(self, directory: Path, step: int) -> dict[str, Any] | None:
        """Load weights and optimizer from a checkpoint; returns the state of the schedule."""
        state = checkpoint.load(directory, step, self._state(step, loading=True))
        for number, chunk in enumerate(self.chunks):
            chunk.module.load_state_dict(state["model"][number])
        if step:
            optim.load_state(self.optimizer, state["optimizer"])
        else:
            self.optimizer.reload_model_params()
        scheduler: dict[str, Any] | None = state.get("scheduler")
        return scheduler
