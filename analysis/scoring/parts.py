"""Reading of what ``analysis.scoring.store.make_parts`` made: parts of checkpoints, with a file each."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.data import artifact

log = logging.getLogger(__name__)

Parts = list[tuple[Path, artifact.Manifest]]


def read_parts(
    directory: Path,
    runs: tuple[str, ...],
    *,
    plan: str,
    kind: str,
    version: int,
    file: str,
    schema: pl.Schema,
    program: str,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Rows of a pair at every checkpoint that has all parts, every file checked against its digest.

    Where checkpoints were done with different settings, those of the first run's last one count.

    Args:
        directory: of the runs' parts.
        runs: names of the pair's runs, which are subdirectories.
        plan: digest of the plan.
        kind: of the parts.
        version: of their schema.
        file: name of the Parquet file in each part.
        schema: of its columns.
        program: that makes them.

    Returns:
        The columns with ``run`` and ``step``, without rows if there is none; and ``settings`` (as in the manifests) and
        ``digests`` (of each part by its place).
    """
    parts_by_run = {which: _whole(directory / which, plan, kind, version, program) for which in runs}
    config = next((steps[max(steps)][0][1].config for steps in parts_by_run.values() if steps), {})
    tables, digests = [], {}
    for which, steps in parts_by_run.items():
        for step, parts in steps.items():
            if any(manifest.config != config for _, manifest in parts):
                log.warning("%s/%s step %d was made with other settings: left out", directory, which, step)
                continue
            for place, manifest in parts:
                artifact.verify(place, manifest)
                digests[f"{directory.name}/{which}/{place.name}"] = manifest.digest
                tables.append(
                    pl.read_parquet(place / file).with_columns(
                        run=pl.lit(which), step=pl.lit(step, dtype=pl.Int64)
                    )
                )
    empty = pl.DataFrame(schema={**schema, "run": pl.String(), "step": pl.Int64()})
    return pl.concat([empty, *tables]), {"settings": config, "digests": digests}


def _whole(directory: Path, plan: str, kind: str, version: int, program: str) -> dict[int, Parts]:
    """Step -> parts, of the checkpoints all of whose parts are there and of this plan."""
    whole = {}
    for first in sorted(directory.glob(f"step_????????/{artifact.MANIFEST}")):
        place = first.parent
        number = artifact.read(place, kind=kind, schema_version=version).facts["parts"]
        places = [place, *(place.with_name(f"{place.name}-{part}") for part in range(1, number))]
        if not all((one / artifact.MANIFEST).is_file() for one in places):
            log.warning(
                "%s: not all of its %d parts are there; run palimpsest %s again", place, number, program
            )
            continue
        parts = [(one, artifact.read(one, kind=kind, schema_version=version)) for one in places]
        if any(manifest.inputs["items"] != plan for _, manifest in parts):
            log.warning("%s is of another plan; run palimpsest %s again", place, program)
            continue
        whole[int(parts[0][1].facts["step"])] = parts
    return whole
