"""Stable Diffusion 3 and 3.5 as priors: rectified flow, its ODE turned into an SDE so that particles can be told apart.

Esser et al. 2024 (arXiv 2403.03206). The kernel and why it keeps the flow's marginals: `smc/priors/pipelines/chain.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smc.priors.pipelines.conditions import Conditions, Embeddings
from smc.priors.pipelines.latent_prior import LatentPrior, image_size
from smc.priors.pipelines.latents import ImageDecoder
from smc.priors.pipelines.loading import PathOrId, load_pipeline
from smc.priors.pipelines.precision import Precision
from smc.priors.pipelines.prompting import T5_TOKENS, Prompting, reader_digest
from smc.priors.pipelines.schedulers import flow_chain


class StableDiffusion3Prior(LatentPrior):
    """Stable Diffusion 3 under prompts. With eta 0 the chain is the pipeline's own Euler sampler of the ODE."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathOrId | Path,
        *,
        prompts: Sequence[str] = (),
        prompts_file: str | Path | None = None,
        negative_prompt: str | None = None,
        guidance_scale: float = 7.0,
        height: int | None = None,
        width: int | None = None,
        n_steps: int = 28,
        eta: float = 1.0,
        uses_t5: bool = True,
        precision: Precision = Precision(),
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> StableDiffusion3Prior:
        """Load a StableDiffusion3Pipeline from a folder or, at a pinned commit, from a hub.

        uses_t5: whether the third text encoder is loaded, by far the largest; the model works without it. The others
        are as for `StableDiffusionPrior`.

        Raises PriorError for what cannot be loaded or does not fit. Warns of prompts that are cut.
        """
        prompting = Prompting.of(prompts, prompts_file, guidance_scale, negative_prompt)
        pipeline = load_pipeline(
            cls.__name__,
            path_or_id,
            revision=revision,
            variant=variant,
            local_files_only=local_files_only,
            dtype=precision.weights,
            omitted=() if uses_t5 else ("text_encoder_3", "tokenizer_3"),
        )
        return cls.from_pipeline(
            pipeline, prompting, height=height, width=width, n_steps=n_steps, eta=eta, precision=precision
        )

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Any,
        prompting: Prompting,
        *,
        height: int | None = None,
        width: int | None = None,
        n_steps: int = 28,
        eta: float = 1.0,
        precision: Precision = Precision(),
    ) -> StableDiffusion3Prior:
        """Return the prior of a loaded StableDiffusion3Pipeline, whose networks it freezes and keeps."""
        encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
        limits = [(pipeline.tokenizer, None), (pipeline.tokenizer_2, None), (pipeline.tokenizer_3, T5_TOKENS)]
        readers = [(tokenizer, limit) for tokenizer, limit in limits if tokenizer is not None]
        prompting.warn_of_cuts(readers)
        transformer = pipeline.transformer
        decoder = ImageDecoder(precision.prepared_vae(pipeline.vae), precision)
        patch = int(transformer.config.patch_size)
        size = image_size(height, width, transformer.config.sample_size, decoder.factor, patch)
        n_tokens = (size[0] // (decoder.factor * patch)) * (size[1] // (decoder.factor * patch))
        chain = flow_chain(pipeline.scheduler, n_steps, eta, n_tokens)
        with torch.no_grad():
            positive, negative, pooled, negative_pooled = pipeline.encode_prompt(
                list(prompting.prompts),
                None,
                None,
                device=transformer.device,
                do_classifier_free_guidance=prompting.is_guided,
                negative_prompt=prompting.negatives,
            )
        dtype = transformer.dtype
        conditions = Conditions(
            {"encoder_hidden_states": positive.to(dtype), "pooled_projections": pooled.to(dtype)},
            {"encoder_hidden_states": negative.to(dtype), "pooled_projections": negative_pooled.to(dtype)}
            if prompting.is_guided
            else None,
            prompting.guidance_scale,
        ).checked()
        reader = reader_digest(
            [e for e in encoders if e is not None], [tokenizer for tokenizer, _ in readers]
        )
        network = precision.prepared(transformer)
        return cls(network, decoder, chain, conditions, prompting, size, precision, reader)

    def _answer(self, x: Tensor, t: float, embeddings: Embeddings) -> Tensor:
        output: Tensor = self.network(
            hidden_states=x,
            timestep=torch.full((len(x),), t, device=x.device),
            encoder_hidden_states=embeddings["encoder_hidden_states"],
            pooled_projections=embeddings["pooled_projections"],
            return_dict=False,
        )[0]
        return output

    @property
    def _network_name(self) -> str:
        return "transformer"
