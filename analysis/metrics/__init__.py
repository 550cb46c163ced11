"""Metrics: pure functions over token scores, and their registered forms over the whole store.

Importing this package imports every module in it, and so registers every metric; :func:`compute` returns tidy rows of
the named metrics, one value per probe or question and checkpoint. To add one, write a function in a file of its group,
or in a new file, and decorate it with :func:`metric`. Formulas whose inputs are not in the store of scores
(generations, several seeds) are array functions in the same files:

likelihood · extraction · similarity · membership · contamination · personal · factual ·
capacity · profiles (difference-in-differences, counterfactual) · order (palimpsest) · watermark · reasoning ·
unlearning · questions (choices, foils, clozes and changed questions of all families).
"""

import importlib
import pkgutil

from palimpsest.analysis.metrics import (
    capacity,
    contamination,
    extraction,
    factual,
    likelihood,
    membership,
    order,
    personal,
    profiles,
    questions,
    reasoning,
    similarity,
    unlearning,
    watermark,
)
from palimpsest.analysis.metrics.registry import (
    METRICS,
    Metric,
    Needs,
    Parameters,
    Values,
    compute,
    defaults,
    metric,
    plan,
)
from palimpsest.analysis.metrics.scored import ROW_SCHEMA, Scored, gather

__all__ = [
    "METRICS",
    "ROW_SCHEMA",
    "Metric",
    "Needs",
    "Parameters",
    "Scored",
    "Values",
    "capacity",
    "compute",
    "contamination",
    "defaults",
    "extraction",
    "factual",
    "gather",
    "likelihood",
    "membership",
    "metric",
    "order",
    "personal",
    "plan",
    "profiles",
    "questions",
    "reasoning",
    "similarity",
    "unlearning",
    "watermark",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
