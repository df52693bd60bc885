"""Figures: each module measures what an issue or the README names, and prints it as a table and as JSON."""
