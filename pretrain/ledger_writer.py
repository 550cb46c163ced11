"""Hook that writes the ledger of all ranks, one part per checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.insertion import ledger
from palimpsest.insertion.ledger import PlanViolation, Recorder
from palimpsest.pretrain.hooks import Hook
from palimpsest.pretrain.parallel import World


class LedgerWriter(Hook):
    """Hook that gathers the ranks' records before each checkpoint and writes them as one part of the ledger.

    Args:
        directory: directory of the ledger.
        recorder: recorder of this rank.
        world: this process's rank and groups.
        global_batch_size: windows per step.
        inputs: digests of ``plan`` and ``order``.
        skipped: list of skipped steps, which grows during training.
    """

    def __init__(
        self,
        directory: Path,
        recorder: Recorder,
        world: World,
        *,
        global_batch_size: int,
        inputs: Mapping[str, str],
        skipped: list[int],
    ) -> None:
        self.directory, self.recorder, self.world = directory, recorder, world
        self.global_batch_size, self.inputs, self.skipped = global_batch_size, inputs, skipped
        self._committed = 0
        """Number of finished steps in the ledger."""
        self._head = ""
        """Digest of the last part."""

    def begin_at(self, step: int, head: str) -> None:
        """Resume: set the last committed step and part.

        Args:
            step: finished steps.
            head: digest of the ledger's last part at that step; empty for another run's checkpoint.
        """
        self._committed, self._head = step, head

    def discard_beyond(self, step: int) -> None:
        """Delete the parts that an interrupted run wrote after its last checkpoint.

        Every rank may call it. Only the main rank deletes, and the others do not wait for it.

        Args:
            step: number of finished steps at the last checkpoint, where a part ends; parts that end later are deleted.
                -1: all parts.
        """
        if self.world.main:
            ledger.discard_beyond(self.directory, step)

    def before_checkpoint(self, step: int) -> Mapping[str, str]:
        """Write the part of the windows consumed since the last checkpoint; returns the digest of the ledger's last
        part.
        """
        if step != self._committed:
            self._commit(step)
        return {"ledger": self._head}

    def _commit(self, step: int) -> None:
        windows, exposures = self.recorder.drain()
        gathered = self.world.gather_on_main((self.world.data_rank, windows, exposures))
        by_replica: dict[int, tuple[Any, Any]] = {}
        for data_rank, one_windows, one_exposures in gathered:
            first = by_replica.setdefault(data_rank, (one_windows, one_exposures))
            # Ranks that share a model replica read for themselves; they must have read the same.
            if not (first[0].equals(one_windows) and first[1].equals(one_exposures)):
                raise PlanViolation(
                    f"ranks of data-parallel replica {data_rank} consumed different windows; this is a bug"
                )
        head = self._head
        if self.world.main:
            head = ledger.write_part(
                self.directory,
                start=self._committed,
                stop=step,
                global_batch_size=self.global_batch_size,
                windows=[one[0] for one in by_replica.values()],
                exposures=[one[1] for one in by_replica.values()],
                previous=self._head,
                plan=self.inputs["plan"],
                order=self.inputs["order"],
                skipped=[one for one in self.skipped if one >= self._committed],
            )
        self._head, self._committed = self.world.broadcast(head), step
