"""Identity of corpora: their settings, with digests of the files' contents in place of paths.

The same text is therefore the same corpus under another path or on another machine. Digests are cached next to the
corpora (by path, size and modification time), together with the paths as the user wrote them, so that a finished corpus
is recognised without its text.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palimpsest.data import sources, tokenizer
from palimpsest.data.artifact import file_digest, json_digest, write_json
from palimpsest.data.errors import UserError
from palimpsest.data.shards import CorpusConfig

_CONTENTS, _SPELLINGS = ".contents.json", ".spellings.json"
_KNOWN: dict[tuple[str, str], dict[str, Any]] = {}
"""Cache of this process: place and settings as typed -> settings by contents."""


def by_contents(config: CorpusConfig, place: Path) -> dict[str, Any]:
    """The settings of a corpus as JSON values, with a digest of the contents in place of each list of paths.

    If the files are missing, the digests cached for these paths are used; without any, the paths are unchanged.

    Args:
        config: the settings.
        place: directory of the corpora, which has the cache if it is writable.
    """
    spelled = _settings(config)
    if not (_reads_files(config) or config.tokenizer.path or config.decontaminate.paths):
        return spelled
    key = (str(place), json_digest(spelled))
    if key not in _KNOWN:
        try:
            _KNOWN[key] = _resolved(config, spelled, place)
        except (UserError, OSError):
            return _recalled(place / _SPELLINGS).get(key[1], spelled)  # type: ignore[no-any-return]
        _remember(place / _SPELLINGS, {key[1]: _KNOWN[key]})
    return _KNOWN[key]


def order_by_contents(config: CorpusConfig, place: Path) -> dict[str, Any]:
    """The settings of a stored order as JSON values, with a digest of the index file's contents in place of its path.

    Args:
        config: the settings of the corpus.
        place: directory of the corpora.
    """
    spelled = {"order": config.order, "first_window": config.first_window}
    if config.index_file is None:
        return spelled
    key = json_digest(spelled)
    try:
        settings = spelled | {"order": _digests(place, [config.index_file])[0]}
    except OSError:
        return _recalled(place / _SPELLINGS).get(key, spelled)  # type: ignore[no-any-return]
    _remember(place / _SPELLINGS, {key: settings})
    return settings


def without_paths(config: CorpusConfig) -> dict[str, Any]:
    """The settings of a corpus as JSON values, without paths, which the inputs' digests replace."""
    settings = _settings(config)
    if _reads_files(config):
        settings["source"]["paths"] = []
    settings["tokenizer"]["path"] = None
    settings["decontaminate"]["paths"] = []
    return settings


def _settings(config: CorpusConfig) -> dict[str, Any]:
    """Settings as JSON values, without the location of a local copy, and without limits that are None."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    del settings["source"]["files"], settings["order"], settings["first_window"]
    if config.as_it_lies:
        settings["as_it_lies"] = True
    if settings["source"]["max_files"] is None:
        del settings["source"]["max_files"]
    return settings


def _reads_files(config: CorpusConfig) -> bool:
    return config.source.kind in sources.FILE_KINDS


def _digests(place: Path, paths: Sequence[Path]) -> list[str]:
    """Digest of each file; a cache in ``place`` has those of files whose size and time have not changed."""
    known, new = _recalled(place / _CONTENTS), {}
    for path in paths:
        stat = path.stat()
        name, stamp = os.path.realpath(path), [stat.st_size, stat.st_mtime_ns]
        if known.get(name, [])[:2] != stamp:
            known[name] = new[name] = [*stamp, file_digest(path)]
    _remember(place / _CONTENTS, new)
    return [str(known[os.path.realpath(path)][2]) for path in paths]


def _resolved(config: CorpusConfig, spelled: Mapping[str, Any], place: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(spelled))
    if _reads_files(config):
        settings["source"]["paths"] = [json_digest(_digests(place, sources.all_files(config.source)))]
    if config.tokenizer.path:
        path = Path(config.tokenizer.path)
        path = path / tokenizer.FILE if path.is_dir() else path
        (settings["tokenizer"]["path"],) = _digests(place, [path])
    if wanted := config.wanted:
        settings["decontaminate"]["paths"] = [json_digest(_digests(place, sources.all_files(wanted)))]
    return settings


def _recalled(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(path: Path, new: Mapping[str, Any]) -> None:
    """Append to a cache file; skipped without write permission or before the directory of corpora exists."""
    known = _recalled(path)
    if path.parent.is_dir() and any(known.get(name) != value for name, value in new.items()):
        with contextlib.suppress(OSError):
            write_json(path, known | dict(new))
