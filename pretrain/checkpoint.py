"""Checkpoints written by megatron-core's ``dist_checkpointing``, atomically and with the identity of their run.

A checkpoint is an artefact directory ``step_<number>``. It is written under a temporary name; its manifest, which
comes last, names the configuration, the order, the plan and the last part of the ledger.
"""

from __future__ import annotations

import collections
import logging
import multiprocessing
import pickle
import queue
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PosixPath
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch.distributed.checkpoint import FileSystemReader, filesystem, metadata, planner
from torch.distributed.checkpoint import load as load_plain
from torch.distributed.checkpoint.api import CheckpointException

from palimpsest.data import artifact
from palimpsest.data.artifact import Manifest
from palimpsest.data.errors import UserError
from palimpsest.pretrain import engine, environment
from palimpsest.pretrain.parallel import World
from palimpsest.pretrain.saved import KIND, VERSION, finished, path_of, read, remove, removed

__all__ = [
    "Saving",
    "finished",
    "load",
    "newest",
    "path_of",
    "read",
    "remove",
    "removed",
    "require_same",
    "save",
    "tensors",
]

log = logging.getLogger(__name__)


def require_whole(directory: Path, manifest: Manifest, world: World | None = None) -> None:
    """Check every file of a checkpoint.

    Args:
        directory: directory of the checkpoint.
        manifest: its manifest.
        world: this process's rank and groups if all ranks call this, each of which then reads its share of the files.

    Raises:
        UserError: on every rank, naming a file that is missing or differs, such as after an interrupted copy.
    """
    problem = None
    try:
        if world is None:
            artifact.verify(directory, manifest)
        else:
            artifact.verify(directory, manifest, part=world.rank, parts=world.size)
    except UserError as error:
        problem = str(error)
    problems = [problem] if world is None else world.gather(problem)
    if first := next((one for one in problems if one is not None), None):
        raise UserError(
            f"{first.split(';')[0]}; copy the checkpoint again, or delete {directory}: training goes on from the "
            "one before"
        )


def require_same(directory: Path, manifest: Manifest, config: dict[str, Any], inputs: dict[str, str]) -> None:
    """Check that a checkpoint belongs to this configuration, corpus, tokenizer and plan.

    Raises:
        UserError: naming what differs.
    """
    inputs = {**inputs, "ledger": manifest.inputs["ledger"]}
    differing = artifact.differences(manifest, config=config, inputs=inputs)
    if differing:
        raise UserError(
            f"checkpoint {directory} belongs to another run ({'; '.join(differing)}); "
            "choose another name=... or remove the old run"
        )


def newest(directory: Path, world: World) -> int | None:
    """Finished steps of a run's last checkpoint; None if there is none. Every rank calls this."""
    # One rank looks: directories may appear later elsewhere, and ranks that disagree would wait for each other.
    steps: list[int] = world.broadcast(finished(directory) if world.main else None)
    return steps[-1] if steps else None


class Saving:
    """A checkpoint being written. All ranks create and finish it; the previous checkpoint stays in place.

    Args:
        directory: directory of the run's checkpoints.
        step: finished steps.
        state: sharded state dict.
        world: this process's rank and groups.
        config: settings that determine the result.
        inputs: digests of order, plan and ledger.
        facts: facts for the manifest.
        background: let other processes write a copy of the state while training continues.

    Raises:
        UserError: if the checkpoint cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        step: int,
        state: dict[str, Any],
        world: World,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        facts: Mapping[str, Any],
        background: bool = False,
    ) -> None:
        self.directory, self.step, self.world = directory, step, world
        self._manifest = {
            "config": config,
            "inputs": inputs,
            "facts": {**facts, "megatron_core": engine.NAME},
        }
        self._writers: AsyncCallsQueue | None = None
        self._digests: Future[dict[str, str]] | None = None
        name = None
        if world.main:
            directory.mkdir(parents=True, exist_ok=True)
            for stale in directory.glob(".*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
            # A new name each time: a writer that outlived its killed run must not write into this one's files.
            prefix = f".{path_of(directory, step).name}."
            name = tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=directory)
        self._draft = Path(world.broadcast(name))
        with self._explained():
            # megatron-core would start a process for this queue, which takes seconds, outlives a training that is
            # killed, and dies of the signal that asks it to stop.
            filesystem_async._results_queue = _answers() if background else queue.SimpleQueue()
            request = dist_checkpointing.save(
                state, str(self._draft), async_sharded_save=background, **engine.save_options()
            )
            if background:
                self._writers = AsyncCallsQueue()
                self._writers.schedule_async_request(request)

    def finish(self, *, wait: bool) -> bool:
        """Write the manifest and rename the checkpoint once its files are written; every rank calls this.

        Args:
            wait: wait for the files; otherwise return at once.

        Returns:
            True if this rank has nothing left to do.

        Raises:
            UserError: if the checkpoint could not be written.
        """
        with self._explained():
            if self._writers is not None:
                if not self._writers.maybe_finalize_async_calls(blocking=wait):
                    return False
                self._writers = None
            if self._digests is None:  # digests of a large checkpoint take as long as writing it
                thread = ThreadPoolExecutor(1)
                self._digests = thread.submit(self._digest_own)
                thread.shutdown(wait=False)
            if not (wait or self.world.all(self._digests.done())):
                return False
            digests = self.world.gather(self._digests.result())
            if self.world.main:
                known = {name: digest for own in digests for name, digest in own.items()}
                artifact.finish(self._draft, kind=KIND, schema_version=VERSION, known=known, **self._manifest)
                artifact.put_in_place(self._draft, path_of(self.directory, self.step))
            self.world.barrier()
            return True

    def _digest_own(self) -> dict[str, str]:
        """Digests of the tensor files that this rank wrote; the main rank adds those of all other files."""
        return artifact.digest_files(
            self._draft, sorted(path.name for path in self._draft.glob(f"__{self.world.rank}_*.distcp"))
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Report a failed write and delete the draft."""
        try:
            yield
        except (CheckpointException, OSError) as error:  # CheckpointException is no Exception
            free = shutil.disk_usage(self.directory).free / 2**30
            shutil.rmtree(self._draft, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {self.step} could not be written to {self.directory} ({free:.1f} GiB are "
                f"free): {_reason(error)}. The one before it is intact: make room and run the same command again"
            ) from None
        except BaseException:
            shutil.rmtree(self._draft, ignore_errors=True)
            raise


def save(directory: Path, step: int, state: dict[str, Any], world: World, **manifest: Any) -> None:
    """Write a checkpoint synchronously: ``Saving`` without ``background``."""
    Saving(directory, step, state, world, **manifest).finish(wait=True)


@cache
def _answers() -> Any:
    """Queue through which background writers report.

    Its process is forked, not spawned as megatron-core's would be: it shares the trainer's memory, ignores signals, and
    dies with the trainer (``parallel.start``).
    """
    return multiprocessing.get_context("fork").Manager().Queue()


def _reason(error: BaseException) -> str:
    """Innermost cause of an error, in one line."""
    causes = list(error.failures.values()) if isinstance(error, CheckpointException) else [error]
    cause = causes[0][0] if isinstance(causes[0], tuple) else causes[0]
    return " ".join(str(cause).split())


class _Harmless(pickle.Unpickler):
    """Unpickler that constructs only the classes of a checkpoint's index."""

    _KNOWN = (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata.TensorProperties,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata._MEM_FORMAT_ENCODING,
        planner.SavePlan,
        planner.TensorWriteData,
        planner.WriteItem,
        planner.WriteItemType,
        filesystem._StorageInfo,
        torch.Size,
        collections.OrderedDict,
        PosixPath,
    )

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of this name; raises ``UnpicklingError`` if it is not one of the harmless ones."""
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) == ("torch.serialization", "_get_layout"):
            return torch.serialization._get_layout
        for one in self._KNOWN:
            if (module, name) == (one.__module__, one.__qualname__):
                return one
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


_DAMAGED = (
    *(pickle.UnpicklingError, EOFError, OSError, ImportError, MemoryError),
    *(ValueError, TypeError, AttributeError, LookupError),
)
"""Exceptions raised on unpickling a damaged file."""


@contextmanager
def _harmless(path: Path) -> Iterator[None]:
    """Make reading a checkpoint safe: no code in it is run.

    PyTorch would unpickle the index, and objects beside the tensors, without any check.

    Raises:
        UserError: if the index contains other objects.
    """
    try:
        with (path / ".metadata").open("rb") as file:
            _Harmless(file).load()
    except FileNotFoundError:
        pass  # whoever reads says what is missing
    except _DAMAGED as error:
        raise UserError(
            f"{path / '.metadata'} is no index of a checkpoint ({error}): it is not read; copy the checkpoint again "
            "from where it was trained"
        ) from None
    with environment.variable("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1"):
        yield


def load(directory: Path, step: int, state: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint into the layout of ``state``, for any topology.

    Raises:
        UserError: if the checkpoint contains code, or a newer megatron-core wrote it.
    """
    path = path_of(directory, step)
    with _harmless(path):
        engine.require_readable(path)
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(path))
    return loaded


def tensors(path: Path, *, weights_only: bool = False) -> dict[str, torch.Tensor]:
    """Name -> unsharded tensor of a checkpoint; needs neither a model nor process groups.

    Args:
        path: path of the checkpoint.
        weights_only: leave the optimizer's state on disk.

    Raises:
        UserError: if the checkpoint contains code.
    """
    with _harmless(path), warnings.catch_warnings():
        reader = FileSystemReader(str(path))
        state = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, metadata.TensorStorageMetadata)
            and not (weights_only and name.startswith("optimizer."))
        }
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_plain(state, storage_reader=reader, no_dist=True)
    return state
