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
    for found in FIGURES.values():
        rows, settings = example(found.name)
        yield found, found.draw(rows, **settings).titled(f"{found.number}. {found.title}", SIMULATED)


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
        "Every default figure, drawn by `python launch/gallery.py DIRECTORY` from simulated rows. Their formulas are",
        "in `analysis/figures/examples.py`; nothing here was measured. `analysis.figures.COLUMNS` says what",
        "columns mean.",
    ]
    count = 0
    for found, made in draw():
        name = f"{found.number:02d}_{found.name}"
        save(made, directory / name, style=style, formats=formats)
        needs = ", ".join(f"`{column}`" for column in found.needs)
        more = (
            f"; if there: {', '.join(f'`{column}`' for column in found.optional)}" if found.optional else ""
        )
        suffix = "svg" if "svg" in formats else next(iter(formats))
        lines += [
            "",
            f"## {found.number}. {found.title}",
            "",
            f"`figures.{found.name}(rows)` draws {needs}{more}.",
            "",
        ]
        lines += [f"![{found.title}]({name}.{suffix})"]
        count += 1
    whole(directory / "README.md", ("\n".join(lines) + "\n").encode())
    return count
