"""Statistics: pure functions from tidy metric rows to estimates with 95 % intervals."""

from analysis.statistics.dose_response import (
    Method,
    gain_over_control,
    mean_by_dose,
    minimum_effective_dose,
    split_controls,
)
from analysis.statistics.intervals import clopper_pearson, rate_difference, stratified_t
from analysis.statistics.recognition import Auc, auc, delong, logit_interval
from analysis.statistics.resampling import bootstrap, contrast, permutation_p
from analysis.statistics.rows import ESTIMATE_SCHEMA, PAIRED, difference_to_twin, estimates, per_item

__all__ = [
    "ESTIMATE_SCHEMA",
    "PAIRED",
    "Auc",
    "Method",
    "auc",
    "bootstrap",
    "clopper_pearson",
    "contrast",
    "delong",
    "difference_to_twin",
    "estimates",
    "gain_over_control",
    "logit_interval",
    "mean_by_dose",
    "minimum_effective_dose",
    "per_item",
    "permutation_p",
    "rate_difference",
    "split_controls",
    "stratified_t",
]
