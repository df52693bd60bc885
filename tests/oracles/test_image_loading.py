"""Where weights come from, and what is said when they do not come."""

import json
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.tiny_rewards import head, images, write_clip
from oracles.errors import OracleError
from oracles.images.clip import Clip
from oracles.images.heads import linear_head
from oracles.images.loading import Source, fingerprint, tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    return write_clip(tmp_path / "clip")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache on this machine, and a hub that nobody can reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


def cached(hub, files):
    """Lay files into the cache as a download does."""
    snapshot = hub / "models--owner--name" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(files, snapshot)
    return snapshot


def test_a_folder_is_taken_as_it_is(folder):
    assert Source(str(folder)).folder() == folder


@pytest.mark.parametrize("model", ["/no/such/folder", "nothing", "a/b/c"])
def test_a_folder_that_is_not_there(model):
    with pytest.raises(OracleError, match=f"there is no folder {model}; expected one, or a hub id"):
        Clip.load(model)


@pytest.mark.parametrize("revision", [None, "main", "0123abc", COMMIT.upper(), COMMIT + "0"])
def test_a_hub_id_needs_its_commit(revision):
    with pytest.raises(OracleError, match="needs a revision of 40 hex digits"):
        Clip.load("openai/clip-vit-large-patch14", revision)


def test_what_an_earlier_download_left_needs_no_network(hub, folder):
    snapshot = cached(hub, folder)
    source = Source("owner/name", COMMIT, local_files_only=True)
    assert source.folder() == snapshot
    assert Clip.load("owner/name", COMMIT) == Clip.load(folder)


@pytest.mark.parametrize("local_files_only", [True, False])
def test_without_a_network_it_says_at_once_how_to_download(hub, local_files_only):
    began = time.monotonic()
    with pytest.raises(OracleError) as caught:
        Clip.load("owner/name", COMMIT, local_files_only)
    assert time.monotonic() - began < 2
    assert f"hf download owner/name --revision {COMMIT}" in str(caught.value)
    assert "owner/name at 0123" in str(caught.value)


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        began = time.monotonic()
        with pytest.raises(OracleError, match=r"the hub cannot be asked .*hf download"):
            Clip.load("owner/name", COMMIT)
    assert time.monotonic() - began < 2


def test_a_cached_tokenizer_alone_is_no_model(hub, folder):
    (folder / "model.safetensors").unlink()
    cached(hub, folder)
    with pytest.raises(OracleError, match="not on this machine"):
        Clip.load("owner/name", COMMIT, local_files_only=True)


def test_a_folder_of_bin_files_is_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        OracleError, match=r"expected weights as safetensors .* got only pytorch_model.bin; .*save_pretrained"
    ):
        Clip.load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(OracleError, match="got no weights"):
        Clip.load(folder)


def test_another_checkpoint_is_refused(folder, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    small = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    CLIPTextModel(small).save_pretrained(tmp_path / "text")
    with pytest.raises(
        OracleError, match=r"expected a checkpoint of model_type 'clip' .* got 'clip_text_model'"
    ):
        Clip.load(tmp_path / "text")
    (tmp_path / "none").mkdir()
    with pytest.raises(OracleError, match=r"expected a model in .*none, with its config.json"):
        Clip.load(tmp_path / "none")
    (folder / "config.json").write_text("[]")
    with pytest.raises(OracleError, match="got a list"):
        Clip.load(folder)


def test_weights_with_gaps_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(OracleError, match=r"lack 1 tensors of CLIPModel, such as text_projection.weight"):
        Clip.load(folder)


def test_weights_of_another_size_and_torn_files_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {**weights, "text_projection.weight": torch.ones(3, 3)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(OracleError, match="cannot be read"):
        Clip.load(folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(OracleError, match="cannot be read"):
        Clip.load(folder)


def test_a_tokenizer_that_is_missing_or_foreign_is_refused(folder):
    told = json.loads((folder / "config.json").read_text())
    told["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(OracleError, match=r"ends a text with token \d+, but its config.json says 7"):
        Clip.load(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(OracleError, match="expected a tokenizer"):
        Clip.load(folder)


def test_the_way_in_which_first_releases_mark_the_end_of_a_text(folder):
    usual = Clip.load(folder).text_features(["a red cat", "dog"])
    told = json.loads((folder / "config.json").read_text())
    told["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(told))
    assert torch.equal(Clip.load(folder).text_features(["a red cat", "dog"]), usual)


def test_a_fingerprint_follows_the_contents_wherever_they_lie(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    for name in ("README.md", "open_clip_model.safetensors", "pytorch_model.bin", "training.json"):
        (copy / name).write_text("what a whole repository holds besides")
    assert fingerprint(copy) == fingerprint(folder)
    (copy / "merges.txt").write_text("#version: 0.2\n")
    assert fingerprint(copy) != fingerprint(folder)


def test_the_statistics_of_another_preprocessor_are_read(folder):
    usual = Clip.load(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    other = Clip.load(folder)
    image = images(1, 3, 16, 16)
    assert not torch.allclose(other.image_features(image), usual.image_features(image))
    own = other.network.module.get_image_features(pixel_values=2 * image - 1).pooler_output
    assert torch.allclose(other.image_features(image), own / own.norm(), atol=1e-6)


class TestHeads:
    def test_a_stack_is_the_product_of_its_layers(self, tmp_path):
        parts = head(8, 5, 3, 1)
        save_file(parts, tmp_path / "head.safetensors")
        weight, bias = linear_head(tmp_path / "head.safetensors", 8)
        x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        y = x
        for i in (0, 2, 4):
            y = y @ parts[f"layers.{i}.weight"].double().T + parts[f"layers.{i}.bias"].double()
        assert torch.allclose(x @ weight + bias, y[:, 0], rtol=1e-12)

    def test_more_than_ten_layers_are_in_the_order_of_their_numbers(self, tmp_path):
        parts = head(*[2] * 8, 1)  # layers.0 … layers.14
        save_file(parts, tmp_path / "head.safetensors")
        weight, _ = linear_head(tmp_path / "head.safetensors", 2)
        expected = torch.eye(2, dtype=torch.float64)
        for i in range(0, 16, 2):
            expected = parts[f"layers.{i}.weight"].double() @ expected
        assert torch.allclose(weight, expected[0], rtol=1e-12)

    def test_one_layer(self, tmp_path):
        save_file(
            {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}, tmp_path / "head.safetensors"
        )
        weight, bias = linear_head(tmp_path / "head.safetensors", 2)
        assert (weight.tolist(), bias.item()) == ([1.0, 2.0], 3.0)

    @pytest.mark.parametrize(
        ("parts", "said"),
        [
            (head(7, 1), "expected a head on 8 features in .*, got one on 7"),
            (head(8, 4, 2), r"that end in 1 number, got layers of shape \(out, in\) \(4, 8\), \(2, 4\)"),
            ({**head(8, 4), **{f"x{k}": v for k, v in head(3, 1).items()}}, "that end in 1 number"),
            ({"weight": torch.ones(1, 8)}, "the weight and the bias of each layer, got weight"),
            ({**head(8, 1), "running_mean": torch.ones(3)}, "the weight and the bias of each layer"),
            ({"weight": torch.ones(8), "bias": torch.ones(1)}, r"shape \(out, in\) \(8,\)"),
            ({"weight": torch.tensor(1.0), "bias": torch.ones(1)}, r"shape \(out, in\) \(\)"),
            ({"weight": torch.ones(1, 8), "bias": torch.tensor(1.0)}, "that end in 1 number"),
            ({}, "got nothing"),
        ],
    )
    def test_what_is_no_head_on_these_features_is_refused(self, tmp_path, parts, said):
        save_file(parts, tmp_path / "head.safetensors")
        with pytest.raises(OracleError, match=said):
            linear_head(tmp_path / "head.safetensors", 8)

    def test_other_files_are_refused(self, tmp_path):
        with pytest.raises(OracleError, match="there is no file"):
            tensors(tmp_path / "none.safetensors")
        torch.save(head(8, 1), tmp_path / "head.pth")
        with pytest.raises(OracleError, match=r"no safetensors file .*python -m oracles.images.convert"):
            tensors(tmp_path / "head.pth")
