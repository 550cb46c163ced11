"""Write the reference pages from the code: ``palimpsest manual DIRECTORY``.

DIRECTORY, such as ``docs/reference``, gets a page each for settings, families of items, metrics, figures, post-training
methods, files, programs and exit statuses. ``palimpsest gallery DIRECTORY/figures formats=svg`` draws the pictures of
the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from palimpsest.data.errors import UserError
from palimpsest.launch import manual_files, manual_programs, manual_registries, manual_settings
from palimpsest.launch.process import say
from palimpsest.launch.program import plain

MADE = "\n<!-- Written from the code by: palimpsest manual docs/reference -->\n"
PAGES: dict[str, Callable[[], str]] = {
    "settings": manual_settings.write,
    "families": manual_registries.families,
    "metrics": manual_registries.metrics,
    "figures": manual_registries.figures,
    "posttraining": manual_registries.posttraining,
    "files": manual_files.write,
    "programs": manual_programs.programs,
    "status": manual_programs.statuses,
}
"""Name of a page -> function that writes it."""


def work(arguments: Sequence[str]) -> int:
    """Write every page of the reference into the directory that ``arguments`` names; exit status."""
    if len(arguments) != 1:
        raise UserError("one directory is needed to write into: palimpsest manual docs/reference")
    place = Path(arguments[0])
    place.mkdir(parents=True, exist_ok=True)
    for name, write in PAGES.items():
        (place / f"{name}.md").write_text(write() + MADE, encoding="utf-8")
    say(f"{len(PAGES)} pages: {place}")
    return 0


def main() -> None:
    """Run the program."""
    plain(__doc__, work)


if __name__ == "__main__":
    main()
