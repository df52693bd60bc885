"""What classical optimisers search: vectors that are designs, or the noise that a prior makes designs of."""
