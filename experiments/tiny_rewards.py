"""Real CLIP and BLIP of transformers at toy size, on disk as published ones are: with a tokenizer written by hand."""

import itertools
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Generator

WORDS = ["cat", "dog", "photo", "red"]
"""Words of one token; all others are spelt."""


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json of a CLIP tokenizer of letters and a few words."""
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    merges, pieces = [], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *pieces])
    vocabulary = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))


def write_clip(
    folder: Path, seed: int = 0, n_features: int = 8, image_size: int = 16, n_tokens: int = 12
) -> Path:
    """Write a CLIP with two layers a tower and weights large enough that images and texts differ; return the folder."""
    from transformers import CLIPConfig, CLIPModel

    write_tokenizer(folder)
    end = len(json.loads((folder / "vocab.json").read_text())) - 1
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = {**layers, **ids, "vocab_size": end + 1, "max_position_embeddings": n_tokens}
    vision = {**layers, "image_size": image_size, "patch_size": image_size // 2}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=n_features)
    filled(CLIPModel, config, seed).save_pretrained(folder)
    return folder


def write_blip_tokenizer(folder: Path) -> None:
    """Write vocab.txt of a BERT tokenizer of letters and a few words."""
    letters = [f"{mark}{letter}" for mark in ("", "##") for letter in string.ascii_lowercase]
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *letters, *WORDS]) + "\n")


def write_image_reward(folder: Path, seed: int = 0) -> Path:
    """Write an ImageReward folder: vision/, text/, a head of two layers and a tokenizer; return the folder."""
    from safetensors.torch import save_file
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    write_blip_tokenizer(folder)
    words = len((folder / "vocab.txt").read_text().split())
    layers = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = BlipVisionConfig(**layers, hidden_size=16, image_size=16, patch_size=8, layer_norm_eps=1e-6)
    ids = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = BlipTextConfig(**layers, **ids, hidden_size=12, encoder_hidden_size=16, vocab_size=words)
    filled(BlipVisionModel, vision, seed).save_pretrained(folder / "vision")
    filled(BlipTextModel, text, seed, add_pooling_layer=False).save_pretrained(folder / "text")
    save_file(head(12, 5, 1, seed=seed), folder / "head.safetensors")
    return folder


def head(*sizes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the tensors of a stack of linear layers with these sizes, numbered as with dropout between them."""
    generator = Generator().manual_seed(seed)
    made = {}
    for i, (into, out) in enumerate(itertools.pairwise(sizes)):
        made[f"layers.{2 * i}.weight"] = torch.randn(out, into, generator=generator)
        made[f"layers.{2 * i}.bias"] = torch.randn(out, generator=generator)
    return made


def filled(kind: Any, config: Any, seed: int, **settings: Any) -> Any:
    """Return a network of a class of transformers with weights that follow from the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config, **settings)
    fill(model, seed)
    return model


def fill(model: torch.nn.Module, seed: int) -> None:
    """Draw all parameters, matrices large enough that outputs depend on inputs, and no two alike."""
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.4 * drawn)
            elif parameter.ndim == 1:
                parameter.add_(0.2 * drawn)


def images(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Return random images."""
    return torch.rand(n, *shape, generator=Generator().manual_seed(seed))


def tiny_clip() -> Path:
    """Return a temporary folder that holds a tiny CLIP, which reads texts as long as the real one does."""
    return write_clip(Path(tempfile.mkdtemp(prefix="bbo-tiny-")), n_tokens=77)


def tiny_head() -> Path:
    """Return a temporary file that holds an aesthetic head for it."""
    from safetensors.torch import save_file

    path = Path(tempfile.mkdtemp(prefix="bbo-tiny-")) / "head.safetensors"
    save_file(head(8, 4, 1), path)
    return path
