"""Figure 1 of DAS (Kim et al. 2025, arXiv 2501.05803), with distances to the exact target."""
