"""Telemetry: a live line, a JSONL file, W&B and TensorBoard; and ``torch.profiler`` traces of chosen steps."""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import ProfileConfig
from palimpsest.pretrain.hooks import Hook

if TYPE_CHECKING:
    from palimpsest.pretrain.trainer import Trainer

log = logging.getLogger(__name__)


def finite(value: Any) -> Any:
    """A record with None for NaN and infinity, which JSON does not have; in lists, too."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Writer(Hook):
    """Base class of telemetry writers, which receive one record per step."""

    def after_step(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Write the record as JSON has it."""
        self.write(finite(record))

    def write(self, record: dict[str, Any]) -> None:
        """Receive a record, whose ``step`` counts finished steps."""


class JsonLines(Writer):
    """Writer that appends records to a file; on resume, records beyond the checkpoint are removed.

    Args:
        path: path of the file.
        step: finished steps at the start; later records are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        lines = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the process died in the middle of the last line
                    break
                if record["step"] <= step:
                    lines.append(line + "\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.tmp")
        aside.write_text("".join(lines), encoding="utf-8")
        aside.replace(path)  # a kill in the middle of this loses nothing
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Live(Writer):
    """Writer of a live line on a terminal, or of a plain line every few seconds in a log."""

    def __init__(self, title: str, first: int, steps: int) -> None:
        self.title, self.first, self.steps = title, first, steps
        self.started = time.monotonic()
        self.said = self.started
        self.terminal = sys.stderr.isatty()

    def write(self, record: dict[str, Any]) -> None:
        """Show step, loss, speed, memory and time left."""
        now, step = time.monotonic(), record["step"]
        last = step == self.steps
        if now - self.said < (0.2 if self.terminal else 10) and not last:
            return
        self.said = now
        left = (now - self.started) / max(step - self.first, 1) * (self.steps - step)
        share = f"  MFU {record['mfu']:.0%}" if record.get("mfu") is not None else ""
        loss = "skipped" if record["loss"] is None else f"loss {record['loss']:.3f}"
        line = (
            f"{self.title}: step {step}/{self.steps}  {loss}  "
            f"{record['tokens_per_second']:,.0f} tokens/s{share}  {record['memory_gib']:.1f} GiB  "
            f"{int(left) // 60} min {int(left) % 60:02d} s left"
        )
        sys.stderr.write(f"\r\033[K{line}" + ("\n" if last else "") if self.terminal else line + "\n")
        sys.stderr.flush()


class WeightsAndBiases(Writer):
    """Writer to W&B; a resumed run continues the same W&B run, whose id is stored in ``wandb_id.txt``.

    Args:
        mode: ``offline`` needs neither account nor network.
        name: name of the run.
        config: settings to show.
        where: directory of the run.
        project: project of W&B.
        entity: user or team; None: the account's default.
        group: group of runs; None: no group.
    """

    def __init__(
        self,
        mode: Literal["offline", "online"],
        name: str,
        config: dict[str, Any],
        where: Path,
        project: str = "palimpsest",
        entity: str | None = None,
        group: str | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"wandb={mode}, but the package wandb is not installed; pip install -e '.[wandb]' or wandb=off"
            ) from None
        id_file = where / "wandb_id.txt"
        if not id_file.is_file():
            where.mkdir(parents=True, exist_ok=True)
            id_file.write_text(f"{uuid.uuid4().hex[:16]}\n", encoding="utf-8")
        self._run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            name=name,
            mode=mode,
            config=config,
            dir=str(where),
        )

    def write(self, record: dict[str, Any]) -> None:
        """Log one record."""
        self._run.log(record, step=record["step"])

    def keep(self, directory: Path, kind: str) -> None:
        """Upload a directory as an artefact of this kind.

        Args:
            directory: finished files.
            kind: what it is, such as ``report``.
        """
        import wandb

        artifact = wandb.Artifact(f"{self._run.name}-{kind}", type=kind)
        artifact.add_dir(str(directory))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Finish the run at W&B."""
        self._run.finish()


class TensorBoard(Writer):
    """Writer of TensorBoard event files, with numbers only."""

    def __init__(self, where: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "tensorboard=true, but the package tensorboard is not installed; pip install -e '.[tensorboard]' or "
                "tensorboard=false"
            ) from None
        # What an earlier process wrote beyond the checkpoint is hidden.
        self._writer = SummaryWriter(str(where), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Log the numbers of one record."""
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write buffered records and close."""
        self._writer.close()


def peak_memory(device: Any) -> float:
    """Peak memory of this process, GiB: allocated on its GPU if it computes on one, otherwise main memory."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 2**20 if sys.platform != "darwin" else kilobytes / 2**30


class Profile(Hook):
    """Hook that traces the steps from ``profile.steps[0]`` to ``profile.steps[1]`` with ``torch.profiler``.

    Args:
        settings: the steps.
        directory: gets ``steps_<first>-<last>.json``, to be opened in https://ui.perfetto.dev or chrome://tracing.
    """

    def __init__(self, settings: ProfileConfig, directory: Path) -> None:
        self.steps, self.directory = settings.steps, directory
        self._recording: Any = None

    def before_step(self, step: int) -> None:
        """A step begins; the first is 1."""
        if self.steps and step == self.steps[0]:
            from torch.profiler import profile

            self._recording = profile()
            self._recording.start()

    def after_step(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Write the trace after the last step of the range."""
        if self._recording is not None and trainer.step == self.steps[1]:
            self._recording.stop()
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self.directory / f"steps_{self.steps[0]}-{self.steps[1]}.json"
            self._recording.export_chrome_trace(str(path))
            self._recording = None
            log.info("profile of steps %d to %d: %s", *self.steps, path)
