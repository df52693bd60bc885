"""Methods held against each other: the same problems, the same first batches, every query counted."""
