"""Published checkpoints made into safetensors that the rewards load: once, beforehand, where they are trusted.

    python -m oracles.images.convert head         sac+logos+ava1-l14-linearMSE.pth  aesthetic.safetensors
    python -m oracles.images.convert hpsv2        HPS_v2.1_compressed.pt  hpsv2/         --like CLIP-H/
    python -m oracles.images.convert image_reward ImageReward.pt          image_reward/  --like bert-base-uncased/

`--like` is a folder with what those files lack: for HPSv2 the configuration and tokenizer of
laion/CLIP-ViT-H-14-laion2B-s32B-b79K, for ImageReward the tokenizer of bert-base-uncased. Files are read with
weights_only=True, which runs no code; every tensor of a network must find its place, and every place its tensor.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from oracles.errors import OracleError
from oracles.images.heads import collapsed
from oracles.images.loading import configuration, vocabulary

Weights = Mapping[str, Tensor]

HEAD_WIDTH = 64
"""Features of one attention head in all of BLIP, whose checkpoints do not say how many heads they have."""


def convert_head(checkpoint: Path, file: Path) -> None:
    """Write a head of linear layers, as LAION publishes them. Raises OracleError for what is no such head."""
    found = _checkpoint(checkpoint)
    collapsed(found, checkpoint)
    _write(found, file)


def convert_hpsv2(checkpoint: Path, folder: Path, like: Path) -> None:
    """Write HPSv2 as a CLIP of transformers. Raises OracleError when its tensors are not those of `like`'s CLIP.

    like: a folder with config.json and tokenizer of the CLIP that was fine-tuned.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    configuration(like)
    tokenizer = vocabulary(CLIPTokenizer, like)
    weights = clip_of_open_clip(_checkpoint(checkpoint))
    config = CLIPConfig.from_pretrained(like)
    _filled(CLIPModel, config, weights, checkpoint).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if (statistics := like / "preprocessor_config.json").exists():
        shutil.copy(statistics, folder)


def convert_image_reward(checkpoint: Path, folder: Path, like: Path) -> None:
    """Write ImageReward as BLIP of transformers and a head. Raises OracleError for another checkpoint.

    like: a folder with the tokenizer of bert-base-uncased.
    """
    from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    tokenizer = vocabulary(BertTokenizer, like)
    found = _checkpoint(checkpoint)
    seen, read = _part(found, "blip.visual_encoder."), _part(found, "blip.text_encoder.")
    head = _part(found, "mlp.")
    if not (seen and read and head):
        raise OracleError(
            f"expected blip.visual_encoder, blip.text_encoder and mlp in {checkpoint}, got {_some(found)}"
        )
    collapsed(head, checkpoint)
    vision = _filled(BlipVisionModel, BlipVisionConfig(**_vision_sizes(seen)), blip_vision(seen), checkpoint)
    text_weights = {name: t for name, t in read.items() if name != "embeddings.position_ids"}
    text_config = BlipTextConfig(**_text_sizes(read), is_decoder=True)
    text = _filled(BlipTextModel, text_config, text_weights, checkpoint, add_pooling_layer=False)
    vision.save_pretrained(folder / "vision")
    text.save_pretrained(folder / "text")
    _write(head, folder / "head.safetensors")
    tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------- names
_OPEN_CLIP = (
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"visual\.proj$", "visual_projection.weight"),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"ln_final\.", "text_model.final_layer_norm."),
    (r"text_projection$", "text_projection.weight"),
)
_OPEN_CLIP_LAYER = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_BLIP_VISION = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"blocks\.", "encoder.layers."),
    (r"norm\.", "post_layernorm."),
)
_BLIP_VISION_LAYER = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


def clip_of_open_clip(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors of open_clip's CLIP under the names of transformers.

    There, queries, keys and values are one matrix, and projections multiply from the right.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        new = _renamed(name, _OPEN_CLIP, _OPEN_CLIP_LAYER)
        layer, is_joint, kind = new.partition(".attn.in_proj_")
        if is_joint:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                made[f"{layer}.self_attn.{part}_proj.{kind}"] = rows
        elif new in ("visual_projection.weight", "text_projection.weight"):
            made[new] = tensor.T
        else:
            made[new] = tensor
    return made


def blip_vision(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors of BLIP's vision transformer under the names of transformers."""
    return {_renamed(name, _BLIP_VISION, _BLIP_VISION_LAYER): tensor for name, tensor in weights.items()}


def _renamed(name: str, starts: Iterable[tuple[str, str]], inside: Iterable[tuple[str, str]]) -> str:
    for old, new in starts:
        if re.match(old, name):
            name = re.sub(f"^{old}", new, name)
            break
    for old, new in inside:
        name = name.replace(old, new)
    return name


# ------------------------------------------------------------------- sizes
def _vision_sizes(weights: Weights) -> dict[str, Any]:
    """Return the configuration of BLIP's vision transformer, read off its tensors."""
    try:
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
        inner = weights["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as missing:
        raise OracleError(f"expected a vision transformer of BLIP, without {missing} in it") from missing
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _n_layers(weights, r"blocks\.(\d+)\."),
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": side * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,  # timm's, which BLIP was trained with
    }


def _text_sizes(weights: Weights) -> dict[str, Any]:
    """Return the configuration of BLIP's text encoder, read off its tensors."""
    try:
        words, width = weights["embeddings.word_embeddings.weight"].shape
        places = weights["embeddings.position_embeddings.weight"].shape[0]
        inner = weights["encoder.layer.0.intermediate.dense.weight"].shape[0]
        seen = weights["encoder.layer.0.crossattention.self.key.weight"].shape[1]
    except KeyError as missing:
        raise OracleError(
            f"expected a text encoder of BLIP that sees images, without {missing} in it"
        ) from missing
    return {
        "vocab_size": words,
        "hidden_size": width,
        "encoder_hidden_size": seen,
        "intermediate_size": inner,
        "num_hidden_layers": _n_layers(weights, r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": places,
    }


def _n_layers(weights: Weights, pattern: str) -> int:
    return 1 + max(int(found[1]) for name in weights if (found := re.match(pattern, name)))


# ------------------------------------------------------------------- files
def _checkpoint(path: Path) -> Weights:
    """Return the tensors of a .pt or .pth file, in float32, without what its training wrapped around them."""
    if not path.is_file():
        raise OracleError(f"there is no file {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or hostile file may make torch raise anything
        raise OracleError(f"{path} cannot be read as weights alone: {error}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise OracleError(f"expected named tensors in {path}, got a {type(found).__name__}")
    return {
        name.removeprefix("module."): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in found.items()
    }


def _part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}


def _filled(kind: Any, config: Any, weights: Weights, checkpoint: Path, **settings: Any) -> Any:
    """Return a network of transformers with these tensors. Raises OracleError unless they are its own, all of them."""
    network = kind(config, **settings)
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise OracleError(f"{checkpoint} does not hold the tensors of {kind.__name__}: {error}") from error
    return network


def _write(weights: Weights, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, file)


def _some(weights: Weights) -> str:
    names = sorted({".".join(name.split(".")[:2]) for name in weights})
    return ", ".join(names[:5]) or "nothing"


# ------------------------------------------------------------------- command
def main(arguments: Sequence[str] | None = None) -> int:
    """Convert what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m oracles.images.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=["head", "hpsv2", "image_reward"])
    parser.add_argument("checkpoint", type=Path, help="the published .pt or .pth file")
    parser.add_argument("out", type=Path, help="what is written: a file for a head, else a folder")
    parser.add_argument("--like", type=Path, help="a folder with what the checkpoint lacks")
    asked = parser.parse_args(arguments)
    if (asked.kind == "head") != (asked.like is None):
        parser.error("--like is needed for hpsv2 and image_reward, and for them alone")
    try:
        if asked.kind == "head":
            convert_head(asked.checkpoint, asked.out)
        else:
            convert = {"hpsv2": convert_hpsv2, "image_reward": convert_image_reward}[asked.kind]
            convert(asked.checkpoint, asked.out, asked.like)
    except OracleError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
