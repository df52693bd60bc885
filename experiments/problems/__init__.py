"""Named problems: a prior, the features of its designs and an oracle, ready for any method."""
