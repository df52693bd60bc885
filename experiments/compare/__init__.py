"""Methods held against each other on budget curves: the same problems, the same first batches, every query counted."""
