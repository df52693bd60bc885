"""A campaign's report: one HTML file that needs no network."""

from bbo.report.page import ReportError, write_report

__all__ = ["ReportError", "write_report"]
