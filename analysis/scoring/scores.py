"""Reader of a run's scores that does not import torch; ``analysis.scoring.store`` writes them and describes the
files.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from palimpsest.data import artifact
from palimpsest.data.errors import UserError

KIND = "scores"
VERSION = 2
FILE = "scores.parquet"


def parts(directory: Path) -> list[tuple[Path, artifact.Manifest]]:
    """The finished parts of one run's scores, by step: path and manifest of each.

    Raises:
        UserError: if a part was written by an incompatible version of the programs.
    """
    return [
        (place, artifact.read(place, kind=KIND, schema_version=VERSION))
        for place in sorted(directory.glob("step_*"))
        if (place / artifact.MANIFEST).is_file()
    ]


def read(directory: Path, runs: tuple[str, ...], *, plan: str) -> tuple[pl.DataFrame, dict[str, str]]:
    """All scores of a pair, every file checked against its digest.

    Args:
        directory: the run's directory ``scores``.
        runs: names of the pair's runs, each a subdirectory.
        plan: digest of the plan; scores of another plan are refused.

    Returns:
        :data:`analysis.scoring.token_statistics.SCORE_SCHEMA` with ``run`` and ``step``, one row per probe and
        checkpoint; and path -> digest of each part.

    Raises:
        UserError: if the first run has no scores, or a part belongs to another plan or was changed.
    """
    tables, digests = [], {}
    for which in runs:
        for place, manifest in parts(directory / which):
            artifact.verify(place, manifest)
            if manifest.inputs["items"] != plan:
                raise UserError(f"{place} was scored with another plan; run launch/score.py again")
            digests[f"scores/{which}/{place.name}"] = manifest.digest
            step = pl.lit(manifest.facts["step"], dtype=pl.Int64)
            tables.append(pl.read_parquet(place / FILE).with_columns(run=pl.lit(which), step=step))
    if not any(name.startswith(f"scores/{runs[0]}/") for name in digests):
        raise UserError(f"there are no scores in {directory}; run launch/score.py first")
    return pl.concat(tables), digests
