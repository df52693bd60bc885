"""Pipelines of diffusers' own classes at toy size, their weights random: for examples, tests and benchmarks offline.

    python -m experiments.tiny_pipelines stable_diffusion FOLDER

Images are noise of course, but every class, config and file is the real one: 5 MB, a tenth of a second for ten steps.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "photo", "of", "cat", "dog", "red", "blue", "house", "blurry", "in", "the", "rain")
"""What the tokenizer knows; other words fall apart into letters."""
N_TOKENS = 77
WIDTH = 16
"""Of the text encoders."""
IMAGE_SIZE = 16
"""Pixels a side; latents have 8."""


def save_tiny(kind: str, folder: Path, **changes: Any) -> Path:
    """Write a pipeline of some kind (a key of KINDS) with weights from seed 0, and return its folder.

    changes: of the scheduler's config.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        KINDS[kind](changes).save_pretrained(folder, safe_serialization=True)
    return folder


def stable_diffusion(changes: dict[str, Any]) -> Any:
    """Return a StableDiffusionPipeline with the scheduler of 1.5."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        unet=_unet(cross_attention_dim=WIDTH),
        scheduler=PNDMScheduler(
            **{**_SD_SCHEDULE, "set_alpha_to_one": False, "skip_prk_steps": True, **changes}
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(changes: dict[str, Any]) -> Any:
    """Return a StableDiffusionXLPipeline."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = _unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=_text_encoder(),
        text_encoder_2=_text_encoder(has_projection=True),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**{**_SD_SCHEDULE, **changes}),
    )


def latent_consistency(changes: dict[str, Any]) -> Any:
    """Return a LatentConsistencyModelPipeline."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    return LatentConsistencyModelPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        unet=_unet(cross_attention_dim=WIDTH, time_cond_proj_dim=32),
        scheduler=LCMScheduler(
            **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **changes}
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3(changes: dict[str, Any]) -> Any:
    """Return a StableDiffusion3Pipeline without its third text encoder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=4 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **changes}),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=_text_encoder(has_projection=True),
        tokenizer=_tokenizer(),
        text_encoder_2=_text_encoder(has_projection=True),
        tokenizer_2=_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def ddpm(changes: dict[str, Any]) -> Any:
    """Return a DDPMPipeline of 8 × 8 grey pixels."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    return DDPMPipeline(unet, DDPMScheduler(**{"beta_schedule": "squaredcos_cap_v2", **changes}))


def sd15_sized() -> Any:
    """Return a StableDiffusionPipeline whose UNet and VAE have the size of version 1.5; not tiny, and untrained."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=_text_encoder(width=768),
        tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=PNDMScheduler(**_SD_SCHEDULE, set_alpha_to_one=False, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_xl": stable_diffusion_xl,
    "stable_diffusion_3": stable_diffusion_3,
    "latent_consistency": latent_consistency,
    "ddpm": ddpm,
}
"""Names as in campaign files."""

_SD_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


# ---------------------------------------------------------------- parts
def _unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        **changes,
    )


def _vae(**changes: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        **changes,
    )


def _text_encoder(*, has_projection: bool = False, width: int = WIDTH) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=N_TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if has_projection else CLIPTextModel)(config)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocabulary = _vocabulary()
    merges = [
        (word[:end], word[end] + ("</w>" if end == len(word) - 1 else ""))
        for word in WORDS
        for end in range(1, len(word))
    ]
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=list(dict.fromkeys(merges)),
        model_max_length=N_TOKENS,
        unk_token="<|endoftext|>",
    )


def _vocabulary() -> dict[str, int]:
    """Return tokens and their numbers: marks, letters, and every beginning and whole of a word."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    parts = [word[:end] for word in WORDS for end in range(2, len(word))]
    whole = [f"{word}</w>" for word in WORDS if len(word) > 1]
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *parts,
        *whole,
    ]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def tiny_folder(kind: str) -> Path:
    """Return a temporary folder that holds a tiny pipeline."""
    return save_tiny(kind, Path(tempfile.mkdtemp(prefix="bbo-tiny-")))


if __name__ == "__main__":
    print(save_tiny(sys.argv[1], Path(sys.argv[2])))
