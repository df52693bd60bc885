"""Methods against each other on problems, query by query: `bbo compare run` and `bbo compare report`."""
