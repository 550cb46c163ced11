"""The interface of all ways of placement: arms for items, then windows and offsets for their exposures.

=============  ==================================================  =====================  ==========================
way            arms                                                windows                set by
=============  ==================================================  =====================  ==========================
randomised     drawn inside strata, exact counts; or listed        drawn                  the default
explicit       number of exposures in a table                      from the table, where  ``insertion.placements``
                                                                   it has them
paired         those of another plan                               kept where allowed     ``insertion.paired_with``
adaptive       decided from scores, segment by segment: each       drawn                  ``insertion.adaptive``
               segment is a randomised plan with listed arms
=============  ==================================================  =====================  ==========================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from palimpsest.data.mixture import Windows
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion.settings import InsertionConfig, RunShape

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Setting:
    """Inputs of a placement besides the items."""

    insertion: InsertionConfig
    run: RunShape
    order: Windows
    tokenizer: Tokenizer


class Placement(Protocol):
    """One way of placement."""

    def assign(self, items: pl.DataFrame) -> Integers:
        """Index of each item's arm in ``InsertionConfig.arms``: (items,).

        Args:
            items: ``items.ITEM_SCHEMA`` without arm and dose; ``stratum`` holds the final strata.

        Raises:
            UserError: if the items do not fill the arms as the design says.
        """

    def expose(self, items: pl.DataFrame, assigned: Integers, wordings: pl.DataFrame) -> pl.DataFrame:
        """All exposures: ``exposures.EXPOSURE_SCHEMA``.

        Args:
            items: ``items.ITEM_SCHEMA``.
            assigned: what ``assign`` returned for them.
            wordings: ``items.WORDING_SCHEMA``.

        Raises:
            UserError: if there is too little room, or an item has too few wordings.
        """
