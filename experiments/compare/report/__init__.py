"""What a comparison shows: one HTML file that needs no network, a picture, and tables."""

from experiments.compare.report.findings import ReportError
from experiments.compare.report.writing import write_report

__all__ = ["ReportError", "write_report"]
