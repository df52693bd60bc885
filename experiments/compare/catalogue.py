"""Names for what a suite can ask for: methods at their defaults, and problems."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "ours": "bbo.steering:SteeredPrior",
    "prior": "experiments.methods.prior:PlainPrior",
    "best_of_n": "experiments.methods.best_of_n:BestOfN",
    "guidance": "experiments.methods.guidance:dps",
    "gaussian": "experiments.methods.gaussian:GaussianProposal",
    "cma_es": "experiments.methods.cma_es:cma_es",
    "cma_es_noise": "experiments.methods.cma_es:cma_es_noise",
    "turbo": "experiments.methods.turbo:turbo",
    "turbo_noise": "experiments.methods.turbo:turbo_noise",
    "log_ei": "experiments.methods.log_ei:log_ei",
    "log_ei_noise": "experiments.methods.log_ei:log_ei_noise",
    "seiko": "experiments.methods.seiko:SEIKO",
    "seiko_bootstrap": "experiments.methods.seiko:seiko_bootstrap",
    "ddpo": "experiments.methods.ddpo:DDPO",
    "draft": "experiments.methods.draft:DRaFT",
    "das_published": "experiments.methods.das_online:das_published",
    "das_published_bootstrap": "experiments.methods.das_online:das_published_bootstrap",
    "das_corrected": "experiments.methods.das_online:das_corrected",
    "das_corrected_bootstrap": "experiments.methods.das_online:das_corrected_bootstrap",
}
"""type → the class, or the function that makes it, as module:attribute."""

PROBLEMS: dict[str, str] = {
    "airfoil": "experiments.problems.airfoil:airfoil",
    "airfoil_two_points": "experiments.problems.airfoil:airfoil_two_points",
    "digits_jpeg": "experiments.problems.digits:digits_jpeg",
    "mixture_2d": "experiments.problems.mixture_2d:mixture_2d",
    "planted_modes": "experiments.problems.planted_modes:planted_modes",
    "own": "experiments.problems.problem:own",
}
"""type → the function that makes it."""
