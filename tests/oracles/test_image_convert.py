"""Published layouts made into ours: the networks they were written for, built here by hand, say the same as ours."""

import json
import math
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from experiments.tiny_rewards import fill, head, images, write_blip_tokenizer, write_clip
from oracles.errors import OracleError
from oracles.images.aesthetic import Aesthetic
from oracles.images.clip import MEAN, STD
from oracles.images.clip_rewards import HPSv2
from oracles.images.convert import convert_head, convert_hpsv2, convert_image_reward, main
from oracles.images.image_reward import ImageReward

N_HEADS = 2


class Block(nn.Module):
    """A transformer block under the names of open_clip."""

    def __init__(self, width):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, N_HEADS, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 32), "gelu": nn.GELU(), "c_proj": nn.Linear(32, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width) for _ in range(2)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width, n_features):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(5, width))
        self.proj = nn.Parameter(torch.zeros(width, n_features))
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(width)

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = (
            torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1)
            + self.positional_embedding
        )
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """CLIP as open_clip has it: its names, one matrix for queries, keys and values, projections from the right."""

    def __init__(self, n_words, n_tokens=12, width=16, n_features=8):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(n_tokens, width))
        self.text_projection = nn.Parameter(torch.zeros(width, n_features))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.visual = Visual(width, n_features)
        self.transformer = Tower(width)
        self.token_embedding = nn.Embedding(n_words, width)
        self.ln_final = nn.LayerNorm(width)

    def read(self, ids):
        n = ids.shape[1]
        mask = torch.full((n, n), -math.inf).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding[:n], mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection


@pytest.fixture
def clip_h(tmp_path):
    """The folder of the CLIP that HPSv2 was made of, at toy size: GELU, as open_clip's CLIP-H has it."""
    folder = write_clip(tmp_path / "clip_h", seed=9)
    told = json.loads((folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        told[tower]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def open_clip(clip_h):
    model = OpenClip(len(json.loads((clip_h / "vocab.json").read_text()))).eval()
    fill(model, 0)
    return model


class TestHPSv2:
    def test_the_converted_one_says_what_the_original_says(self, tmp_path, clip_h, open_clip):
        torch.save({"epoch": 3, "state_dict": open_clip.state_dict()}, tmp_path / "HPS.pt")
        convert_hpsv2(tmp_path / "HPS.pt", tmp_path / "hpsv2", clip_h)
        reward = HPSv2.load(tmp_path / "hpsv2")
        image = images(2, 3, 16, 16)
        pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.no_grad():
            seen = open_clip.visual(pixels)
            for i, prompt in enumerate(["a red cat", "dog"]):
                ids = torch.tensor([reward.clip.network.tokenizer(prompt).input_ids])
                cosine = torch.cosine_similarity(seen[i], open_clip.read(ids)[0], dim=0)
                assert reward(image[i : i + 1], [prompt]).item() == pytest.approx(cosine.item(), abs=1e-5)
        assert reward.clip.logit_scale == pytest.approx(math.exp(1.5))

    def test_half_precision_and_parallel_training_are_seen_through(self, tmp_path, clip_h, open_clip):
        weights = {f"module.{name}": tensor.half() for name, tensor in open_clip.state_dict().items()}
        torch.save({"state_dict": weights}, tmp_path / "HPS.pt")
        convert_hpsv2(tmp_path / "HPS.pt", tmp_path / "hpsv2", clip_h)
        kept = load_file(tmp_path / "hpsv2" / "model.safetensors")
        assert {tensor.dtype for tensor in kept.values()} == {torch.float32}

    def test_other_tensors_are_refused(self, tmp_path, clip_h, open_clip):
        weights = open_clip.state_dict()
        del weights["ln_final.weight"]
        torch.save({"state_dict": {**weights, "extra": torch.ones(1)}}, tmp_path / "HPS.pt")
        with pytest.raises(
            OracleError, match=r"does not hold the tensors of CLIPModel: (?s:.*)final_layer_norm.weight"
        ):
            convert_hpsv2(tmp_path / "HPS.pt", tmp_path / "hpsv2", clip_h)
        assert not (tmp_path / "hpsv2").exists()


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, N_HEADS, width // N_HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // N_HEADS)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, width))


class VisionBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = Attention(width)
        layers = {"fc1": nn.Linear(width, 32), "act": nn.GELU(), "fc2": nn.Linear(32, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vision(nn.Module):
    """BLIP's vision transformer under its own names."""

    def __init__(self, width=128):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList([VisionBlock(width) for _ in range(2)])
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, pixels):
        patches = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@pytest.fixture
def published(tmp_path):
    """ImageReward.pt at toy size, the parts it was saved from, and the folder of a tokenizer."""
    from transformers import BlipTextConfig, BlipTextModel

    write_blip_tokenizer(tmp_path / "bert")
    layers = {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}
    config = BlipTextConfig(**layers, encoder_hidden_size=128, vocab_size=70, max_position_embeddings=40)
    vision, text, top = (
        Vision().eval(),
        BlipTextModel(config, add_pooling_layer=False).eval(),
        head(128, 6, 1),
    )
    for part in (vision, text):
        fill(part, 1)
    weights = {
        **{f"blip.visual_encoder.{name}": tensor for name, tensor in vision.state_dict().items()},
        **{f"blip.text_encoder.{name}": tensor for name, tensor in text.state_dict().items()},
        **{f"mlp.{name}": tensor for name, tensor in top.items()},
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "blip.vision_proj.weight": torch.ones(3, 128),
    }
    torch.save(weights, tmp_path / "ImageReward.pt")
    return tmp_path, weights, vision, text, top


class TestImageReward:
    def test_the_converted_one_says_what_the_original_says(self, published):
        folder, _, vision, text, top = published
        convert_image_reward(folder / "ImageReward.pt", folder / "image_reward", folder / "bert")
        reward = ImageReward.load(folder / "image_reward")
        image = images(2, 3, 16, 16)
        pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        ids = torch.tensor([reward.network.tokenizer("a red dog").input_ids] * 2)
        with torch.no_grad():
            first = text(ids, encoder_hidden_states=vision(pixels)).last_hidden_state[:, 0]
            for i in (0, 2):
                first = nn.functional.linear(first, top[f"layers.{i}.weight"], top[f"layers.{i}.bias"])
        expected = (first[:, 0] - 0.16717362830052426) / 1.0333394966054072
        assert torch.allclose(reward(image, ["a red dog"] * 2), expected, rtol=1e-4, atol=1e-4)

    def test_other_checkpoints_are_refused(self, published):
        folder, weights, *_ = published
        for lost, said in (
            (
                "mlp.",
                "expected blip.visual_encoder, blip.text_encoder and mlp in .*, got blip.text_encoder, ",
            ),
            (
                "blip.text_encoder.encoder.layer.0.crossattention.",
                "that sees images, without .*crossattention",
            ),
            ("blip.visual_encoder.pos_embed", "without 'pos_embed'"),
            ("blip.visual_encoder.norm.", "does not hold the tensors of BlipVisionModel"),
        ):
            kept = {name: tensor for name, tensor in weights.items() if not name.startswith(lost)}
            torch.save(kept, folder / "broken.pt")
            with pytest.raises(OracleError, match=said):
                convert_image_reward(folder / "broken.pt", folder / "out", folder / "bert")

    def test_a_tokenizer_is_needed(self, published):
        folder, *_ = published
        with pytest.raises(OracleError, match="expected a tokenizer in"):
            convert_image_reward(folder / "ImageReward.pt", folder / "out", folder)


class TestHead:
    def test_a_published_head_is_kept_as_it_is(self, tmp_path):
        torch.save(head(8, 4, 1), tmp_path / "head.pth")
        assert main(["head", str(tmp_path / "head.pth"), str(tmp_path / "new" / "head.safetensors")]) == 0
        kept = load_file(tmp_path / "new" / "head.safetensors")
        assert all(torch.equal(kept[name], tensor) for name, tensor in head(8, 4, 1).items())
        clip = write_clip(tmp_path / "clip")
        assert Aesthetic.load(tmp_path / "new" / "head.safetensors", clip)(
            images(2, 3, 16, 16), []
        ).shape == (2,)

    @pytest.mark.parametrize("found", [head(8, 4, 2), {"weight": torch.ones(3)}, {}])
    def test_what_is_no_head_is_refused_and_leaves_nothing(self, tmp_path, found):
        torch.save(found, tmp_path / "head.pth")
        with pytest.raises(OracleError, match="expected a head"):
            convert_head(tmp_path / "head.pth", tmp_path / "head.safetensors")
        assert not (tmp_path / "head.safetensors").exists()


class TestFiles:
    def test_a_file_that_could_run_code_is_not_read(self, tmp_path):
        torch.save({"state_dict": {"weight": torch.ones(1)}, "run": print}, tmp_path / "hostile.pt")
        with pytest.raises(OracleError, match="cannot be read as weights alone"):
            convert_head(tmp_path / "hostile.pt", tmp_path / "out.safetensors")

    def test_other_files_are_refused(self, tmp_path):
        with pytest.raises(OracleError, match="there is no file"):
            convert_head(tmp_path / "none.pt", tmp_path / "out.safetensors")
        (tmp_path / "torn.pt").write_bytes(b"torn")
        with pytest.raises(OracleError, match="cannot be read"):
            convert_head(tmp_path / "torn.pt", tmp_path / "out.safetensors")
        torch.save([1, 2], tmp_path / "list.pt")
        with pytest.raises(OracleError, match=r"expected named tensors .* got a list"):
            convert_head(tmp_path / "list.pt", tmp_path / "out.safetensors")


class TestCommand:
    def test_a_mistake_is_one_line(self, tmp_path):
        command = [
            sys.executable,
            "-m",
            "oracles.images.convert",
            "head",
            str(tmp_path / "none.pt"),
            "out.safetensors",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("there is no file")

    def test_what_it_converts(self, published, clip_h, open_clip):
        folder, *_ = published
        arguments = ["image_reward", folder / "ImageReward.pt", folder / "out", "--like", folder / "bert"]
        assert main(list(map(str, arguments))) == 0
        assert ImageReward.load(folder / "out").name == "image reward"
        torch.save(open_clip.state_dict(), folder / "HPS.pt")
        assert main(list(map(str, ["hpsv2", folder / "HPS.pt", folder / "hps", "--like", clip_h]))) == 0
        assert HPSv2.load(folder / "hps").name == "hpsv2"

    @pytest.mark.parametrize("arguments", [["hpsv2", "a", "b"], ["head", "a", "b", "--like", "c"]])
    def test_like_is_for_networks(self, arguments, capsys):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "--like is needed for hpsv2 and image_reward, and for them alone" in capsys.readouterr().err
