"""Priors: exact ones that tests hold the sampler against, and trained ones."""
