"""Stable Diffusion 1.5 and 2.1, and Stable Diffusion XL, as priors.

Latent diffusion: Rombach et al. 2022 (arXiv 2112.10752). XL's conditioning on size and crop: Podell et al. 2023 (arXiv
2307.01952).
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
from smc.priors.pipelines.precision import Dtype, Precision
from smc.priors.pipelines.prompting import Prompting, reader_digest
from smc.priors.pipelines.schedulers import ddim_chain


class StableDiffusionPrior(LatentPrior):
    """Stable Diffusion 1.5 or 2.1 under prompts, walked by DDIM over the noise table of its scheduler."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathOrId | Path,
        *,
        prompts: Sequence[str] = (),
        prompts_file: str | Path | None = None,
        negative_prompt: str | None = None,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        n_steps: int = 50,
        eta: float = 1.0,
        precision: Precision = Precision(),
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> StableDiffusionPrior:
        """Load a StableDiffusionPipeline from a folder or, at a pinned commit, from a hub.

        prompts, prompts_file: one prompt an island, in turn; a file has one a line. guidance_scale: of classifier-free
        guidance; 1 switches it off. height, width: pixels, None for the model's own. eta: noise of the chain.

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
        n_steps: int = 50,
        eta: float = 1.0,
        precision: Precision = Precision(),
    ) -> StableDiffusionPrior:
        """Return the prior of a loaded StableDiffusionPipeline, whose networks it freezes and keeps."""
        prompting.warn_of_cuts([(pipeline.tokenizer, None)])
        decoder = ImageDecoder(precision.prepared_vae(pipeline.vae), precision)
        size = image_size(height, width, pipeline.unet.config.sample_size, decoder.factor)
        chain = ddim_chain(pipeline.scheduler, n_steps, eta)
        with torch.no_grad():
            positive, negative = pipeline.encode_prompt(
                list(prompting.prompts),
                pipeline.unet.device,
                1,
                prompting.is_guided,
                negative_prompt=prompting.negatives,
            )
        dtype = pipeline.unet.dtype
        conditions = Conditions(
            {"encoder_hidden_states": positive.to(dtype)},
            {"encoder_hidden_states": negative.to(dtype)} if prompting.is_guided else None,
            prompting.guidance_scale,
        ).checked()
        reader = reader_digest([pipeline.text_encoder], [pipeline.tokenizer])
        network = precision.prepared(pipeline.unet)
        return cls(network, decoder, chain, conditions, prompting, size, precision, reader)

    def alpha_bar(self, t: int) -> float:
        """Return ᾱ_t, the share of the variance of x_t that is signal."""
        return self.chain.levels.at[t][0] ** 2

    def _answer(self, x: Tensor, t: float, embeddings: Embeddings) -> Tensor:
        return unet_output(self.network, x, t, embeddings)


class StableDiffusionXLPrior(LatentPrior):
    """Stable Diffusion XL under prompts: two text encoders, conditioned on the size and crop of training images."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathOrId | Path,
        *,
        prompts: Sequence[str] = (),
        prompts_file: str | Path | None = None,
        negative_prompt: str | None = None,
        guidance_scale: float = 5.0,
        height: int | None = None,
        width: int | None = None,
        original_size: tuple[int, int] | None = None,
        crop_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        n_steps: int = 50,
        eta: float = 1.0,
        precision: Precision = Precision(),
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> StableDiffusionXLPrior:
        """Load a StableDiffusionXLPipeline from a folder or, at a pinned commit, from a hub.

        original_size, crop_top_left, target_size: (height, width) and (top, left) in pixels that the network is told;
        None is the image's own size. The others are as for `StableDiffusionPrior`.

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
        )
        return cls.from_pipeline(
            pipeline,
            prompting,
            height=height,
            width=width,
            original_size=original_size,
            crop_top_left=crop_top_left,
            target_size=target_size,
            n_steps=n_steps,
            eta=eta,
            precision=precision,
        )

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Any,
        prompting: Prompting,
        *,
        height: int | None = None,
        width: int | None = None,
        original_size: tuple[int, int] | None = None,
        crop_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        n_steps: int = 50,
        eta: float = 1.0,
        precision: Precision = Precision(),
    ) -> StableDiffusionXLPrior:
        """Return the prior of a loaded StableDiffusionXLPipeline, whose networks it freezes and keeps."""
        encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
        tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2]
        if None in encoders or None in tokenizers:
            raise PriorError(
                "expected Stable Diffusion XL's two text encoders and tokenizers; a refiner has one"
            )
        prompting.warn_of_cuts([(tokenizer, None) for tokenizer in tokenizers])
        if precision.weights is Dtype.FLOAT16 and pipeline.vae.config.get("force_upcast"):
            pipeline.vae.float()  # XL's own overflows in float16, and the flag of its config says so
        decoder = ImageDecoder(precision.prepared_vae(pipeline.vae), precision)
        size = image_size(height, width, pipeline.unet.config.sample_size, decoder.factor)
        chain = ddim_chain(pipeline.scheduler, n_steps, eta)
        with torch.no_grad():
            positive, negative, pooled, negative_pooled = pipeline.encode_prompt(
                list(prompting.prompts),
                device=pipeline.unet.device,
                do_classifier_free_guidance=prompting.is_guided,
                negative_prompt=prompting.negatives,
            )
        told = (*(original_size or size), *crop_top_left, *(target_size or size))
        dtype = pipeline.unet.dtype
        time_ids = torch.tensor([told] * len(prompting.prompts), dtype=dtype, device=positive.device)
        conditions = Conditions(
            _xl_embeddings(positive.to(dtype), pooled.to(dtype), time_ids),
            _xl_embeddings(negative.to(dtype), negative_pooled.to(dtype), time_ids)
            if prompting.is_guided
            else None,
            prompting.guidance_scale,
        ).checked()
        is_zero = pipeline.config.force_zeros_for_empty_prompt
        reader = f"{reader_digest(encoders, tokenizers)} {told} {is_zero}"
        network = precision.prepared(pipeline.unet)
        return cls(network, decoder, chain, conditions, prompting, size, precision, reader)

    def alpha_bar(self, t: int) -> float:
        """Return ᾱ_t, the share of the variance of x_t that is signal."""
        return self.chain.levels.at[t][0] ** 2

    def _answer(self, x: Tensor, t: float, embeddings: Embeddings) -> Tensor:
        return unet_output(self.network, x, t, embeddings)


def _xl_embeddings(hidden: Tensor, pooled: Tensor, time_ids: Tensor) -> Embeddings:
    return {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": time_ids}


def unet_output(unet: Any, x: Tensor, t: float, embeddings: Embeddings) -> Tensor:
    """Return what a UNet2DConditionModel answers; XL's two embeddings are passed together."""
    added = {name: embeddings[name] for name in ("text_embeds", "time_ids") if name in embeddings}
    output: Tensor = unet(
        x,
        torch.full((), t, device=x.device),
        encoder_hidden_states=embeddings["encoder_hidden_states"],
        timestep_cond=embeddings.get("timestep_cond"),
        added_cond_kwargs=added or None,
        return_dict=False,
    )[0]
    return output
