"""Names for what a suite can ask for: methods at their defaults, and problems."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "prior": "experiments.methods.prior:PlainPrior",
    "best_of_n": "experiments.methods.best_of_n:BestOfN",
    "ours": "bbo.steering:SteeredPrior",
}
"""type → the class, or the function that makes it, as module:attribute."""

PROBLEMS: dict[str, str] = {
    "own": "experiments.problems.problem:own",
}
"""type → the function that makes it."""
