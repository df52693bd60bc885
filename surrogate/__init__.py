"""Surrogates: what is believed about the oracle, how unsure that is, and what a query would be worth."""
