"""Draw every figure from simulated rows: ``python launch/gallery.py DIRECTORY``.

The program writes the images and ``README.md``, which shows them with the columns that each needs, to DIRECTORY. The
rows are simulated by formulas (``analysis/figures/examples.py``), and the images say so. ``style=paper`` fits them to a
double column; ``formats=svg,csv`` writes only these of png, svg, pdf and csv.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from palimpsest.analysis.figures import gallery
from palimpsest.analysis.figures.export import FORMATS, Style
from palimpsest.data.errors import UserError, nearest
from palimpsest.launch.process import say
from palimpsest.launch.program import plain


def work(arguments: Sequence[str]) -> int:
    """Draw what the command line asks for."""
    wanted = {"style": "screen", "formats": ",".join(FORMATS)}
    directories = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and "/" not in key:
            if key not in wanted:
                raise UserError(f"{argument}: there is no such setting{nearest(key, wanted)}")
            wanted[key] = value
        else:
            directories.append(Path(argument))
    if len(directories) != 1:
        raise UserError("one directory is needed to draw into: python launch/gallery.py DIRECTORY")
    drawn = gallery.write(
        directories[0], style=cast(Style, wanted["style"]), formats=wanted["formats"].split(",")
    )
    say(f"{drawn} figures: {directories[0] / 'README.md'}")
    return 0


def main() -> None:
    """Run the program."""
    plain(__doc__, work)


if __name__ == "__main__":
    main()
