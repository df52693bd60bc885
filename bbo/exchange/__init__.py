"""Designs out to people and answers back in: tables (CSV), folders of files, several measurements of one design."""

from bbo.exchange.replicates import replicates

__all__ = ["replicates"]
