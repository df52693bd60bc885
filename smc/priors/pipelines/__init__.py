"""Pretrained image models as priors: thin adapters over loaded pipelines of diffusers.

    StableDiffusionPrior      1.5, 2.1            StableDiffusionXLPrior    two text encoders
    StableDiffusion3Prior     rectified flow      LatentConsistencyPrior    a few steps
    DDPMPrior                 unconditional, in pixels

Nothing of a pipeline is copied or patched: its networks predict, its autoencoder decodes, and its scheduler's table
and spacing are read once (`schedulers.py`). diffusers is imported when a pipeline is loaded.
"""

from smc.priors.pipelines.latent_consistency import LatentConsistencyPrior
from smc.priors.pipelines.precision import Dtype, Precision
from smc.priors.pipelines.prompting import Prompting
from smc.priors.pipelines.stable_diffusion import StableDiffusionPrior, StableDiffusionXLPrior
from smc.priors.pipelines.stable_diffusion_3 import StableDiffusion3Prior
from smc.priors.pipelines.unconditional import DDPMPrior

__all__ = [
    "DDPMPrior",
    "Dtype",
    "LatentConsistencyPrior",
    "Precision",
    "Prompting",
    "StableDiffusion3Prior",
    "StableDiffusionPrior",
    "StableDiffusionXLPrior",
]
