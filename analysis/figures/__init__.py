"""Figures: functions from tidy rows to one declarative chart and the rows it draws; :func:`save` writes all forms.

Every default figure is registered in :data:`FIGURES` with its number, title and needed columns (:data:`COLUMNS`
describes the columns). All figures share one style: white background, the colour-blind-safe colours of Okabe & Ito
(2008), different shapes as well as colours, n next to points or in the legend, 95 % intervals. To add one, write a
function in a file of its group and decorate it with :func:`figure`.
"""

from palimpsest.analysis.figures.design import aa_pvalues, assignment_flow, balance, lengths
from palimpsest.analysis.figures.doses import dose_response, interference, phases, shapes, wordings
from palimpsest.analysis.figures.export import save
from palimpsest.analysis.figures.extraction import extraction_rate, run_lengths, taxonomy, token_strip
from palimpsest.analysis.figures.facts import acquisition, recognition_recall, retainability
from palimpsest.analysis.figures.hubble import hubble, hubble_tables
from palimpsest.analysis.figures.membership import auc_against, perplexities, roc
from palimpsest.analysis.figures.personal import format_transfer, personal
from palimpsest.analysis.figures.profiles import event_study, memorisation_profile, profile_correlation
from palimpsest.analysis.figures.registry import COLUMNS, FIGURES, Registered, figure
from palimpsest.analysis.figures.runs import controls, over_training, training_curves
from palimpsest.analysis.figures.scale import capacity, limem, order_p, order_residuals, unlearning
from palimpsest.analysis.figures.theme import Figure

__all__ = [
    "COLUMNS",
    "FIGURES",
    "Figure",
    "Registered",
    "aa_pvalues",
    "acquisition",
    "assignment_flow",
    "auc_against",
    "balance",
    "capacity",
    "controls",
    "dose_response",
    "event_study",
    "extraction_rate",
    "figure",
    "format_transfer",
    "hubble",
    "hubble_tables",
    "interference",
    "lengths",
    "limem",
    "memorisation_profile",
    "order_p",
    "order_residuals",
    "over_training",
    "perplexities",
    "personal",
    "phases",
    "profile_correlation",
    "recognition_recall",
    "retainability",
    "roc",
    "run_lengths",
    "save",
    "shapes",
    "taxonomy",
    "token_strip",
    "training_curves",
    "unlearning",
    "wordings",
]
