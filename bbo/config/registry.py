"""Names for the parts a campaign file can ask for. Nothing is imported before it is asked for."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from typing import Any

REGISTRY: dict[str, dict[str, str]] = {
    "prior": {
        "denoiser": "smc.priors.denoiser:Denoiser.load",
        "ddpm": "smc.priors.pipelines.unconditional:DDPMPrior.from_pretrained",
        "stable_diffusion": "smc.priors.pipelines.stable_diffusion:StableDiffusionPrior.from_pretrained",
        "stable_diffusion_xl": "smc.priors.pipelines.stable_diffusion:StableDiffusionXLPrior.from_pretrained",
        "stable_diffusion_3": "smc.priors.pipelines.stable_diffusion_3:StableDiffusion3Prior.from_pretrained",
        "latent_consistency": "smc.priors.pipelines.latent_consistency:LatentConsistencyPrior.from_pretrained",
    },
    "oracle": {
        "airfoil": "oracles.airfoil:AirfoilOracle",
        "function": "oracles.callables:FunctionOracle",
        "batch_function": "oracles.callables:BatchFunctionOracle",
        "custom": "oracles.callables:custom",
        "by_hand": "oracles.callables:ByHand",
        "command": "oracles.command:CommandOracle",
        "http": "oracles.http:HttpOracle",
        "xfoil": "oracles.xfoil:XfoilOracle",
        "jpeg_size": "oracles.jpeg:JpegSizeOracle",
        "reward": "oracles.images.reward:RewardOracle",
        "stroke_mass": "oracles.stroke_mass:StrokeMassOracle",
        "mean": "oracles.mean:MeanOf",
        "noisy": "oracles.wrappers:Noisy",
        "negated": "oracles.wrappers:Negated",
        "cached": "oracles.wrappers:Cached",
        "retried": "oracles.wrappers:Retried",
        "rate_limited": "oracles.wrappers:RateLimited",
        "time_limited": "oracles.time_limit:TimeLimited",
        "concurrent": "oracles.concurrency:Concurrent",
    },
    "executor": {"local": "bbo.places:Local", "ray": "bbo.places:Ray"},
    "method": {"steered_prior": "bbo.steering:SteeredPrior"},
    "encoder": {
        "identity": "surrogate.features:Identity",
        "flatten": "surrogate.features:Flatten",
        "standardize": "surrogate.features:Standardizer",
        "pca": "surrogate.features:PrincipalComponents",
        "clip": "bbo.clip_features:ClipFeatures.load",
    },
    "reward": {
        "function": "oracles.images.function:FunctionReward",
        "aesthetic": "oracles.images.aesthetic:Aesthetic.load",
        "clip_score": "oracles.images.clip_rewards:ClipScore.load",
        "pick_score": "oracles.images.clip_rewards:PickScore.load",
        "hpsv2": "oracles.images.clip_rewards:HPSv2.load",
        "image_reward": "oracles.images.image_reward:ImageReward.load",
        "jpeg_size": "oracles.images.jpeg:JpegSize",
        "jpeg_compressibility": "oracles.images.jpeg:JpegCompressibility",
        "weighted_sum": "oracles.images.reward:WeightedSum",
    },
    "surrogate": {
        "gp": "surrogate.gp:ExactGP",
        "averaged_gp": "surrogate.averaged_gp:AveragedGP",
        "sparse_gp": "surrogate.sparse_gp:SparseGP",
        "ensemble": "surrogate.ensemble:DeepEnsemble",
        "neural_linear": "surrogate.neural_linear:NeuralLinear",
        "auto": "surrogate.auto:Auto",
    },
    "acquisition": {
        "mean": "surrogate.acquisition:Mean",
        "ucb": "surrogate.acquisition:UCB",
        "growing_ucb": "surrogate.acquisition:GrowingUCB",
        "decaying_ucb": "surrogate.acquisition:DecayingUCB",
        "randomized_ucb": "surrogate.randomized_ucb:RandomizedUCB",
        "thompson": "surrogate.acquisition:Thompson",
        "optimistic": "surrogate.acquisition:Optimistic",
        "log_ei": "surrogate.improvement:LogExpectedImprovement",
        "log_pi": "surrogate.improvement:LogProbabilityOfImprovement",
        "feasibility_only": "surrogate.acquisition:FeasibilityOnly",
    },
    "feasibility": {
        "gp": "surrogate.feasibility:GPFeasibility",
        "ensemble": "surrogate.feasibility_ensemble:EnsembleFeasibility",
        "auto": "surrogate.auto:AutoFeasibility",
    },
    "kernel": {"matern52": "surrogate.kernels:Matern52", "rbf": "surrogate.kernels:RBF"},
    "selection": {
        "draws": "bbo.selection:Draws",
        "best": "bbo.selection:Best",
        "conditioned": "bbo.selection:Conditioned",
        "spread": "bbo.selection:Spread",
    },
    "twist": {
        "posterior_variance": "smc.twist:PosteriorVariance",
        "point_estimate": "smc.twist:PointEstimate",
    },
    "spacing": {
        "trailing": "smc.schedule:trailing_steps",
        "leading": "smc.schedule:leading_steps",
        "linspace": "smc.schedule:linspace_steps",
    },
    "tempering": {
        "exponential": "smc.tempering:Exponential",
        "polynomial": "smc.tempering:Polynomial",
        "constant": "smc.tempering:Constant",
        "adaptive": "smc.tempering:Adaptive",
    },
    "resampling": {
        "systematic": "smc.resampling:systematic",
        "stratified": "smc.resampling:stratified",
        "multinomial": "smc.resampling:multinomial",
        "residual": "smc.resampling:residual",
        "ssp": "smc.resampling:ssp",
    },
}
"""kind → name → the class, its constructor or the function that makes it, as module:attribute."""

_NAMES = {
    target.removesuffix(".load").removesuffix(".from_pretrained"): name
    for parts in REGISTRY.values()
    for name, target in parts.items()
}


def resolve(kind: str, name: str) -> Any:
    """Return the class or function registered as `name`. Raises KeyError for a name that is not."""
    module, attribute = REGISTRY[kind][name].split(":")
    return attrgetter(attribute)(import_module(module))


def name_of(part: object) -> str:
    """Return the registered name of a class or function, or module:attribute for a user's own."""
    target = f"{getattr(part, '__module__', '')}:{getattr(part, '__qualname__', type(part).__qualname__)}"
    return _NAMES.get(target, target)
