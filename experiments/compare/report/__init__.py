"""What a comparison shows: one HTML file that needs no network, a picture, and tables."""

from experiments.compare.report.page import write_report

__all__ = ["write_report"]
