"""Draw every figure from simulated rows: ``python launch/gallery.py DIRECTORY``.

DIRECTORY gets the images and ``README.md``, which shows them with the columns that each needs. What is drawn is
simulated by formulas (``analysis/figures/examples.py``) and says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.errors import UserError


def main() -> int:
    """Draw; status 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", metavar="DIRECTORY", type=Path)
    parser.add_argument("--style", default="screen", help="screen, or paper: fitted to a double column")
    parser.add_argument("--formats", default="png,svg,pdf,csv", help="of png, svg, pdf, csv")
    given = parser.parse_args()
    try:
        from analysis.figures import gallery

        drawn = gallery.write(given.directory, style=given.style, formats=given.formats.split(","))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{drawn} figures: {given.directory / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
