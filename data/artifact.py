"""Artefact directories: written atomically, each with a manifest of its settings, inputs and files.

Every stage writes one directory. It is filled under a temporary name beside its final one, gets its
``manifest.json`` last, is flushed to disk, and is then renamed. A directory without a manifest is unfinished
and is never read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from palimpsest.data.errors import UserError

MANIFEST = "manifest.json"
_MADE_BY = {
    "corpus": "launch/prepare.py",
    "plan": "launch/plan.py",
    "checkpoint": "launch/train.py",
    "scores": "launch/score.py",
    "audit": "launch/audit.py",
    "perturbed corpus": "launch/write_corpus.py",
}
_PACKAGES = ("torch", "megatron-core", "numpy", "tokenizers", "pyarrow", "polars", "scipy")


def json_digest(value: Any) -> str:
    """128-bit BLAKE2b digest (32 hex characters) of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """128-bit BLAKE2b digest (32 hex characters) of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Record of an artefact: its kind, settings, inputs, contents and origin."""

    kind: str
    """Kind of artefact: ``corpus``, ``plan``, ``checkpoint``, ``scores``, ``audit``, ``report``."""
    schema_version: int
    """Version of the schema, increased when a reader of the previous version would misread the files."""
    config: dict[str, Any]
    """The settings that determine the contents, as JSON values."""
    inputs: dict[str, str]
    """Name of each input artefact -> its digest."""
    contents: dict[str, str]
    """Relative path of each file -> its digest."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and other figures for readers of the manifest alone; covered by ``record``, not by ``digest``."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """Versions, platform, git commit; covered by ``record``, not by ``digest``."""

    @property
    def digest(self) -> str:
        """Identity of the artefact: its kind, settings and contents, independent of when and where it was made."""
        return json_digest([self.kind, self.schema_version, self.config, self.inputs, self.contents])

    @property
    def record(self) -> str:
        """Digest of the whole manifest, including facts and origin, so that these are checked as well."""
        return json_digest(json.loads(json.dumps(asdict(self))))  # as it is read: keys are texts


@cache
def provenance() -> dict[str, Any]:
    """Versions of Python and of the main packages, platform, and the git commit of this checkout."""
    versions: dict[str, str | None] = {}
    for package in ("palimpsest", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except (
            metadata.PackageNotFoundError
        ):  # palimpsest itself: a tree that is on the path, but not installed
            versions[package] = None
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    ours = git("rev-parse", "--show-toplevel") == str(
        root
    )  # not a repository that an installed package lies in
    return {
        "palimpsest": versions.pop("palimpsest"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git_commit": git("rev-parse", "HEAD") if ours else None,
        "git_dirty": ours and bool(git("status", "--porcelain", "--", ":/", ":(top,exclude)results")),
    }


@dataclass(slots=True)
class Draft:
    """An artefact being written: put files under ``path`` and figures into ``facts``."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    """Manifest of the artefact, set when the artefact is complete."""


@contextmanager
def _parent(directory: Path) -> Iterator[None]:
    """Create the parent directory of an artefact, and remove it again if the artefact was not written."""
    missing = [place for place in (directory.parent, *directory.parent.parents) if not place.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # others have put something there
            for place in missing:
                place.rmdir()
        raise


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Lock an artefact's directory, so that other writers wait.

    Files left by a killed writer are removed. The lock, ``.<name>.lock`` beside the directory, is released by the
    system when its holder dies, on any machine that shares the file system.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    path = directory.with_name(f".{directory.name}.lock")
    while True:
        with path.open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # the last holder removed it while this one waited
            try:
                for pattern in (f".{directory.name}.*.tmp", f".{directory.name}.*.old"):
                    for left in directory.parent.glob(pattern):
                        shutil.rmtree(left, ignore_errors=True)
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def writing(
    directory: Path, *, kind: str, schema_version: int, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> Iterator[Draft]:
    """Write an artefact atomically: it appears under its name complete or not at all.

    An artefact of that name is replaced by the new one at the end, never before. If the body raises, the
    temporary directory is removed.

    Args:
        directory: final directory.
        kind: kind of artefact, which ``read`` checks.
        schema_version: version of its schema.
        config: settings that determine the contents (JSON values).
        inputs: name -> digest of each input.

    Yields:
        The draft to fill.

    Raises:
        UserError: if the directory contains files that are no artefact.
    """
    if directory.is_dir() and not (directory / MANIFEST).is_file() and any(directory.iterdir()):
        # Nothing unfinished ever gets this name, so these are someone's own files: do not delete them.
        raise UserError(f"{directory} holds files that are no artefact; choose another place or delete it")
    with _parent(directory):
        draft = Draft(draft_directory(directory))
        try:
            with full_disk_named(directory):
                yield draft
                manifest = finish(
                    draft.path,
                    kind=kind,
                    schema_version=schema_version,
                    config=config,
                    inputs=inputs,
                    facts=draft.facts,
                )
                put_in_place(draft.path, directory)
            draft.manifest = manifest
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise


_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


@contextmanager
def full_disk_named(place: Path) -> Iterator[None]:
    """Convert errors that libraries raise on a full disk into ``OSError`` with ``errno.ENOSPC`` and the path.

    polars raises a ``ComputeError`` and numpy an ``OSError`` without a number ("4880 requested and 3040 written").
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        full = f"(os error {errno.ENOSPC})" in text or os.strerror(errno.ENOSPC) in text
        if getattr(error, "errno", None) is None and (full or _SHORT_WRITE.search(text)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place)) from error
        raise


def finish(
    path: Path,
    *,
    kind: str,
    schema_version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
    known: Mapping[str, str] | None = None,
) -> Manifest:
    """Digest the files under ``path``, flush them, and write the manifest, last.

    Args:
        path: the directory.
        kind: kind of artefact.
        schema_version: version of its schema.
        config: settings that determine the contents (JSON values).
        inputs: name -> digest of each input.
        facts: counts and other figures.
        known: relative path -> digest of files that :func:`digest_files` has already digested and flushed.
    """
    known = known or {}
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name != MANIFEST)
    names = [str(f.relative_to(path)) for f in files]
    left = digest_files(path, [name for name in names if name not in known])
    manifest = Manifest(
        kind=kind,
        schema_version=schema_version,
        config=dict(config),
        inputs=dict(inputs),
        contents={name: known.get(name) or left[name] for name in names},
        facts=dict(facts),
        made_by=provenance(),
    )
    write_json(path / MANIFEST, {**asdict(manifest), "digest": manifest.digest, "record": manifest.record})
    return manifest


def digest_files(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Flush files to disk and digest them: relative path -> digest."""
    digests = {}
    for name in names:
        _fsync(directory / name)
        digests[name] = file_digest(directory / name)
    return digests


def put_in_place(source: Path, target: Path) -> None:
    """Rename a finished directory to its final name, replacing an existing one atomically.

    If the system cannot exchange two names atomically, the old directory is moved aside first.
    """
    source.chmod(0o755)
    if not target.exists():
        source.rename(target)
    elif _exchange(source, target):
        shutil.rmtree(source, ignore_errors=True)
    else:
        old = source.with_name(f"{source.name}.old")
        target.rename(old)
        source.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    _fsync(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux's renameat2); False if the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    done = rename(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange)
    return bool(done == 0)


def draft_directory(target: Path) -> Path:
    """Create a draft directory beside ``target``, after removing drafts of killed processes of this host."""
    remove_abandoned(target.parent, target.name)
    prefix = f".{target.name}.{_host()}-{os.getpid()}."
    return Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=target.parent))


def _host() -> str:
    return platform.node().replace(".", "-") or "host"


def remove_abandoned(parent: Path, name: str = "*") -> None:
    """Remove the drafts under ``parent`` of artefacts called ``name`` that killed processes of this host left."""
    for stale in abandoned(parent, f".{name}"):
        shutil.rmtree(stale, ignore_errors=True)


def abandoned(parent: Path, start: str = "**/.*") -> Iterator[Path]:
    """Drafts that killed processes of this host left, and half-built orders of earlier versions.

    Args:
        parent: directory to search.
        start: pattern of their names without the part that identifies the process; the default searches all
            subdirectories.
    """
    for stale in sorted(parent.glob(f"{start}.{_host()}-*.tmp*")):
        owner = stale.name.rpartition(f".{_host()}-")[2].split(".")[0]
        if stale.is_dir() and owner.isdigit() and not _alive(int(owner)):
            yield stale
    if start.startswith("**/"):
        yield from sorted(parent.glob("**/order/.building-*"))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read(directory: Path, *, kind: str, schema_version: int) -> Manifest:
    """The manifest of a finished artefact.

    Raises:
        UserError: if it is missing, unfinished, of another kind or of another schema version.
    """
    path = directory / MANIFEST
    if not path.is_file():
        state = "is unfinished (it has no manifest.json)" if directory.exists() else "does not exist"
        raise UserError(
            f"{kind} {directory} {state}; run {_MADE_BY.get(kind, 'the stage that makes it')} first"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and {"digest", "contents"} <= values.keys() and "record" not in values:
            raise UserError(
                f"{path} was written by an earlier version, whose manifests had no digest of their facts; delete "
                f"{directory} and make it again"
            )
        digest, record = values.pop("digest"), values.pop("record")
        manifest = Manifest(**values)
        intact = (manifest.digest, manifest.record) == (digest, record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a manifest ({error}); delete {directory} and make it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if (manifest.kind, manifest.schema_version) != (kind, schema_version):
        raise UserError(
            f"{directory} holds a {manifest.kind} of schema version {manifest.schema_version}, not a {kind} "
            f"of version {schema_version}; delete it and make it again with this version of the programs"
        )
    if not intact:
        raise UserError(f"{path} was edited: its digest does not match; delete {directory} and make it again")
    return manifest


def verify(directory: Path, manifest: Manifest, *, part: int = 0, parts: int = 1) -> None:
    """Check files of an artefact against their digests.

    Args:
        directory: directory of the artefact.
        manifest: its manifest.
        part: index, from 0, of the part of the files to check here.
        parts: number of parts; 1: all files are checked.

    Raises:
        UserError: naming the first file that is missing or differs.
    """
    for name, digest in list(manifest.contents.items())[part::parts]:
        file = directory / name
        if not file.is_file():
            raise UserError(f"{file} is missing; make {directory} again")
        if file_digest(file) != digest:
            raise UserError(f"{file} was changed since it was written; make {directory} again")


def differences(manifest: Manifest, *, config: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """Differences that prevent the reuse of an artefact for ``config`` and ``inputs``; empty if there are none."""
    lines = []
    for label, have, want in (
        ("setting", _flat(manifest.config), _flat(dict(config))),
        ("input", manifest.inputs, dict(inputs)),
    ):
        for key in sorted(have.keys() | want.keys()):
            if have.get(key) != want.get(key):
                lines.append(
                    f"{label} {key}: it was made with {have.get(key)!r}, asked for is {want.get(key)!r}"
                )
    return lines


def reuse(
    directory: Path, *, kind: str, schema_version: int, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> tuple[Manifest | None, list[str]]:
    """The finished artefact, if it has exactly this configuration and these inputs.

    Returns:
        The manifest and an empty list; or None and the differences (an empty list if there is no finished artefact).
    """
    if not (directory / MANIFEST).is_file():
        return None, []
    manifest = read(directory, kind=kind, schema_version=schema_version)
    lines = differences(manifest, config=config, inputs=inputs)
    return (None, lines) if lines else (manifest, [])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, sub in value.items() for k, v in _flat(sub, f"{prefix}.{key}".lstrip(".")).items()}


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: temporary name, flush, rename."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _fsync(temporary)
    temporary.rename(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
