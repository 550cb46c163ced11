"""Gallery of every registered figure, drawn from simulated rows and shown on one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from palimpsest.analysis.figures.examples import example
from palimpsest.analysis.figures.export import FORMATS, Style, save
from palimpsest.analysis.figures.export import write as whole
from palimpsest.analysis.figures.registry import FIGURES, Registered
from palimpsest.analysis.figures.theme import Figure

SIMULATED = "Simulated by a formula, not measured"


def draw() -> Iterator[tuple[Registered, Figure]]:
    """Every registered figure, drawn from its simulated rows and labelled as simulated."""
    for entry in FIGURES.values():
        rows, settings = example(entry.name)
        yield entry, entry.draw(rows, **settings).titled(f"{entry.number}. {entry.title}", SIMULATED)


def write(directory: Path, *, style: Style = "screen", formats: Sequence[str] = FORMATS) -> int:
    """Save every figure, and a ``README.md`` that shows them in order of their numbers.

    Args:
        directory: directory to write to; created if it is missing.
        style: as for :func:`analysis.figures.export.save`.
        formats: as for :func:`analysis.figures.export.save`.

    Returns:
        Number of figures.

    Raises:
        UserError: if the style or a format is unknown.
    """
    lines = [
        "# Gallery",
        "",
        "Every default figure, drawn by `palimpsest gallery DIRECTORY` from simulated rows. Their formulas are",
        "in `analysis/figures/examples.py`; nothing here was measured. `analysis.figures.COLUMNS` says what",
        "columns mean.",
    ]
    count = 0
    for entry, drawn in draw():
        name = f"{entry.number:02d}_{entry.name}"
        save(drawn, directory / name, style=style, formats=formats)
        needs = ", ".join(f"`{column}`" for column in entry.needs)
        more = (
            f"; if there: {', '.join(f'`{column}`' for column in entry.optional)}" if entry.optional else ""
        )
        suffix = "svg" if "svg" in formats else next(iter(formats))
        lines += [
            "",
            f"## {entry.number}. {entry.title}",
            "",
            f"`figures.{entry.name}(rows)` draws {needs}{more}.",
            "",
        ]
        lines += [f"![{entry.title}]({name}.{suffix})"]
        count += 1
    whole(directory / "README.md", ("\n".join(lines) + "\n").encode())
    return count
