"""Sampling from p(x)·exp(log_potential(x)) along a diffusion prior's own chain. Knows nothing of rewards."""
