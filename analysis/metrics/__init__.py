"""Metrics: pure functions from stored token scores to tidy rows, one value a probe and checkpoint.

Importing this package registers every metric. To add one, write a function in a file of its group and
decorate it with :func:`metric`; :func:`compute` then finds it by name.
"""

from analysis.metrics import extraction, likelihood
from analysis.metrics.registry import METRICS, Metric, Parameters, Values, compute, metric
from analysis.metrics.scored import ROW_SCHEMA, Scored, gather

__all__ = [
    "METRICS",
    "ROW_SCHEMA",
    "Metric",
    "Parameters",
    "Scored",
    "Values",
    "compute",
    "extraction",
    "gather",
    "likelihood",
    "metric",
]
