"""The list of runs: ``python launch/runs.py`` prints every run in ``runs/``, with state, step, loss, verdict and size.

``python launch/runs.py prune`` lists files that finished runs no longer need: all scored checkpoints but the first and
the last, and unfinished directories of killed programs. ``remove=quickstart/run-1a2b3c4d`` lists a whole run. Only with
``yes=true`` are the listed files deleted. ``runs=DIRECTORY`` names another directory of runs, ``experiment=NAME``
selects one experiment.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion import plan as plans
from palimpsest.launch.process import say
from palimpsest.launch.program import plain
from palimpsest.pretrain import saved
from palimpsest.pretrain.saved import parse

NOT_RUNS = ("corpora", "sweeps")
_KEYS = ("runs", "experiment", "remove", "yes")
_PAIR = ("perturbed", "twin")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """State of a run on disk."""

    directory: Path
    state: str
    """``planned``, ``training``, ``stopped``, ``trained``, ``scored``, ``finished``, or ``damaged``."""
    step: int
    """Finished steps of the perturbed run, from its log."""
    steps: int
    """Number of steps of the complete run."""
    loss: float | None
    verdict: str
    size: int
    """Size on disk, bytes."""

    @property
    def name(self) -> str:
        """``experiment/name-digest``."""
        return f"{self.directory.parent.name}/{self.directory.name}"


def held(path: Path) -> bool:
    """True if a process, on any machine that shares the file system, holds a lock; the lock is not acquired."""
    if not path.is_file():
        return False
    layout = "hhqqi4x"  # struct flock of 64-bit Linux
    with path.open("rb") as file:  # asking needs no permission to write
        asked = struct.pack(layout, fcntl.F_WRLCK, 0, 0, 0, 0)
        return bool(struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)


def _last_line(directory: Path) -> tuple[int, float | None]:
    """Step and loss of the last whole line of ``metrics.jsonl``."""
    path = directory / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for line in reversed(lines):
        if (record := parse(line)) is not None:  # else one that is being written, or is damaged
            return record["step"], record["loss"]
    return 0, None


def _verdict(report: Path) -> str | None:
    """The verdict of a report with its caveats; None if its summary is missing or damaged."""
    try:
        summary = json.loads((report / "summary.json").read_bytes())
        parts = [summary["verdict"], *summary.get("caveats", ())]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return ", ".join(parts) if all(isinstance(word, str) for word in parts) else None


def entry(directory: Path) -> Entry:
    """State of a run, from its directory."""
    step, loss = _last_line(directory / "perturbed")
    size = sum(
        path.lstat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink()
    )
    steps, state, verdict = 0, "planned", ""
    try:
        steps = plans.read(directory / "plan").manifest.config["run"]["steps"]
    except UserError:
        state = "damaged"
    scored = any((place / artifact.MANIFEST).is_file() for place in directory.glob("scores/perturbed/step_*"))
    if any(held(directory / which / ".lock") for which in _PAIR):
        state = "training"
    elif (directory / "report" / artifact.MANIFEST).is_file():
        read = _verdict(directory / "report")
        state = "damaged" if read is None else "finished"
        verdict = "report/summary.json is damaged" if read is None else read
    elif scored:
        state = "scored"
    elif step and state == "planned":
        state = "trained" if step >= steps else "stopped"
    return Entry(
        directory=directory, state=state, step=step, steps=steps, loss=loss, verdict=verdict, size=size
    )


def entries(runs: Path, experiment: str | None = None) -> list[Entry]:
    """All runs below a directory, by name.

    Raises:
        UserError: if there is no such directory or experiment.
    """
    if not runs.is_dir():
        raise UserError(f"there is no {runs}; give runs=DIRECTORY, or run launch/run.py first")
    places = {path.name: path for path in runs.iterdir() if path.is_dir() and path.name not in NOT_RUNS}
    if experiment is not None and experiment not in places:
        raise UserError(
            f"experiment={experiment}: {runs} has no such experiment{nearest(experiment, places)}"
        )
    chosen = [places[experiment]] if experiment else [places[name] for name in sorted(places)]
    return [
        entry(path)
        for place in chosen
        for path in sorted(place.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    ]


def spare(run: Entry) -> Iterator[Path]:
    """Checkpoints that can be deleted: audit, scores and report stay valid, but training cannot resume from them."""
    yield from artifact.abandoned(run.directory)
    for which in _PAIR:
        place = run.directory / which / "checkpoints"
        if run.state != "training":
            yield from sorted(place.glob(".*.tmp"))
        if run.state != "finished":
            continue
        saved = sorted(path for path in place.glob("step_*") if (path / artifact.MANIFEST).is_file())
        for path in saved[1:-1]:
            if (run.directory / "scores" / which / path.name / artifact.MANIFEST).is_file():
                yield path


def human(size: int) -> str:
    """Size as text, such as ``1.5 GB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def show(runs: Sequence[Entry]) -> None:
    """Print a line for each run; runs that are only planned are listed by name in one line."""
    planned = [one.name for one in runs if one.state == "planned"]
    runs = [one for one in runs if one.state != "planned"]
    rows = [("run", "state", "step", "loss", "verdict", "size")]
    rows += [
        (
            one.name,
            one.state,
            f"{one.step}/{one.steps or '?'}",
            "–" if one.loss is None else f"{one.loss:.3f}",
            one.verdict or "–",
            human(one.size),
        )
        for one in runs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if planned:
        say(f"planned, nothing trained: {', '.join(planned)}")


def _remove(path: Path) -> None:
    if path.parent.name == "checkpoints" and (number := re.fullmatch(r"step_(\d+)", path.name)):
        saved.remove(path.parent, [int(number[1])])  # which the audit is to know of
        return
    # Under another name first: what is deleted by half must not look whole.
    gone = path.with_name(f".{path.name}.old")
    path.rename(gone)
    shutil.rmtree(gone)


def delete(paths: Sequence[Path], *, really: bool) -> None:
    """Delete directories, or only print their names."""
    total = 0
    for path in paths:
        size = sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
        total += size
        say(f"{path}  {human(size)}")
        if really:
            _remove(path)
    if not paths:
        say("nothing to remove")
    elif really:
        say(f"removed {human(total)}")
    else:
        say(f"{human(total)} would be removed; add yes=true to remove them")


def _asked(arguments: Sequence[str]) -> tuple[bool, Mapping[str, str]]:
    wanted = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument == "prune":
            continue
        if key not in _KEYS or not equals:
            raise UserError(f"{argument}: there is no such setting{nearest(key, [*_KEYS, 'prune'])}")
        wanted[key] = value
    if wanted.get("yes", "true") != "true":
        raise UserError(f"yes={wanted['yes']}: write yes=true, or leave it out")
    if "yes" in wanted and "prune" not in arguments and "remove" not in wanted:
        raise UserError("yes=true needs something to delete; add prune, or remove=EXPERIMENT/RUN")
    return "prune" in arguments, wanted


def work(arguments: Sequence[str]) -> int:
    """List the runs, or prune or remove some of them, as the command line says."""
    prune, wanted = _asked(arguments)
    runs = Path(wanted.get("runs", "runs"))
    listed = entries(runs, wanted.get("experiment"))
    really = "yes" in wanted
    if name := wanted.get("remove"):
        named = {one.name: one for one in listed}
        if name not in named:
            raise UserError(f"remove={name}: there is no such run{nearest(name, named)}")
        if named[name].state == "training":
            raise UserError(f"remove={name}: it is being trained; stop that first")
        delete([named[name].directory], really=really)
    elif prune:
        left = [] if "experiment" in wanted else list(artifact.abandoned(runs / "corpora"))
        delete([*left, *(path for one in listed for path in spare(one))], really=really)
    else:
        show(listed)
    return 0


def main() -> None:
    """Run the program."""
    plain(__doc__, work)


if __name__ == "__main__":
    main()
