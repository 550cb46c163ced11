"""The exception for mistakes that the user can correct."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

_SHOWN = 12


class UserError(ValueError):
    """Error in the user's input: one line that names the field, the value and the fix.

    Programs in ``launch/`` print the line and end with status 2. Any other exception is a bug.
    """


def together(*checks: Callable[[], object]) -> None:
    """Run independent checks to the end.

    Raises:
        UserError: with the messages of all checks that fail, in one line.
    """
    messages: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            messages.append(str(error))
    if messages:
        raise UserError("; ".join(messages))


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint such as ``; did you mean 'dose'?``, or the list of known names.

    Args:
        name: name that the user wrote.
        known: valid names.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    shown = ", ".join(known[:_SHOWN]) + (f", ... ({len(known)} in all)" if len(known) > _SHOWN else "")
    return f"; known: {shown}" if known else ""
