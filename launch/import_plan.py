"""Take over another tool's insertions: ``python launch/import_plan.py DIRECTORY DOCUMENTS.jsonl --never OTHERS.jsonl``.

DOCUMENTS has one ``text`` per row, and each text as often as it is inserted (Hubble's ``*_dup.jsonl``); OTHERS has
texts that are never inserted. With ``--ledger`` (Hubble's ``*_perturbation_info.json``) every text goes to the window
and the place that the ledger gives; without it, places are drawn as in any plan. The program writes items, placements
and a group of settings, ``insertion=imported``, to DIRECTORY.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NoReturn

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.insertion import interchange
from palimpsest.launch.process import say
from palimpsest.launch.program import guarded

KIND = "imported insertions"
VERSION = 1
_SETTINGS = """# Insertions that were taken over by launch/import_plan.py.
defaults: [base]

families: {{table: {{path: {items}}}}}
placements: {placements}
doses: {doses}
items_per_dose: {counts}
displace: [{displace}]
length_quantiles: 1
"""


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; see launch/import_plan.py --help")


def write(foreign: interchange.Foreign, directory: Path) -> None:
    """Write items, placements and settings of the imported insertions.

    Raises:
        UserError: if no item is a control.
    """
    doses = foreign.doses
    if 0 not in doses or len(doses) < 2:
        raise UserError(
            "all texts are inserted, so that there are no controls; give files of other texts with --never"
            if 0 not in doses
            else "no text is inserted"
        )
    place = directory.resolve()
    with artifact.writing(directory, kind=KIND, schema_version=VERSION, config={}, inputs={}) as draft:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in foreign.rows)
        (draft.path / "items.jsonl").write_text("".join(lines), encoding="utf-8")
        foreign.placements.write_parquet(draft.path / "placements.parquet")
        (draft.path / "insertion").mkdir()
        text = _SETTINGS.format(
            items=json.dumps(str(place / "items.jsonl")),
            placements=json.dumps(str(place / "placements.parquet")),
            doses=list(doses),
            counts=list(doses.values()),
            displace=foreign.displace,
        )
        (draft.path / "insertion" / "imported.yaml").write_text(text, encoding="utf-8")


def work() -> int:
    """Import the insertions that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = _refuse  # type: ignore[method-assign]
    parser.add_argument("directory", metavar="DIRECTORY", type=Path)
    parser.add_argument("documents", metavar="DOCUMENTS.jsonl", type=Path, nargs="+")
    parser.add_argument("--never", metavar="OTHERS.jsonl", type=Path, nargs="+", default=[])
    parser.add_argument("--ledger", metavar="INFO.json", type=Path)
    typed = parser.parse_args()
    foreign = interchange.read_duplicated(typed.documents, typed.never, typed.ledger)
    write(foreign, typed.directory)
    say(f"{len(foreign.rows):,} texts, {len(foreign.placements):,} insertions: {typed.directory}")
    for dose, count in foreign.doses.items():
        say(f"  dose {dose}: {count:,} texts")
    say(
        f"now: python launch/plan.py +experiment=... hydra.searchpath=[{typed.directory.resolve()}] insertion=imported"
    )
    return 0


def main() -> None:
    """Run the import; exit status 2 for errors that the user can fix."""
    guarded(work)


if __name__ == "__main__":
    main()
