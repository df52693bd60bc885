"""Methods against each other on budget curves: `bbo compare`."""
