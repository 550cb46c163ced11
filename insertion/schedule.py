"""When and where: exposures -> sample indices, and offsets inside windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from data.errors import UserError

Integers = npt.NDArray[np.int64]


def positions(count: int, windows: int, rng: np.random.Generator) -> Integers:
    """Distinct sample indices, uniform over the run, in random order.

    They depend on the seed and the number of exposures alone, so plans that differ only in their texts are placed
    alike.

    Raises:
        UserError: if there are more exposures than windows.
    """
    if count > windows:
        raise UserError(
            f"the plan has {count:,} exposures but the run only {windows:,} windows, and a window takes one; "
            "lower insertion.doses or train more steps"
        )
    return rng.choice(windows, size=count, replace=False).astype(np.int64)


def offsets(
    at: Integers,
    lengths: Integers,
    sequence_length: int,
    boundaries: Callable[[Integers], tuple[Integers, Integers]],
    rng: np.random.Generator,
) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Where in its window each exposure's first token goes.

    An item goes where a document of the window starts, chosen uniformly among those starts that leave room for it
    and its end-of-document token. A window without such a start is cut at a uniformly chosen token instead, by an
    end-of-document token of the plan's own. The windows are given, so the choice of window never depends on the
    item; one uniform number is drawn per exposure whatever its length.

    Args:
        at: (N,) sample indices.
        lengths: (N,) tokens of the item.
        sequence_length: L.
        boundaries: sample indices -> (splits, offsets) of the documents' starts; see ``Order.boundaries``.
        rng: random numbers.

    Returns:
        (N,) offsets of the first item token, at least 1 so that it is predicted; (N,) whether it follows a
        document of the corpus (True) or an end-of-document token of the plan's own (False).
    """
    draw = rng.random(len(at))
    # The item and its closing token occupy offset .. offset + length, all inside 0 .. L.
    latest = sequence_length - lengths
    splits, starts = boundaries(at)
    window = np.repeat(np.arange(len(at)), np.diff(splits))
    # Starts ascend inside a window, so those that fit come first.
    fitting = np.bincount(window[starts <= latest[window]], minlength=len(at))
    at_boundary = fitting > 0
    chosen = splits[:-1] + np.floor(draw * fitting).astype(np.int64)
    result = 2 + np.floor(draw * (latest - 1)).astype(np.int64)
    result[at_boundary] = starts[chosen[at_boundary]]
    return result, at_boundary
