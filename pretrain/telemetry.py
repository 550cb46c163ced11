"""What a run says while it goes: a live line, a JSONL file, and W&B when asked."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from data.errors import UserError

log = logging.getLogger(__name__)


class Writer(Protocol):
    """Receives one record a step."""

    def write(self, record: dict[str, Any]) -> None:
        """Take a record; its ``step`` counts finished steps."""

    def close(self) -> None:
        """Flush."""


class JsonLines:
    """Appends records to a file; on resume, records beyond the checkpoint are cut off first.

    Args:
        path: of the file.
        step: finished steps at the start; later records are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the process died in the middle of the last line
                    break
                if record["step"] <= step:
                    kept.append(line + "\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.tmp")
        aside.write_text("".join(kept), encoding="utf-8")
        aside.replace(path)  # a kill in the middle of this loses nothing
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Live:
    """A line that is rewritten on a terminal, or a plain line every few seconds in a log."""

    def __init__(self, title: str, first: int, steps: int) -> None:
        self.title, self.first, self.steps = title, first, steps
        self.started = time.monotonic()
        self.said = self.started
        self.terminal = sys.stderr.isatty()

    def write(self, record: dict[str, Any]) -> None:
        """Show step, loss, speed and time left."""
        now, step = time.monotonic(), record["step"]
        last = step == self.steps
        if now - self.said < (0.2 if self.terminal else 10) and not last:
            return
        self.said = now
        left = (now - self.started) / max(step - self.first, 1) * (self.steps - step)
        line = (
            f"{self.title}: step {step}/{self.steps}  loss {record['loss']:.3f}  "
            f"{record['tokens_per_second']:,.0f} tokens/s  {int(left) // 60} min {int(left) % 60:02d} s left"
        )
        sys.stderr.write(f"\r\033[K{line}" + ("\n" if last else "") if self.terminal else line + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Nothing to flush."""


class WeightsAndBiases:
    """W&B; ``offline`` needs neither account nor network."""

    def __init__(
        self, mode: Literal["offline", "online"], name: str, config: dict[str, Any], where: Path
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"wandb={mode}, but the package wandb is not installed; pip install -e '.[wandb]' or wandb=off"
            ) from None
        self._run = wandb.init(project="palimpsest", name=name, mode=mode, config=config, dir=str(where))

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

        kept = wandb.Artifact(f"{self._run.name}-{kind}", type=kind)
        kept.add_dir(str(directory))
        self._run.log_artifact(kept)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
