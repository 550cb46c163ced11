"""Statistics: pure functions from arrays or metric rows to estimates with 95 % intervals."""

from palimpsest.analysis.statistics.adaptive import (
    Thresholds,
    decided_ec50,
    insert_until_ec50,
    staircase_ec50,
    total_doses,
)
from palimpsest.analysis.statistics.clusters import (
    Contrast,
    cluster_contrast,
    cluster_mean,
    forgetting_slope,
    log_slopes,
)
from palimpsest.analysis.statistics.dose_curve import CurveFit, curve_ec50, fit_means
from palimpsest.analysis.statistics.dose_response import (
    crossed_gains,
    gain_over_control,
    mean_by_dose,
    minimum_effective_dose,
    split_controls,
)
from palimpsest.analysis.statistics.ec50 import (
    Dilution,
    DoseFit,
    Ec50,
    clustered_ec50,
    dilution_exponent,
    fit_rates,
    profile_ec50,
    rate,
)
from palimpsest.analysis.statistics.forgetting import (
    FAMILIES,
    Forgetting,
    TimeToForget,
    compare_families,
    fit_curve,
    forgetting_intervals,
    learning_rate_time,
    time_to_forget,
)
from palimpsest.analysis.statistics.intervals import (
    UNBOUNDED,
    clopper_pearson,
    mean_limits,
    share_limits,
    stratified,
)
from palimpsest.analysis.statistics.low_fpr import LowFpr, tpr_at_fpr
from palimpsest.analysis.statistics.multiplicity import (
    Ratio,
    fieller,
    holm,
)
from palimpsest.analysis.statistics.net import Net, net_of_controls
from palimpsest.analysis.statistics.power import (
    auc_error,
    effect_shown,
)
from palimpsest.analysis.statistics.recognition import Auc, auc, auc_limits, delong, pooled_auc
from palimpsest.analysis.statistics.resampling import permutation_p
from palimpsest.analysis.statistics.rows import (
    ESTIMATE_SCHEMA,
    PAIRED,
    difference_to_twin,
    estimates,
    per_item,
)
from palimpsest.analysis.statistics.trends import (
    Trend,
    cochran_armitage,
    dose_scores,
    trend_permutation_p,
)

__all__ = [
    "ESTIMATE_SCHEMA",
    "FAMILIES",
    "PAIRED",
    "UNBOUNDED",
    "Auc",
    "Contrast",
    "CurveFit",
    "Dilution",
    "DoseFit",
    "Ec50",
    "Forgetting",
    "LowFpr",
    "Net",
    "Ratio",
    "Thresholds",
    "TimeToForget",
    "Trend",
    "auc",
    "auc_error",
    "auc_limits",
    "clopper_pearson",
    "cluster_contrast",
    "cluster_mean",
    "clustered_ec50",
    "cochran_armitage",
    "compare_families",
    "crossed_gains",
    "curve_ec50",
    "decided_ec50",
    "delong",
    "difference_to_twin",
    "dilution_exponent",
    "dose_scores",
    "effect_shown",
    "estimates",
    "fieller",
    "fit_curve",
    "fit_means",
    "fit_rates",
    "forgetting_intervals",
    "forgetting_slope",
    "gain_over_control",
    "holm",
    "insert_until_ec50",
    "learning_rate_time",
    "log_slopes",
    "mean_by_dose",
    "mean_limits",
    "minimum_effective_dose",
    "net_of_controls",
    "per_item",
    "permutation_p",
    "pooled_auc",
    "profile_ec50",
    "rate",
    "share_limits",
    "split_controls",
    "staircase_ec50",
    "stratified",
    "time_to_forget",
    "total_doses",
    "tpr_at_fpr",
    "trend_permutation_p",
]
