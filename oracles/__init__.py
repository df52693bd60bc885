"""Oracles: the expensive black boxes, and how a user's own code becomes one."""
