"""Figures of papers, reproduced: one command each, with the table behind the picture."""
