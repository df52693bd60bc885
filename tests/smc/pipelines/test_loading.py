"""What loading refuses, and what it says; hubs that are not there."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings

import pytest
import torch
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from experiments.tiny_pipelines import save_tiny
from smc.errors import PriorError
from smc.priors.pipelines import (
    DDPMPrior,
    Dtype,
    LatentConsistencyPrior,
    Precision,
    StableDiffusion3Prior,
    StableDiffusionPrior,
    StableDiffusionXLPrior,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CAT = {"prompts": ["a cat"], "n_steps": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny("stable_diffusion", tmp_path_factory.mktemp("saved"))


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


# ---------------------------------------------------------------- folders
@pytest.mark.parametrize(
    ("prior", "use"),
    [
        (StableDiffusionXLPrior, "StableDiffusionXLPrior adapts a StableDiffusionXLPipeline"),
        (LatentConsistencyPrior, "LatentConsistencyPrior adapts a LatentConsistencyModelPipeline"),
        (StableDiffusion3Prior, "StableDiffusion3Prior adapts a StableDiffusion3Pipeline"),
    ],
)
def test_another_pipelines_folder_names_the_prior_for_it(prior, use, saved):
    with pytest.raises(PriorError, match=use) as refusal:
        prior.from_pretrained(saved, **CAT)
    assert "holds a StableDiffusionPipeline; use StableDiffusionPrior for it" in str(refusal.value)


def test_a_class_that_no_prior_adapts(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "AudioLDMPipeline"}))
    with pytest.raises(PriorError, match=r"holds a AudioLDMPipeline$"):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


def test_one_component_is_no_pipeline(saved):
    with pytest.raises(
        PriorError, match=r"no model_index\.json; expected a folder .* not one of its components"
    ):
        StableDiffusionPrior.from_pretrained(saved / "unet", **CAT)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_index(text, copy):
    (copy / "model_index.json").write_text(text)
    with pytest.raises(PriorError, match=r"model_index\.json"):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(component, copy):
    shutil.rmtree(copy / component)
    with pytest.raises(PriorError, match=f"lacks the component {component} "):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


def test_a_component_that_the_index_forgot(copy):
    index = json.loads((copy / "model_index.json").read_text())
    del index["vae"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(PriorError, match=r"lacks vae: its model_index\.json does not name what a StableDiff"):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


def test_the_third_text_encoder_can_be_left_out_but_must_be_said_to_be(tmp_path):
    folder = save_tiny("stable_diffusion_3", tmp_path)
    assert len(StableDiffusion3Prior.from_pretrained(folder, **CAT).steps) == 3, (
        "its index says there is none"
    )
    index = json.loads((folder / "model_index.json").read_text())
    index = {name: part for name, part in index.items() if not name.endswith("_3")}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(PriorError, match=r"lacks text_encoder_3, tokenizer_3.* uses_t5 = false does without"):
        StableDiffusion3Prior.from_pretrained(folder, **CAT)
    assert len(StableDiffusion3Prior.from_pretrained(folder, uses_t5=False, **CAT).steps) == 3


def test_pickled_weights_are_not_read(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), copy / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(
        PriorError, match=r"only diffusion_pytorch_model\.bin, and pickled weights may run code"
    ):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


def test_torn_weights(copy):
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(PriorError, match="cannot load the pipeline"):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


def test_variants_are_files_of_another_name(copy, saved):
    with pytest.raises(PriorError, match=r"has no variant .fp16.; it has config\.json, model\.safetensors"):
        StableDiffusionPrior.from_pretrained(saved, variant="fp16", **CAT)
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        half = {key: tensor.half() for key, tensor in load_file(copy / f"{name}.safetensors").items()}
        save_file(half, copy / f"{name}.fp16.safetensors", metadata={"format": "pt"})
        (copy / f"{name}.safetensors").unlink()
    prior = StableDiffusionPrior.from_pretrained(copy, variant="fp16", **CAT)
    whole = StableDiffusionPrior.from_pretrained(saved, **CAT)
    assert prior.fingerprint() != whole.fingerprint()
    ours, theirs = (next(p.network.parameters()) for p in (prior, whole))
    torch.testing.assert_close(ours, theirs.half().float())


def test_loading_says_nothing_and_leaves_progress_bars_as_they_were(saved, capfd):
    before = logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DDPMPrior.from_pretrained(save_tiny("ddpm", saved / "ddpm"))
    assert logging.is_progress_bar_enabled() == before
    assert "Loading pipeline" not in capfd.readouterr().err


# ---------------------------------------------------------------- hubs
@pytest.mark.parametrize("revision", [None, "main", "fp16", COMMIT[:7]])
def test_a_hubs_model_must_be_pinned(revision):
    with pytest.raises(PriorError, match=f"expected a revision of 40 hex digits, got {revision!r}"):
        StableDiffusionPrior.from_pretrained("nobody/no-such-model", revision=revision, **CAT)


@pytest.mark.parametrize("path", ["models/sd/1.5/x", "./nowhere", "/no/such/folder", "sd15"])
def test_no_folder_and_no_name_of_a_model(path):
    with pytest.raises(PriorError, match=f"no pipeline at {path}: expected a folder"):
        StableDiffusionPrior.from_pretrained(path, revision=COMMIT, **CAT)


def test_only_local_files(monkeypatch):
    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
    began = time.perf_counter()
    with pytest.raises(
        PriorError, match="not whole in the local cache, and only local files are allowed"
    ) as refusal:
        StableDiffusionPrior.from_pretrained(
            "nobody/no-such-model", revision=COMMIT, local_files_only=True, **CAT
        )
    assert (
        f"hf download nobody/no-such-model --revision {COMMIT} --include '*.json' --include '*.txt' --include"
        in str(refusal.value)
    )
    assert time.perf_counter() - began < 10


def test_without_a_network_it_fails_at_once(monkeypatch):
    calls = []

    def unreachable(self, model, **kwargs):
        calls.append(model)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(PriorError, match="cannot be fetched: ConnectionError: Name or service not"):
        StableDiffusionPrior.from_pretrained("nobody/no-such-model", revision=COMMIT, **CAT)
    assert calls == ["nobody/no-such-model"], "no second try"


def test_what_the_cache_holds_is_taken_without_asking(saved, monkeypatch):
    """The cache is written as a download writes it: snapshots by commit."""

    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)

    def download(model, *, revision, local_files_only=False, **kwargs):
        assert (model, revision, local_files_only) == ("some/model", COMMIT, True)
        return str(saved)

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    prior = StableDiffusionPrior.from_pretrained("some/model", revision=COMMIT, **CAT)
    assert prior.fingerprint() == StableDiffusionPrior.from_pretrained(saved, **CAT).fingerprint()


# ---------------------------------------------------------------- what a fingerprint tells apart
def test_fingerprints(saved):
    def fingerprint(**changes):
        return StableDiffusionPrior.from_pretrained(saved, **{**CAT, **changes}).fingerprint()

    plain = fingerprint()
    assert plain == fingerprint()
    changed = [
        {"prompts": ["a dog"]},
        {"prompts": ["a cat", "a dog"]},
        {"negative_prompt": "blurry"},
        {"guidance_scale": 3.0},
        {"guidance_scale": 1.0},
        {"n_steps": 4},
        {"eta": 0.5},
        {"height": 32},
        {"precision": Precision(weights=Dtype.BFLOAT16)},
        {"precision": Precision(autocast=Dtype.BFLOAT16)},
        {"precision": Precision(tiling=True)},
    ]
    found = [fingerprint(**change) for change in changed]
    assert len({plain, *found}) == 1 + len(changed)


def test_a_prior_that_was_sent_to_another_process_is_the_same(saved):
    """As Ray sends it, with what a compiled network and checkpoints hold."""
    from ray import cloudpickle

    prior = StableDiffusionPrior.from_pretrained(saved, **CAT, precision=Precision(compile="eager"))
    sent = cloudpickle.loads(cloudpickle.dumps(prior))
    assert sent.network._compiled_call_impl is not None
    assert sent.fingerprint() == prior.fingerprint()
    x = prior.init(2, torch.Generator().manual_seed(0))
    t, _ = prior.steps[0]
    torch.testing.assert_close(sent.denoise(x, t).x0, prior.denoise(x, t).x0)


# ---------------------------------------------------------------- gaps
@pytest.mark.parametrize(
    ("file", "lost"),
    [
        ("unet/diffusion_pytorch_model", "mid_block.resnets.0.conv1.weight"),
        ("vae/diffusion_pytorch_model", "decoder.conv_in.weight"),
        ("text_encoder/model", "encoder.layers.1.mlp.fc1.weight"),
    ],
)
def test_weights_with_gaps_are_not_filled_with_random_numbers(file, lost, copy):
    tensors = load_file(copy / f"{file}.safetensors")
    (name,) = [name for name in tensors if name.endswith(lost)]
    del tensors[name]
    save_file(tensors, copy / f"{file}.safetensors", metadata={"format": "pt"})
    with pytest.raises(PriorError, match=r"lack 1 tensors of a .*they would be random numbers"):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


def test_weights_under_other_names_are_gaps(copy):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({f"module.{name}": t for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(PriorError, match="they would be random numbers"):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


def test_a_torn_text_encoder(copy):
    weights = copy / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(PriorError, match="cannot load the pipeline"):
        StableDiffusionPrior.from_pretrained(copy, **CAT)


def test_what_published_indices_name_and_priors_do_not_need(copy):
    """Stable Diffusion 1.5 names a safety checker and a feature extractor, which need not be there."""
    index = json.loads((copy / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "requires_safety_checker": True,
    }
    (copy / "model_index.json").write_text(json.dumps(index))
    assert len(StableDiffusionPrior.from_pretrained(copy, **CAT).steps) == 3


def test_a_download_that_was_broken_off_is_fetched_again(copy, saved, monkeypatch):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    asked = []

    def download(model, *, local_files_only=False, **kwargs):
        asked.append(local_files_only)
        return str(copy if local_files_only else saved)

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, model, **kwargs: None)
    StableDiffusionPrior.from_pretrained("some/model", revision=COMMIT, **CAT)
    assert asked == [True, False]
    with pytest.raises(PriorError, match="not whole in the local cache, and only local files"):
        StableDiffusionPrior.from_pretrained("some/model", revision=COMMIT, local_files_only=True, **CAT)


def test_a_home_folder(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert len(StableDiffusionPrior.from_pretrained(f"~/{copy.name}", **CAT).steps) == 3


def test_xl_without_its_first_text_encoder(tmp_path):
    folder = save_tiny("stable_diffusion_xl", tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(PriorError, match="two text encoders and tokenizers; a refiner has one"):
        StableDiffusionXLPrior.from_pretrained(folder, **CAT)


def test_a_network_that_predicts_variances_too(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(PriorError, match="takes 1 channels and gives 2: it predicts variances"):
        DDPMPrior.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "kind", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "latent_consistency"]
)
def test_a_fingerprint_is_the_same_on_every_processor(kind, tmp_path):
    """Of what was read, not of what was computed from it: matrix products differ in their last digits."""
    folder = save_tiny(kind, tmp_path)
    program = (
        "import sys; from smc.priors import pipelines as p; "
        f"print(p.{PRIOR_OF[kind]}.from_pretrained({str(folder)!r}, prompts=['a cat'], n_steps=3).fingerprint())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for capability in ("default", "avx2")
    }
    assert len(found) == 1


PRIOR_OF = {
    "stable_diffusion": "StableDiffusionPrior",
    "stable_diffusion_xl": "StableDiffusionXLPrior",
    "stable_diffusion_3": "StableDiffusion3Prior",
    "latent_consistency": "LatentConsistencyPrior",
}
