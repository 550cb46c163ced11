"""The report: one HTML file that opens without a network, and files with its figures and numbers."""

from palimpsest.analysis.report.answer import Answer, answer
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.page import build
from palimpsest.analysis.report.results import Results, analyse

__all__ = ["Answer", "ReportInputs", "Results", "analyse", "answer", "build"]
