"""The report: one HTML file that opens without a network, with the figures and numbers beside it."""

from analysis.report.answer import Answer, answer
from analysis.report.inputs import ReportInputs
from analysis.report.page import build
from analysis.report.results import Results, analyse

__all__ = ["Answer", "ReportInputs", "Results", "analyse", "answer", "build"]
