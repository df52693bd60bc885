"""Latent consistency models as priors: a few steps, each with new noise.

Luo et al. 2023 (arXiv 2310.04378). Guidance is distilled into the network, which is told the scale; there is no
unconditional pass and no negative prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smc.errors import PriorError
from smc.priors.pipelines.conditions import Conditions, Embeddings
from smc.priors.pipelines.latent_prior import LatentPrior, image_size
from smc.priors.pipelines.latents import ImageDecoder
from smc.priors.pipelines.loading import PathOrId, load_pipeline
from smc.priors.pipelines.precision import Precision
from smc.priors.pipelines.prompting import Prompting, reader_digest
from smc.priors.pipelines.schedulers import consistency_chain
from smc.priors.pipelines.stable_diffusion import unet_output


class LatentConsistencyPrior(LatentPrior):
    """A latent consistency model under prompts, sampled in several steps."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathOrId | Path,
        *,
        prompts: Sequence[str] = (),
        prompts_file: str | Path | None = None,
        guidance_scale: float = 8.5,
        height: int | None = None,
        width: int | None = None,
        n_steps: int = 8,
        precision: Precision = Precision(),
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> LatentConsistencyPrior:
        """Load a LatentConsistencyModelPipeline from a folder or, at a pinned commit, from a hub.

        guidance_scale: what the network is told of guidance, on Stable Diffusion's scale. The others are as for
        `StableDiffusionPrior`.

        Raises PriorError for what cannot be loaded or does not fit. Warns of prompts that are cut.
        """
        prompting = Prompting.of(prompts, prompts_file, guidance_scale)
        pipeline = load_pipeline(
            cls.__name__,
            path_or_id,
            revision=revision,
            variant=variant,
            local_files_only=local_files_only,
            dtype=precision.weights,
        )
        return cls.from_pipeline(
            pipeline, prompting, height=height, width=width, n_steps=n_steps, precision=precision
        )

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Any,
        prompting: Prompting,
        *,
        height: int | None = None,
        width: int | None = None,
        n_steps: int = 8,
        precision: Precision = Precision(),
    ) -> LatentConsistencyPrior:
        """Return the prior of a loaded LatentConsistencyModelPipeline, whose networks it freezes and keeps."""
        unet = pipeline.unet
        if unet.config.time_cond_proj_dim is None:
            raise PriorError(
                "this UNet takes no embedding of the guidance scale (time_cond_proj_dim), so it is not a distilled "
                "latent consistency model"
            )
        prompting.warn_of_cuts([(pipeline.tokenizer, None)])
        decoder = ImageDecoder(precision.prepared_vae(pipeline.vae), precision)
        size = image_size(height, width, unet.config.sample_size, decoder.factor)
        chain = consistency_chain(pipeline.scheduler, n_steps)
        with torch.no_grad():
            positive, _ = pipeline.encode_prompt(list(prompting.prompts), unet.device, 1, False)
            scales = torch.full((len(prompting.prompts),), prompting.guidance_scale - 1)
            told = pipeline.get_guidance_scale_embedding(scales, embedding_dim=unet.config.time_cond_proj_dim)
        conditions = Conditions(
            {
                "encoder_hidden_states": positive.to(unet.dtype),
                "timestep_cond": told.to(positive.device, unet.dtype),
            }
        ).checked()
        reader = reader_digest([pipeline.text_encoder], [pipeline.tokenizer])
        network = precision.prepared(unet)
        return cls(network, decoder, chain, conditions, prompting, size, precision, reader)

    def _answer(self, x: Tensor, t: float, embeddings: Embeddings) -> Tensor:
        return unet_output(self.network, x, t, embeddings)
